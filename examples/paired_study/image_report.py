"""What the image runs show: tables and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from paired_study.comparisons import Comparison, Runs, compare_all, epochs_to_reach
from paired_study.plots import LABELS, plot_epochs_to_baseline, plot_test_accuracy, plot_training_loss
from paired_study.settings import IMAGE_ARMS
from paired_study.tables import Metric, details, write_comparisons, write_csv

METRICS = {
    "train_loss": Metric("training loss of the last epoch", 3),
    "test_accuracy": Metric("test accuracy, percent", 1),
    "test_loss": Metric("test loss", 3),
    "epochs_to_baseline": Metric("epochs to the last training loss of the arm without", 2),
}


def add_metrics(runs: Runs) -> None:
    """Fill in what follows from a run and the one without Gradient Centralization."""
    for (name, _, seed), run in runs.items():
        run["train_loss"] = run["train_losses"][-1]
        run["test_accuracy"] *= 100
        baseline = runs.get((name, "none", seed))
        goal = baseline["train_losses"][-1] if baseline else math.nan
        run["epochs_to_baseline"] = epochs_to_reach(run["train_losses"], goal)


def write_images(folder: Path, runs: Runs, settings: Sequence[str]) -> str:
    """Write results.csv, summary.csv, summary.md and the plots into `folder`; returns the summary."""
    add_metrics(runs)
    arms = list(IMAGE_ARMS)
    comparisons = compare_all(runs, settings, arms, METRICS)
    columns = ["name", "arm", "seed", *METRICS, "removed_norm", "seconds", "cpu_seconds", "torch"]
    write_csv(folder / "results.csv", [{**{c: run[c] for c in columns}, **run["setting"]} for run in runs.values()])
    if comparisons:
        write_comparisons(folder / "summary.csv", comparisons)
    overviews = (overview(comparisons, arm) for arm in arms if arm != "none")
    table = "\n".join([*overviews, "<!-- details -->", "", details(comparisons, METRICS)])
    (folder / "summary.md").write_text(table)
    plots = {
        "training_loss.png": plot_training_loss(runs, settings, arms),
        "test_accuracy.png": plot_test_accuracy(comparisons, settings, arms),
        "epochs_to_baseline.png": plot_epochs_to_baseline(comparisons, runs, settings, arms),
    }
    for name, figure in plots.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=150)
    return table


def overview(comparisons: Sequence[Comparison], arm: str) -> str:
    """All settings of an arm in one table: the means without and with, bold where they differ significantly."""
    cells = {(c.setting, c.metric): c for c in comparisons if c.arm == arm}
    settings = list(dict.fromkeys(setting for setting, _ in cells))
    if not settings:
        return ""
    lines = [
        f"### {LABELS[arm]}",
        "",
        "| setting | training loss | epochs to reach it | test accuracy | test loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for setting in settings:
        row = [setting]
        for metric in ("train_loss", "epochs_to_baseline", "test_accuracy", "test_loss"):
            c = cells[setting, metric]
            text = f"{c.without:.{METRICS[metric].digits}f} → {c.with_:.{METRICS[metric].digits}f}"
            if metric == "epochs_to_baseline" and c.seeds < cells[setting, "train_loss"].seeds:
                text = f"reached by {c.seeds} of {cells[setting, 'train_loss'].seeds} seeds"
            row.append(f"**{text}**" if c.p_holm < 0.05 else text)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])
