"""One fit, on Lightning's side."""
