"""The statistics of the study, each by another way to its numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tests.examples.paired_study.parts import part

comparisons = part("comparisons")


class TestStatistics:
    def test_holm_on_a_case_done_by_hand(self):
        # Sorted: .005 x 4, .01 x 3, .03 x 2 (and monotone after it), .04 x 1 -> at least .06
        assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_holm_stays_below_one(self):
        assert comparisons.holm([0.9, 0.8]) == [1.0, 1.0]

    @pytest.mark.parametrize(
        ("losses", "goal", "epochs"), [([4, 2, 1], 3, 1.5), ([4, 2, 1], 1, 3), ([1, 2], 1.5, 1), ([2, 3, 1], 1.5, 2.75)]
    )
    def test_epochs_to_reach(self, losses, goal, epochs):
        assert comparisons.epochs_to_reach(losses, goal) == epochs

    def test_a_goal_that_is_never_reached(self):
        assert math.isnan(comparisons.epochs_to_reach([3, 2], 1))

    def test_comparison_is_the_paired_t_test(self):
        without, with_ = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.8, 1.9, 3.4, 3.1])
        runs = {("s", "none", i): {"test_loss": x} for i, x in enumerate(without)}
        runs |= {("s", "gradient", i): {"test_loss": x} for i, x in enumerate(with_)}
        c = comparisons.compare(runs, "s", "gradient", "test_loss")
        d = with_ - without
        half = stats.t.ppf(0.975, 3) * d.std(ddof=1) / 2  # the textbook's interval, for n = 4
        assert (c.seeds, c.difference) == (4, pytest.approx(d.mean()))
        assert (c.low, c.high) == (pytest.approx(d.mean() - half), pytest.approx(d.mean() + half))
        assert c.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / (d.std(ddof=1) / 2), 3))

    def test_only_seeds_of_both_arms_are_compared(self):
        runs = {("s", "none", i): {"test_loss": 1.0 + i} for i in range(3)}
        runs |= {("s", "gradient", i): {"test_loss": i**2 * 1.0} for i in (1, 2, 7)}
        assert comparisons.compare(runs, "s", "gradient", "test_loss").seeds == 2

    def test_nothing_is_tested_where_a_seed_has_no_value(self):
        runs = {("s", "none", i): {"epochs_to_baseline": 6.0 + i} for i in range(4)}
        runs |= {("s", "gradient", i): {"epochs_to_baseline": x} for i, x in enumerate([4.0, 5.5, 4.5, math.nan])}
        c = comparisons.compare(runs, "s", "gradient", "epochs_to_baseline")
        assert c.seeds == 3
        assert c.difference == pytest.approx((-2 - 1.5 - 3.5) / 3)
        assert math.isnan(c.p)
        assert math.isnan(c.low)
