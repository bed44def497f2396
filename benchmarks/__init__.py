"""What centralizing costs: ``python -m benchmarks --help``."""
