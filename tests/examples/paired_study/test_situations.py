"""The table that the study's page opens with."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.examples.paired_study.parts import part

comparisons, settings, situations = part("comparisons"), part("settings"), part("situations")
HURTS = comparisons.Comparison("sgd", "gradient", "test_loss", 8, 0.4, 0.1, 0.5, 0.1, 0.1, 0.05, 0.15, 0.001, 0.012)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "**hurts**: +25.0 % (p = 0.012)"),
        ({"difference": -0.1, "p_holm": 1e-5}, "**helps**: -25.0 % (p < 0.001)"),
        ({"difference": -0.1, "p_holm": 0.3}, "nothing significant: -25.0 % (p = 0.300)"),
        (
            {"setting": "burgers-adamw", "metric": "test_error"},
            "**hurts**: +25.9 % (p = 0.012)",
        ),  # a difference of logarithms: 10 ** 0.1
        ({"p": math.nan, "p_holm": math.nan, "seeds": 6}, "not tested: 6 pairs have numbers"),
    ],
)
def test_what_was_seen(changes, text):
    assert situations.seen(replace(HURTS, **changes)) == text


def test_every_setting_has_a_situation():
    assert situations.SITUATIONS.keys() == settings.SETTINGS.keys()
    assert situations.TASK_TITLES.keys() == settings.TASKS.keys()


def test_arms_that_mean_the_same_share_a_column():
    trunk = replace(HURTS, setting="field-adamw", arm="trunk", metric="test_error")
    table = situations.situations([HURTS, replace(HURTS, arm="convolutions"), trunk], settings.TASKS)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    images = next(row for row in rows if "`sgd`" in row[0])
    field = next(row for row in rows if "`field-adamw`" in row[0])
    assert images[1:] == ["**hurts**: +25.0 % (p = 0.012)", "", "**hurts**: +25.0 % (p = 0.012)", "24"]
    assert field[1:] == ["", "", "**hurts**: +25.9 % (p = 0.012)", "16"]


def test_at_a_glance_has_the_callback_as_it_comes():
    helps = replace(HURTS, setting="language-sgd", metric="test_error", difference=-0.1, p_holm=1e-5)
    unsure = replace(HURTS, setting="adamw", p_holm=0.3)
    table = situations.at_a_glance([HURTS, replace(HURTS, arm="update"), unsure, helps], settings.TASKS)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.replace("\u00a0", " ").splitlines()[2:]]
    assert rows == [
        [situations.TASK_TITLES["images"], "", "", "", ""],
        [situations.SITUATIONS["sgd"], "**hurts**", "+25.0 %", "0.012", "16"],
        [situations.SITUATIONS["adamw"], "nothing", "+25.0 %", "0.300", "16"],
        [situations.TASK_TITLES["language"], "", "", "", ""],
        [situations.SITUATIONS["language-sgd"], "**helps**", "-25.0 %", "< 0.001", "16"],
    ]
