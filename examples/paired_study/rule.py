"""Does what is logged in the first steps tell in advance whether Gradient Centralization helps?

A rule compares one number of the first steps with a threshold. It is chosen on the image settings, and judged on the
settings of the other tasks, which had no part in the choice, beside "always with" and "always without".
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

Norms = Mapping[str, float]  # share of the norm removed in the first steps: of "total", and by parameter, in order


def _layers(norms: Norms) -> list[float]:
    return [value for name, value in norms.items() if name != "total"]


FEATURES: dict[str, Callable[[Norms], float]] = {
    "of the whole gradient": lambda norms: norms["total"],
    "of the last layer": lambda norms: _layers(norms)[-1],
    "of the first layer": lambda norms: _layers(norms)[0],
    "of the layer with the most": lambda norms: max(_layers(norms)),
    "of the layer with the least": lambda norms: min(_layers(norms)),
    "of the median layer": lambda norms: statistics.median(_layers(norms)),
}


@dataclass(frozen=True)
class Rule:
    """Use Gradient Centralization where a feature is above (or below) a threshold."""

    feature: str
    above: bool
    threshold: float

    def says_with(self, norms: Norms) -> bool:
        """Whether to use it."""
        return (FEATURES[self.feature](norms) > self.threshold) == self.above

    def __str__(self) -> str:
        """In words."""
        side = "more" if self.above else "less"
        return f"with it, if {side} than {self.threshold:.2f} {self.feature} is removed"


@dataclass(frozen=True)
class Case:
    """A setting, or one seed of it.

    Attributes:
        norms: What was logged in the first steps.
        difference: The error on what was held out, with minus without.
        significant: Whether the difference is, after the correction.
    """

    setting: str
    norms: Norms
    difference: float
    significant: bool = False

    @property
    def helped(self) -> bool:
        """Whether the run with it ended better."""
        return self.difference < 0


def choose(cases: Sequence[Case]) -> Rule:
    """The rule that is right most often; of several, the one whose threshold lies in the widest gap."""
    best: tuple[int, float, Rule] | None = None
    for feature, read in FEATURES.items():
        values = sorted({read(case.norms) for case in cases})
        for low, high in itertools.pairwise(values):
            for above in (True, False):
                rule = Rule(feature, above, (low + high) / 2)
                right = sum(rule.says_with(case.norms) == case.helped for case in cases)
                if best is None or (right, high - low) > best[:2]:
                    best = right, high - low, rule
    if best is None:
        raise ValueError(f"A rule needs settings that differ in what is removed, but got {len(cases)}.")
    return best[2]


@dataclass(frozen=True)
class Judgement:
    """How a way to decide does on cases.

    Attributes:
        name: Of the way.
        right: In how many cases it says what was better.
        cases: Of how many.
        p_coin: Exact two-sided binomial test against a coin.
    """

    name: str
    right: int
    cases: int

    @property
    def p_coin(self) -> float:
        """The p-value of the exact two-sided binomial test against a coin."""
        return float(binomtest(self.right, self.cases).pvalue) if self.cases else math.nan


def judge(cases: Sequence[Case], rule: Rule) -> list[Judgement]:
    """The rule, "always with" and "always without"."""
    ways: dict[str, Callable[[Case], bool]] = {
        "the rule": lambda case: rule.says_with(case.norms),
        "always with": lambda case: True,
        "always without": lambda case: False,
    }
    return [Judgement(name, sum(say(c) == c.helped for c in cases), len(cases)) for name, say in ways.items()]


def p_against_constant(cases: Sequence[Case], rule: Rule, always: bool) -> float:
    """McNemar's exact test of the rule against always saying the same: of the cases where they differ, who is right."""
    differing = [case for case in cases if rule.says_with(case.norms) != always]
    wins = sum(case.helped != always for case in differing)
    return float(binomtest(wins, len(differing)).pvalue) if differing else 1.0
