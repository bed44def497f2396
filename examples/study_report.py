"""What the runs of study.py show: paired differences, their confidence intervals and p-values, and plots."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from study_plots import LABELS, plot_epochs_to_baseline, plot_test_accuracy, plot_training_loss

Run = dict[str, Any]
Runs = dict[tuple[str, str, int], Run]  # by setting, arm and seed

METRICS = {
    "train_loss": "training loss of the last epoch",
    "test_accuracy": "test accuracy, percent",
    "test_loss": "test loss",
    "epochs_to_baseline": "epochs to the last training loss of the arm without",
}
DIGITS = {"train_loss": 3, "test_accuracy": 1, "test_loss": 3, "epochs_to_baseline": 2}


@dataclass
class Comparison:
    """One metric in one arm of a setting against the arm without Gradient Centralization, seed by seed.

    Attributes:
        seeds: How many seeds have both. For `epochs_to_baseline`: of these, the ones that got there.
        without: The mean without Gradient Centralization; `without_sd` its standard deviation over seeds.
        with_: The mean in the arm; `with_sd` its standard deviation.
        difference: The mean of the paired differences, arm minus without.
        low: Lower end of the 95% confidence interval of the difference (Student's t).
        high: Its upper end.
        p: The p-value of the paired t-test.
        p_holm: The same, after Holm's correction for all comparisons of this metric in the table.
    """

    setting: str
    arm: str
    metric: str
    seeds: int
    without: float
    without_sd: float
    with_: float
    with_sd: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan


def load_runs(folder: Path, settings: Sequence[str], arms: Sequence[str], seeds: int) -> tuple[Runs, list[str]]:
    """The runs in `folder` of the arms that have all `seeds` seeds, with the metrics filled in; and the other arms."""
    runs: Runs = {}
    for file in sorted(folder.glob("*--*--seed*.json")):
        run = json.loads(file.read_text())
        if run["name"] in settings and run["arm"] in arms and run["seed"] < seeds:
            runs[run["name"], run["arm"], run["seed"]] = run
    counts = Counter((name, arm) for name, arm, _ in runs)
    incomplete = [f"{name}, {arm} ({n} of {seeds} seeds)" for (name, arm), n in counts.items() if n < seeds]
    runs = {key: run for key, run in runs.items() if counts[key[:2]] == seeds}
    for (name, _, seed), run in runs.items():
        run["train_loss"] = run["train_losses"][-1]
        run["test_accuracy"] *= 100
        baseline = runs.get((name, "none", seed))
        goal = baseline["train_losses"][-1] if baseline else math.nan
        run["epochs_to_baseline"] = epochs_to_reach(run["train_losses"], goal)
    return runs, incomplete


def epochs_to_reach(losses: Sequence[float], goal: float) -> float:
    """When a training loss first reaches `goal`, in epochs, interpolated between epochs; NaN if it never does."""
    for epoch, loss in enumerate(losses, 1):
        if loss <= goal:
            if epoch == 1:
                return 1.0
            before = losses[epoch - 2]
            return epoch - 1 + (before - goal) / (before - loss)
    return math.nan


def compare(runs: Runs, setting: str, arm: str, metric: str) -> Comparison:
    """The paired comparison of one arm with the arm without Gradient Centralization.

    Where a seed has no value (it never reached the goal), the means are of the others and nothing is tested: those
    that are left were selected by the outcome.
    """
    seeds = sorted(s for n, a, s in runs if (n, a) == (setting, arm) and (setting, "none", s) in runs)
    pairs = np.array([[runs[setting, a, s][metric] for a in ("none", arm)] for s in seeds]).reshape(-1, 2)
    whole = len(pairs)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    without, with_ = pairs.T
    mean = [float(x.mean()) if len(x) else math.nan for x in (without, with_, with_ - without)]
    sd = [float(x.std(ddof=1)) if len(x) > 1 else math.nan for x in (without, with_)]
    low = high = p = math.nan
    if len(pairs) == whole > 1 and np.ptp(with_ - without) > 0:
        test = stats.ttest_rel(with_, without)
        low, high = (float(x) for x in test.confidence_interval(0.95))
        p = float(test.pvalue)
    return Comparison(setting, arm, metric, len(pairs), mean[0], sd[0], mean[1], sd[1], mean[2], low, high, p)


def compare_all(runs: Runs, settings: Sequence[str], arms: Sequence[str]) -> list[Comparison]:
    """All comparisons that there are runs for, with p-values corrected metric by metric."""
    comparisons = [
        compare(runs, setting, arm, metric)
        for metric in METRICS
        for setting in settings
        for arm in arms
        if arm != "none" and any((n, a) == (setting, arm) for n, a, _ in runs)
    ]
    for metric in METRICS:
        tested = [c for c in comparisons if c.metric == metric and not math.isnan(c.p)]
        for comparison, p in zip(tested, holm([c.p for c in tested]), strict=True):
            comparison.p_holm = p
    return comparisons


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values that bound the chance of *any* false alarm.

    Holm, S. (1979): A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6, 65-70.
    """
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def write_report(folder: Path, settings: Sequence[str], arms: Sequence[str], seeds: int) -> None:
    """Write results.csv, summary.csv, summary.md and the plots into `folder`; print the summary.

    Arms that lack a seed are left out: what is quoted is of all `seeds` seeds.
    """
    runs, incomplete = load_runs(folder, settings, arms, seeds)
    if incomplete:
        print(f"not complete, and left out: {'; '.join(incomplete)}\n")
    if not runs:
        print(f"no arm in {folder} has all of {seeds} seeds")
        return
    comparisons = compare_all(runs, settings, arms)
    columns = ["name", "arm", "seed", *METRICS, "removed_norm", "seconds", "cpu_seconds", "torch"]
    rows = [{**{c: run[c] for c in columns}, **run["setting"]} for run in runs.values()]
    _write_csv(folder / "results.csv", rows)
    if comparisons:
        _write_csv(folder / "summary.csv", [asdict(c) for c in comparisons])
    table = "\n".join(
        [
            *(overview(comparisons, arm) for arm in arms if arm != "none"),
            "<!-- details -->",
            "",
            as_markdown(comparisons),
        ]
    )
    (folder / "summary.md").write_text(table)
    print(table)
    plots = {
        "training_loss.png": plot_training_loss(runs, settings, arms),
        "test_accuracy.png": plot_test_accuracy(comparisons, settings, arms),
        "epochs_to_baseline.png": plot_epochs_to_baseline(comparisons, runs, settings, arms),
    }
    for name, figure in plots.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=150)
    print(f"results.csv, summary.csv, summary.md and the plots are in {folder}")


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
            text = f"{c.without:.{DIGITS[metric]}f} → {c.with_:.{DIGITS[metric]}f}"
            if metric == "epochs_to_baseline" and c.seeds < cells[setting, "train_loss"].seeds:
                text = f"reached by {c.seeds} of {cells[setting, 'train_loss'].seeds} seeds"
            row.append(f"**{text}**" if c.p_holm < 0.05 else text)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """One table for each metric."""
    lines = []
    for metric, title in METRICS.items():
        lines += [
            f"### {title[0].upper()}{title[1:]}",
            "",
            "| setting | arm | seeds | without (sd) | with (sd) | difference [95% CI] | p | p, Holm |",
            "| --- | --- | --: | --: | --: | --: | --: | --: |",
        ]
        digits = DIGITS[metric]
        for c in comparisons:
            if c.metric == metric:
                interval = "" if math.isnan(c.low) else f" [{c.low:+.{digits + 1}f}, {c.high:+.{digits + 1}f}]"
                lines.append(
                    f"| {c.setting} | {c.arm} | {c.seeds} | {c.without:.{digits}f} ({c.without_sd:.{digits}f}) "
                    f"| {c.with_:.{digits}f} ({c.with_sd:.{digits}f}) | {c.difference:+.{digits + 1}f}{interval} "
                    f"| {_p(c.p)} | {_p(c.p_holm)} |"
                )
        lines.append("")
    return "\n".join(lines)


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
