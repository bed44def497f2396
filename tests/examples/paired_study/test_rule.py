"""The rule finds what there is to find, and its tests are exact."""

from __future__ import annotations

from math import comb

import pytest

from tests.examples.paired_study.parts import part

rule = part("rule")


def case(first: float, last: float, difference: float) -> object:
    return rule.Case("s", {"total": 0.5, "a": first, "b": last}, difference)


def test_it_finds_the_layer_that_tells():
    cases = [case(0.3, 0.1, 1.0), case(0.1, 0.2, 1.0), case(0.2, 0.6, -1.0), case(0.1, 0.7, -1.0)]
    found = rule.choose(cases)
    assert found == rule.Rule("of the last layer", True, pytest.approx(0.4))
    assert str(found) == "with it, if more than 0.40 of the last layer is removed"
    assert [judgement.right for judgement in rule.judge(cases, found)] == [4, 2, 2]


def test_the_rule_can_be_the_other_way_round():
    cases = [case(0.1, 0.1, -1.0), case(0.1, 0.2, -1.0), case(0.1, 0.6, 1.0)]
    assert rule.choose(cases) == rule.Rule("of the last layer", False, pytest.approx(0.4))


def test_a_rule_needs_settings_that_differ():
    with pytest.raises(ValueError, match="differ"):
        rule.choose([case(0.1, 0.2, 1.0)])


@pytest.mark.parametrize(("right", "cases"), [(8, 10), (5, 9), (1, 12)])
def test_against_a_coin(right, cases):
    extreme = min(right, cases - right)
    tails = 2 * sum(comb(cases, k) for k in range(extreme + 1)) / 2**cases
    assert rule.Judgement("x", right, cases).p_coin == pytest.approx(min(1.0, tails))


def test_against_a_constant_only_cases_that_differ_count():
    cases = [case(0.1, 0.9, -1.0)] * 5 + [case(0.1, 0.1, 1.0)] * 6 + [case(0.1, 0.1, -1.0)]
    found = rule.Rule("of the last layer", True, 0.5)
    # Always with: they differ in 7, of which the rule is right in 6.
    assert rule.p_against_constant(cases, found, always=True) == pytest.approx(2 * (1 + 7) / 2**7)
    # Always without: they differ in 5, and the rule is right in all.
    assert rule.p_against_constant(cases, found, always=False) == pytest.approx(2 / 2**5)
