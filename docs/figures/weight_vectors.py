"""Draws weight_vectors.svg: one weight vector in a Linear, a Conv2d and a ConvTranspose2d.

python docs/figures/weight_vectors.py
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from ground import INK, prepare, save
from matplotlib.patches import Rectangle
from torch import nn

from lightning_gc import select

CHOSEN, UNIT = "#0072B2", 1  # the second output unit


def mask_of(layer: nn.Module) -> tuple[np.ndarray, str]:
    """Which elements of the weight are in the weight vector of output unit `UNIT`, by the library's own selection."""
    (entry,) = select(layer).centralized
    kept = [d for d in range(len(entry.shape)) if d not in entry.layout.dims]
    assert len(kept) == 1
    index = np.indices(entry.shape)[kept[0]]
    return (
        index == UNIT,
        f"{type(layer).__name__}, shape {tuple(entry.shape)}\nfan-in dims {entry.layout.dims}, fan-in {entry.fan_in}",
    )


def draw(axis, layer: nn.Module, rows: str, columns: str) -> None:
    mask, title = mask_of(layer)
    if mask.ndim == 2:
        mask = mask[:, :, None, None]
    gap = 0.45 if mask.shape[2] > 1 else 0.12
    height, width = mask.shape[2] + gap, mask.shape[3] + gap
    for (i, j, a, b), chosen in np.ndenumerate(mask):
        place = (j * width + b, -(i * height + a))
        box = {"facecolor": CHOSEN} if chosen else {"facecolor": INK, "alpha": 0.3}
        axis.add_patch(Rectangle(place, 0.93, -0.93, lw=0, **box))
    axis.set_xlim(-0.3, mask.shape[1] * width)
    axis.set_ylim(-mask.shape[0] * height, 0.3)
    axis.set_aspect("equal")
    axis.set(xticks=[], yticks=[], xlabel=columns, ylabel=rows)
    axis.set_title(title, fontsize=10)
    for side in axis.spines.values():
        side.set_visible(False)


def main() -> None:
    prepare()
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    draw(axes[0], nn.Linear(6, 4, bias=False), "first dim: output units", "second dim: inputs")
    draw(axes[1], nn.Conv2d(3, 4, 3, bias=False), "first dim: output channels", "second dim: input channels")
    draw(axes[2], nn.ConvTranspose2d(3, 4, 3, bias=False), "first dim: input channels", "second dim: output channels")
    save(figure, __file__)


if __name__ == "__main__":
    main()
