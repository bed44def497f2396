"""The picture of the whole study: what the callback, as it comes, makes of the training and of what was held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from paired_study.comparisons import Comparison
from paired_study.situations import OUTCOMES, SITUATIONS, ratio

COLORS = {"helps": "#2a8fd0", "hurts": "#D55E00", "nothing": "#888888", "not tested": "#888888"}
SAID = {"helps": "better with it", "hurts": "worse with it", "nothing": "no significant difference"}
PANELS = {"training loss at the end": ("train_loss",), "error on what was held out": OUTCOMES}
LIMITS, TICKS = (0.42, 5.0), (0.5, 0.7, 1, 1.5, 2.5, 4)
# The picture has no ground of its own: all that is not data can be read on a light page and on a dark one.
INK = "#7a7a7a"
PLAIN = {
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.hashsalt": "study",  # the same file from the same numbers
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}


def save_effects(comparisons: Sequence[Comparison], tasks: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw `plot_effects` without a ground, for light pages and dark ones."""
    with rc_context(PLAIN):
        plot_effects(comparisons, tasks).savefig(path, metadata={"Date": None})


def plot_effects(comparisons: Sequence[Comparison], tasks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A row for each setting and a panel for each of training and test: the change in percent, with its 95% CI."""
    found = {(c.setting, c.metric): c for c in comparisons if c.arm == "gradient"}
    settings = {name for name, _ in found}
    rows: list[str | None] = []  # a setting's name, or None for the line above a task's settings
    titles: dict[int, str] = {}
    for task, names in tasks.items():
        here = [name for name in names if name in settings]
        if here:
            titles[len(rows)] = task
            rows += [None, *here]
    figure = Figure(figsize=(9, 0.9 + 0.165 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, metrics) in zip(axes, PANELS.items(), strict=True):
        for y, name in enumerate(rows):
            for metric in metrics:
                if name is not None and (name, metric) in found:
                    _draw(axis, y, found[name, metric])
        _finish(axis, title)
    axes[0].set_yticks(range(len(rows)), ["" if name is None else SITUATIONS[name] for name in rows], fontsize=8.5)
    for y, task in titles.items():
        axes[0].annotate(
            task,
            (0, y),
            xytext=(-4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=8.5,
            fontweight="bold",
            ha="right",
            va="center",
            annotation_clip=False,
        )
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel("change by Gradient Centralization, with its 95% confidence interval", fontsize=9)
    figure.legend(
        [axes[0].plot([], [], "o", color=COLORS[verdict], ms=5)[0] for verdict in SAID],
        SAID.values(),
        loc="outside upper right",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    return figure


def _draw(axis: Axes, y: int, c: Comparison) -> None:
    low, middle, high = (ratio(c, x) for x in (c.low, c.difference, c.high))
    color = COLORS[c.verdict]
    axis.plot([max(low, LIMITS[0]), min(high, LIMITS[1])], [y, y], color=color, lw=1.4)
    axis.plot(middle, y, "o", color=color, ms=5)


def _finish(axis: Axes, title: str) -> None:
    axis.set_xscale("log")
    axis.set_xlim(*LIMITS)
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x == 1 else f"{100 * (x - 1):+.0f} %"))
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.axvline(1, color=INK, lw=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(title, fontsize=10)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
