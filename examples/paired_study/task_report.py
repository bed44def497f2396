"""What the runs of the tasks that are not images show: tables and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from paired_study.comparisons import Runs, compare_all
from paired_study.plots import plot_test_error, plot_training_loss
from paired_study.settings import ARMS, ARMS_AFTERWARDS
from paired_study.tables import Metric, details, write_comparisons, write_csv

METRICS = {
    "test_error": Metric("error on what was held out (nats, or log10 of the relative error)", 4),
    "train_loss": Metric("training loss of the last tenth of the steps", 4),
}


def add_metrics(runs: Runs) -> None:
    """Fill in what follows from a run. One that diverged has no numbers."""
    for run in runs.values():
        run["train_loss"] = run["train_losses"][-1]
        for metric in METRICS:
            if not math.isfinite(run[metric]):
                run[metric] = math.nan


def write_tasks(folder: Path, runs: Runs, settings: Sequence[str]) -> str:
    """Write tasks_results.csv, tasks_summary.csv, tasks_summary.md and plots into `folder`; returns the summary."""
    add_metrics(runs)
    arms = [*ARMS, *ARMS_AFTERWARDS]
    comparisons = compare_all(runs, settings, ARMS, METRICS)
    comparisons += compare_all(runs, settings, ARMS_AFTERWARDS, METRICS)
    columns = ["name", "arm", "seed", *METRICS, "test_accuracy", "seconds", "cpu_seconds", "torch", "python"]
    rows = [{**{c: run.get(c, "") for c in columns}, **run["setting"]} for run in runs.values()]
    write_csv(folder / "tasks_results.csv", rows)
    if comparisons:
        write_comparisons(folder / "tasks_summary.csv", comparisons)
    table = details(comparisons, METRICS)
    (folder / "tasks_summary.md").write_text(table)
    plots = {
        "tasks_training_loss.png": plot_training_loss(runs, settings, arms, "tenth of the run"),
        "tasks_test_error.png": plot_test_error(comparisons, settings, arms),
    }
    for name, figure in plots.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=150)
    return table
