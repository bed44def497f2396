"""Draws projection.svg: the projection of a gradient, and where plain gradient descent goes with it and without.

python docs/figures/projection.py
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from ground import INK, prepare, save

from lightning_gc import centralize

GRADIENT, CENTRALIZED, PLANE = "#D55E00", "#0072B2", "#009E73"


def arrow(axis, start, end, color, label, at, ha="center") -> None:
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2.2, "shrinkA": 0, "shrinkB": 0}
    )
    axis.text(*at, label, color=color, fontsize=12, ha=ha, va="center")


def draw_projection(axis) -> None:
    """One weight vector of two elements: the hyperplane is a line."""
    weight = np.array([1.0, 0.6])
    gradient = np.array([0.55, 1.75])
    projected = centralize(torch.tensor(gradient[None])).numpy()[0]
    line = weight + np.outer(np.linspace(-1.9, 1.5, 2), [1, -1])
    axis.plot(*line.T, color=PLANE, lw=1.5)
    axis.text(
        2.42,
        -0.98,
        "all weights with the mean\nthat $w$ has: $e^\\top w$ const.",
        color=PLANE,
        fontsize=10,
        va="center",
        ha="right",
    )
    arrow(axis, weight, weight + gradient, GRADIENT, "$g$", weight + gradient + [0.08, 0.13])
    arrow(
        axis,
        weight,
        weight + projected,
        CENTRALIZED,
        "$Pg = g - e e^\\top g$",
        weight + projected + [-0.1, -0.3],
        "right",
    )
    axis.plot(*np.array([weight + projected, weight + gradient]).T, color=INK, ls="--", lw=1.5)
    axis.text(
        *(weight + projected / 2 + gradient / 2 + [0.0, 0.16]),
        "$e e^\\top g$, removed",
        fontsize=10,
        rotation=45,
        ha="center",
        va="center",
    )
    arrow(axis, weight, weight + np.array([1, 1]) / 2**0.5, INK, "$e$", (1.85, 1.2))
    axis.plot(*weight, "o", color=INK, ms=5)
    axis.text(weight[0] - 0.1, weight[1] - 0.14, "$w$", fontsize=12, va="center")
    axis.set(xlim=(-1.6, 2.6), ylim=(-1.3, 2.6), aspect="equal", title="one gradient")


def descend(centralized: bool) -> np.ndarray:
    """Forty steps of plain gradient descent on a quadratic bowl, from the same weights."""
    curvature, minimum = torch.tensor([[1.2, 0.3], [0.3, 0.9]]), torch.tensor([[1.2, 0.7]])
    weight = torch.tensor([[-0.9, 0.5]])
    path = [weight]
    for _ in range(40):
        gradient = (weight - minimum) @ curvature
        weight = weight - 0.15 * (centralize(gradient) if centralized else gradient)
        path.append(weight)
    return torch.cat(path).numpy()


def draw_descent(axis) -> None:
    x, y = np.meshgrid(np.linspace(-1.6, 2.6, 200), np.linspace(-1.3, 2.6, 200))
    dx, dy = x - 1.2, y - 0.7
    axis.contour(
        x,
        y,
        1.2 * dx**2 + 0.6 * dx * dy + 0.9 * dy**2,
        levels=np.geomspace(0.1, 20, 9),
        colors=INK,
        linewidths=0.8,
        alpha=0.4,
    )
    axis.plot(1.2, 0.7, "*", color=INK, ms=9)
    for centralized, color, label in ((False, GRADIENT, "without"), (True, CENTRALIZED, "with")):
        path = descend(centralized)
        axis.plot(
            *path.T,
            "o-",
            color=color,
            ms=3,
            lw=1.2,
            label=f"{label}: mean of $w$ from {path[0].mean():+.2f} to {path[-1].mean():+.2f}",
        )
    start = descend(True)[0]
    axis.plot(*(start + np.outer([-0.75, 2.4], [1, -1])).T, color=PLANE, lw=1.2, zorder=0)
    axis.set(xlim=(-1.6, 2.6), ylim=(-1.3, 2.6), aspect="equal", title="forty steps of gradient descent")
    axis.legend(fontsize=9, loc="upper left")


def main() -> None:
    prepare()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.9), layout="constrained")
    draw_projection(axes[0])
    draw_descent(axes[1])
    for axis in axes:
        axis.set(xlabel="first weight", ylabel="second weight", xticks=[], yticks=[])
    save(figure, __file__)


if __name__ == "__main__":
    main()
