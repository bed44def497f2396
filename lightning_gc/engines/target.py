"""What is centralized."""

from typing import Literal

Target = Literal["gradient", "clipped_gradient", "update"]
"""The gradient as backward left it, the gradient as the optimizer gets it, or what the optimizer adds to the weights."""
