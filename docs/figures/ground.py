"""What the figures share: no ground of their own, and ink that can be read on a light page and on a dark one."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

INK = "#7a7a7a"  # as far from white as from the ground of the documentation's dark theme


def prepare() -> None:
    """Set the ink of all that is not data; the same file comes from the same code."""
    ink = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")
    matplotlib.rcParams.update(dict.fromkeys(ink, INK))
    matplotlib.rcParams.update({"svg.hashsalt": "lightning-gc", "legend.frameon": False})


def save(figure: Figure, script: str) -> None:
    """Beside the script that drew it, without a ground."""
    figure.savefig(Path(script).with_suffix(".svg"), metadata={"Date": None}, transparent=True)
