"""The projection, on one tensor: torch alone."""
