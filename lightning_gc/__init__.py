"""Gradient Centralization (arXiv 2004.01461) for PyTorch Lightning."""

from lightning_gc.callback import GradientCentralization
from lightning_gc.equation.projection import centralize, centralize_
from lightning_gc.measuring.metrics import GradientMeans
from lightning_gc.selection import Selection, select
from lightning_gc.steps.attach import attach

__all__ = ["GradientCentralization", "GradientMeans", "Selection", "attach", "centralize", "centralize_", "select"]
__version__ = "0.2.0"
