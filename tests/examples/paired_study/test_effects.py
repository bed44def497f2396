"""The picture of the whole study."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.examples.paired_study.parts import part

comparisons, settings, effects, situations = part("comparisons"), part("settings"), part("effects"), part("situations")
HURTS = comparisons.Comparison("sgd", "gradient", "test_loss", 8, 0.4, 0.1, 0.5, 0.1, 0.1, 0.05, 0.15, 0.001, 0.012)


def dots(axis):
    """Where each dot is, and its colour."""
    return [
        (*line.get_xydata()[0], line.get_color())
        for line in axis.lines
        if line.get_marker() == "o" and len(line.get_xydata())
    ]


def test_a_dot_for_each_setting_where_the_change_is():
    lower_training = replace(HURTS, metric="train_loss", difference=-0.1, low=-0.15, high=-0.05)
    logarithm = replace(HURTS, setting="field-sgd", metric="test_error", p_holm=0.2)
    figure = effects.plot_effects([HURTS, lower_training, logarithm], settings.TASKS)
    training, held_out = (dots(axis) for axis in figure.axes)
    assert training == [(pytest.approx(0.75), 1, effects.COLORS["helps"])]
    assert held_out == [
        (pytest.approx(1.25), 1, effects.COLORS["hurts"]),
        (pytest.approx(10**0.1), 3, effects.COLORS["nothing"]),
    ]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["", situations.SITUATIONS["sgd"], "", situations.SITUATIONS["field-sgd"]]


def test_other_arms_are_not_in_it():
    figure = effects.plot_effects([HURTS, replace(HURTS, setting="adamw", arm="update")], settings.TASKS)
    assert [len(dots(axis)) for axis in figure.axes] == [0, 1]


def test_what_was_not_tested_has_no_interval():
    figure = effects.plot_effects(
        [replace(HURTS, p=math.nan, p_holm=math.nan, low=math.nan, high=math.nan)], settings.TASKS
    )
    assert [color for *_, color in dots(figure.axes[1])] == [effects.COLORS["not tested"]]


def test_it_has_no_ground_and_no_black_ink_so_that_it_can_be_read_on_a_dark_page(tmp_path):
    effects.save_effects([HURTS], settings.TASKS, tmp_path / "effects.svg")
    written = (tmp_path / "effects.svg").read_text()
    assert "#ffffff" not in written
    assert "#000000" not in written
    assert '<g style="fill: #7a7a7a' in written  # glyphs without a fill of their own are black


def test_the_labels_of_the_changes_do_not_touch():
    figure = effects.plot_effects([HURTS], settings.TASKS)
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
        height = boxes[0].height
        assert all(right.x0 - left.x1 > height for left, right in pairwise(boxes))
