"""What needs an XLA of its own: two devices that exchange gradients, weights sharded by XLA, and ``bf16-true``."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.checks import Check, compare_logged, compare_logs, compare_weights, max_difference
from tests.xla import spmd
from tests.xla.alone import run_alone
from tests.xla.trainings import TRAININGS


@pytest.mark.parametrize("target", TRAININGS)
def test_two_devices_equal_one_process(record_property, tmp_path, target):
    expected = Check(TRAININGS[target], lambda: "auto").reference()
    ranks = run_alone("two_devices", tmp_path, target, devices=2)
    assert sorted(ranks) == ["rank0", "rank1"]
    assert ranks["rank0"]["device"] != ranks["rank1"]["device"]
    for found in ranks.values():
        compare_weights(found["weights"], expected.after, "after")
        compare_logged(found["logged"], expected.logged)
    largest = max(max_difference(found["weights"], expected.after) for found in ranks.values())
    record_property("largest difference of two devices from one process", largest)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_weights_that_xla_has_sharded_train_as_whole_ones(record_property, tmp_path, target):
    weights, logged = spmd.train(target)
    found = run_alone("spmd", tmp_path, target, devices=2)["found"]
    assert {name: "devices=" in spec for name, spec in found["placed"].items()} == dict.fromkeys(spmd.PLACEMENTS, True)
    compare_weights(found["weights"], weights, "after")
    compare_logs(found["logged"], logged, 0)
    record_property("largest difference of sharded weights from whole ones", max_difference(found["weights"], weights))


def test_bf16_true_is_narrow_where_it_cannot_be_seen(record_property, tmp_path):
    """What the documentation says: XLA computes in bfloat16 what torch calls float32, so that means are coarse."""
    found = run_alone("bf16_true", tmp_path)["found"]
    for gradient, weight in found.values():
        assert gradient.dtype == weight.dtype == torch.float32
        assert torch.equal(weight, weight.bfloat16().float())
    gradient = found["net.3.weight"][0].double()
    share = (gradient.mean(1).abs() / gradient.abs().mean(1)).max().item()
    record_property("what is left of a mean, over the mean absolute value", share)
    assert share > torch.finfo(torch.float32).eps * 100
