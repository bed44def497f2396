"""What was removed from the weight vectors, and the metric that accumulates it."""
