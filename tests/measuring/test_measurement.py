"""Sums over weight vectors: how they add up, and what is logged of them."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gc.measuring.measurement import Measurement, Part

CPU = torch.device("cpu")


def part(before: list[complex], fan_in: int = 2, norm: float | None = 50**0.5, scale: float = 1.0) -> Part:
    sums = torch.tensor(before) / scale
    return Part.of(sums, sums / 100, fan_in, scale, None if norm is None else torch.tensor(norm))


def measured(*parts: Part) -> Measurement:
    return Measurement.of(parts, CPU)


def of_one(before: list[complex], fan_in: int = 2, norm: float | None = 50**0.5) -> Measurement:
    return measured(part(before, fan_in, norm))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_of_one(scale):
    """Means of either sign, or complex, by their absolute values; or sums, and what makes means of them."""
    for before in ([3.0, -4.0], [3j, -4j]):
        measurement = measured(part(before, scale=scale))
        expected = [[2.0], [7.0], [0.07], [50.0], [50.0]]
        assert [sums.tolist() for sums in measurement] == [pytest.approx(value) for value in expected]
        assert {sums.dtype for sums in measurement} == {torch.float32}


def test_of_one_without_weight_vectors():
    assert [sums.tolist() for sums in of_one([], norm=0.0)] == [[0.0]] * 5


def test_values():
    values = of_one([3.0, -4.0], norm=200**0.5).values()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"mean_pre": 3.5, "mean_post": 0.035, "removed_norm": math.sqrt(50 / 200)}
    )
    assert all(value.shape == () for value in values.values())


def test_values_by_name():
    both = measured(part([3.0, -4.0]), part([1.0], fan_in=8, norm=32**0.5))
    values = {name: value.item() for name, value in both.values(["a", "b"]).items()}
    assert values["mean_pre"] == pytest.approx(8 / 3)
    assert values["mean_pre/a"] == pytest.approx(3.5)
    assert values["removed_norm/b"] == pytest.approx(0.5)
    assert values["removed_norm"] == pytest.approx(math.sqrt(58 / 82))
    assert len(values) == 9


def test_values_without_a_norm():
    assert list(of_one([1.0], norm=None).values()) == ["mean_pre", "mean_post"]


def test_nothing_measured_is_zero_and_not_nan():
    absent = of_one([1.0]).placed(torch.tensor([1]), 2)
    assert absent.values(["a", "b"])["removed_norm/a"] == 0
    assert absent.values(["a", "b"])["mean_pre/a"] == 0


def test_placed():
    placed = measured(part([1.0]), part([2.0, 2.0])).placed(torch.tensor([2, 0]), 4)
    assert placed.before.tolist() == [4.0, 0.0, 1.0, 0.0]
    assert placed.vectors.tolist() == [2.0, 0.0, 1.0, 0.0]
    assert of_one([1.0], norm=None).placed(torch.tensor([0]), 1).squared_norm is None


def test_to():
    here = of_one([1.0])
    assert here.to(torch.device("cpu")) is here
    there = here.to(torch.device("meta"))
    assert {sums.device.type for sums in there} == {"meta"}


def test_several_are_put_together_on_the_device_of_the_first():
    parts = [of_one([1.0]).to(torch.device("meta")), of_one([2.0])]
    assert {sums.device.type for sums in Measurement.added(parts)} == {"meta"}


def test_added_and_total_agree():
    """A weight of two parts, and the two parts as parameters of their own."""
    parts = [part([3.0, -4.0]), part([1.0])]
    for one, other in zip(Measurement.added([measured(p) for p in parts]), measured(*parts).total(), strict=True):
        assert torch.equal(one, other)


def test_what_is_one_already_takes_no_operation():
    one = of_one([1.0])
    assert one.total() is one
    assert Measurement.added([one]) is one


def test_unscaled():
    """As if the gradient had been divided before."""
    scaled = of_one([6.0, -8.0], norm=200**0.5).unscaled(2.0)
    for one, other in zip(scaled, of_one([3.0, -4.0]), strict=True):
        torch.testing.assert_close(one, other)
    assert of_one([1.0], norm=None).unscaled(torch.tensor(2.0)).squared_norm is None
