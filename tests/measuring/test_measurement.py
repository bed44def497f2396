"""Sums over weight vectors: how they add up, and what is logged of them."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gc.measuring.measurement import Measurement


def of_one(before: list[complex], fan_in: int = 2, squared_norm: float | None = 50.0) -> Measurement:
    means = torch.tensor(before)
    return Measurement.of_one(means, means / 100, fan_in, None if squared_norm is None else torch.tensor(squared_norm))


def test_of_one():
    """Means of either sign, or complex, by their absolute values."""
    for before in ([3.0, -4.0], [3j, -4j]):
        measurement = of_one(before)
        assert [sums.tolist() for sums in measurement] == [[2.0], [7.0], [pytest.approx(0.07)], [50.0], [50.0]]


def test_of_one_without_weight_vectors():
    assert [sums.tolist() for sums in of_one([], squared_norm=0.0)] == [[0.0]] * 5


def test_values():
    values = of_one([3.0, -4.0], squared_norm=200.0).values()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"mean_pre": 3.5, "mean_post": 0.035, "removed_norm": math.sqrt(50 / 200)}
    )
    assert all(value.shape == () for value in values.values())


def test_values_by_name():
    both = Measurement.joined([of_one([3.0, -4.0]), of_one([1.0], fan_in=8, squared_norm=32.0)])
    values = {name: value.item() for name, value in both.values(["a", "b"]).items()}
    assert values["mean_pre"] == pytest.approx(8 / 3)
    assert values["mean_pre/a"] == pytest.approx(3.5)
    assert values["removed_norm/b"] == pytest.approx(0.5)
    assert values["removed_norm"] == pytest.approx(math.sqrt(58 / 82))
    assert len(values) == 9


def test_values_without_a_norm():
    assert list(of_one([1.0], squared_norm=None).values()) == ["mean_pre", "mean_post"]


def test_nothing_measured_is_zero_and_not_nan():
    absent = of_one([1.0]).placed(torch.tensor([1]), 2)
    assert absent.values(["a", "b"])["removed_norm/a"] == 0
    assert absent.values(["a", "b"])["mean_pre/a"] == 0


def test_placed():
    placed = Measurement.joined([of_one([1.0]), of_one([2.0, 2.0])]).placed(torch.tensor([2, 0]), 4)
    assert placed.before.tolist() == [4.0, 0.0, 1.0, 0.0]
    assert placed.vectors.tolist() == [2.0, 0.0, 1.0, 0.0]
    assert of_one([1.0], squared_norm=None).placed(torch.tensor([0]), 1).squared_norm is None


def test_nothing():
    nothing = Measurement.joined([of_one([1.0]), of_one([2.0])]).nothing()
    assert [sums.tolist() for sums in nothing] == [[0.0, 0.0]] * 5
    assert of_one([1.0], squared_norm=None).nothing().squared_norm is None


def test_to():
    here = of_one([1.0])
    assert here.to(torch.device("cpu")) is here
    there = here.to(torch.device("meta"))
    assert {sums.device.type for sums in there} == {"meta"}


def test_several_are_put_together_on_the_device_of_the_first():
    parts = [of_one([1.0]).to(torch.device("meta")), of_one([2.0])]
    for together in (Measurement.joined(parts), Measurement.added(parts)):
        assert {sums.device.type for sums in together} == {"meta"}


def test_with_removed():
    """The norm before, from that after: (3, 5) is (-1, 1) and its mean twice."""
    after = of_one([4.0], fan_in=2, squared_norm=2.0)
    assert after.with_removed().squared_norm.tolist() == [3.0**2 + 5.0**2]
    without = of_one([4.0], squared_norm=None)
    assert without.with_removed() is without


def test_added_and_total_agree():
    """A weight of two parts, and the two parts as parameters of their own."""
    parts = [of_one([3.0, -4.0]), of_one([1.0])]
    for one, other in zip(Measurement.added(parts), Measurement.joined(parts).total(), strict=True):
        assert torch.equal(one, other)


def test_what_is_one_already_takes_no_operation():
    one = of_one([1.0])
    assert one.total() is one
    assert Measurement.added([one]) is one


def test_unscaled():
    """As if the gradient had been divided before."""
    scaled = of_one([6.0, -8.0], squared_norm=200.0).unscaled(2.0)
    for one, other in zip(scaled, of_one([3.0, -4.0]), strict=True):
        torch.testing.assert_close(one, other)
    assert of_one([1.0], squared_norm=None).unscaled(torch.tensor(2.0)).squared_norm is None
