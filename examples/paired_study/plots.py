"""The plots of the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette: also for readers who do not tell red from green.
COLORS = {
    "none": "#000000",
    "gradient": "#0072B2",
    "update": "#D55E00",
    "convolutions": "#009E73",
    "head": "#CC79A7",
    "trunk": "#009E73",
    "wide": "#CC79A7",
}
LABELS = {
    "none": "without GC",
    "gradient": 'target="gradient"',
    "update": 'target="update"',
    "convolutions": "gradient, convolutions only",
    "head": "gradient, linear layer only",
    "trunk": "gradient, all but the last layer",
    "wide": "gradient, all but the layer of fan-in 2",
}


def plot_training_loss(
    runs: dict[Any, dict[str, Any]], settings: Sequence[str], arms: Sequence[str], time: str = "epoch"
) -> Figure:
    """The training loss by epoch (or another part of the run), one panel for each setting: the mean over the seeds, and all of them in pale."""
    names = [s for s in settings if any(name == s for name, _, _ in runs)]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.5 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    shown: dict[str, Any] = {}
    for axis, name in zip(axes, names, strict=False):
        for arm in arms:
            curves = np.array([run["train_losses"] for (n, a, _), run in runs.items() if (n, a) == (name, arm)])
            if not len(curves):
                continue
            epochs = np.arange(1, curves.shape[1] + 1)
            axis.plot(epochs, curves.T, color=COLORS[arm], alpha=0.12, linewidth=0.7)
            (shown[arm],) = axis.plot(epochs, curves.mean(0), color=COLORS[arm], linewidth=1.6)
        axis.set_title(name, fontsize=10)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%.2g"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.tick_params(axis="both", which="both", labelsize=7)
    for axis in figure.axes[len(names) :]:
        axis.set_visible(False)
    figure.supxlabel(time, fontsize=9)
    figure.supylabel("training loss", fontsize=9)
    figure.legend(shown.values(), [LABELS[a] for a in shown], loc="outside upper center", ncols=5, fontsize=8)
    return figure


def plot_test_accuracy(comparisons: Sequence[Any], settings: Sequence[str], arms: Sequence[str]) -> Figure | None:
    """The paired differences in test accuracy with their confidence intervals."""
    return _forest(
        [c for c in comparisons if c.metric == "test_accuracy"],
        settings,
        arms,
        "difference in test accuracy to the arm without GC, percentage points (95% CI)",
    )


def plot_test_error(comparisons: Sequence[Any], settings: Sequence[str], arms: Sequence[str]) -> Figure | None:
    """The paired differences in the error on what was held out, in standard deviations of the runs without.

    So that nats and logarithms of errors share an axis.
    """
    scaled = [
        replace(c, **{key: getattr(c, key) / c.without_sd for key in ("difference", "low", "high")})
        for c in comparisons
        if c.metric == "test_error" and c.without_sd > 0
    ]
    label = (
        "difference in error on what was held out to the arm without GC (95% CI), in standard deviations\n"
        "of that arm over the seeds; to the right is worse"
    )
    return _forest(scaled, settings, arms, label)


def plot_epochs_to_baseline(
    comparisons: Sequence[Any], runs: dict[Any, dict[str, Any]], settings: Sequence[str], arms: Sequence[str]
) -> Figure | None:
    """How many epochs sooner or later each arm reaches the last training loss of the arm without."""
    return _forest(
        [c for c in comparisons if c.metric == "epochs_to_baseline"],
        settings,
        arms,
        "epochs needed for the last training loss of the arm without GC, difference to that arm (95% CI);\n"
        "in brackets: seeds that got there, where not all did",
        totals={(n, a): sum((m, b) == (n, a) for m, b, _ in runs) for n, a, _ in runs},
    )


def _forest(
    comparisons: Sequence[Any],
    settings: Sequence[str],
    arms: Sequence[str],
    label: str,
    totals: dict[tuple[str, str], int] | None = None,
) -> Figure | None:
    by_place = {(c.setting, c.arm): c for c in comparisons}
    names = [s for s in settings if any(c.setting == s for c in comparisons)]
    arms = [arm for arm in arms if any(c.arm == arm for c in comparisons)]
    if not names:
        return None
    figure = Figure(figsize=(7.5, 0.8 + 0.42 * len(names)), layout="constrained")
    axis = figure.subplots()
    labelled: set[str] = set()
    for y, name in enumerate(names):
        here = [arm for arm in arms if (name, arm) in by_place]
        for i, arm in enumerate(here):
            c = by_place[name, arm]
            if np.isnan(c.difference):
                continue
            place = y + (i - (len(here) - 1) / 2) * 0.2
            axis.errorbar(
                c.difference,
                place,
                xerr=None if np.isnan(c.low) else [[c.difference - c.low], [c.high - c.difference]],
                fmt="o",
                color=COLORS[arm],
                markersize=4,
                capsize=2,
                linewidth=1.2,
                label=None if arm in labelled else LABELS[arm],
            )
            labelled.add(arm)
            if totals and c.seeds < totals[name, arm]:
                end = (c.difference if np.isnan(c.low) else c.high, place)
                axis.annotate(f"  ({c.seeds} of {totals[name, arm]})", end, fontsize=7, va="center")
    axis.margins(x=0.1)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return figure
