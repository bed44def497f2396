"""Paired comparisons of an arm with the arm without Gradient Centralization, seed by seed, and Holm's correction."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

Run = dict[str, Any]
Runs = dict[tuple[str, str, int], Run]  # by setting, arm and seed


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

    @property
    def verdict(self) -> str:
        """What was seen of a metric that is the better the smaller: "helps", "hurts", "nothing", or "not tested"."""
        if math.isnan(self.p_holm):
            return "not tested"
        return "nothing" if self.p_holm >= 0.05 else "hurts" if self.difference > 0 else "helps"


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


def compare_all(runs: Runs, settings: Sequence[str], arms: Iterable[str], metrics: Iterable[str]) -> list[Comparison]:
    """All comparisons that there are runs for, with p-values corrected metric by metric."""
    arms, metrics = list(arms), list(metrics)
    comparisons = [
        compare(runs, setting, arm, metric)
        for metric in metrics
        for setting in settings
        for arm in arms
        if arm != "none" and any((n, a) == (setting, arm) for n, a, _ in runs)
    ]
    for metric in metrics:
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


def load_runs(folder: Path, settings: Sequence[str], arms: Iterable[str], seeds: int) -> tuple[Runs, list[str]]:
    """The runs in `folder` of the arms that have all `seeds` seeds; and the names of the other arms that have any."""
    runs: Runs = {}
    arms = list(arms)
    for file in sorted(folder.glob("*--*--seed*.json")):
        run = json.loads(file.read_text())
        if run["name"] in settings and run["arm"] in arms and run["seed"] < seeds:
            runs[run["name"], run["arm"], run["seed"]] = run
    counts = Counter((name, arm) for name, arm, _ in runs)
    incomplete = [f"{name}, {arm} ({n} of {seeds} seeds)" for (name, arm), n in counts.items() if n < seeds]
    return {key: run for key, run in runs.items() if counts[key[:2]] == seeds}, incomplete
