"""DistributedDataParallel on two CPU processes equals one process on the same global batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed import ddp_script

pytestmark = pytest.mark.distributed

SCRIPT = Path(ddp_script.__file__)


def train_alone(folder: Path, **kwargs) -> dict:
    """Train in this process; return what it saved."""
    folder.mkdir()
    ddp_script.main(str(folder), "auto", 1, **kwargs)
    return torch.load(folder / "rank0.pt")


def train_in_two_processes(folder: Path, strategy: str, accumulate: int) -> tuple[list[dict], str]:
    """Run the script; return what each rank saved, and what was printed."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, str(SCRIPT), str(folder), strategy, "2", str(accumulate)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)], done.stdout + done.stderr


def assert_equal(got: dict, wanted: dict) -> None:
    for name, value in wanted["weights"].items():
        torch.testing.assert_close(got["weights"][name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "accumulate"),
    [("ddp", 1), ("ddp", 2), ("ddp_spawn", 1), ("ddp_fork", 1), ("ddp_find_unused_parameters_true", 1)],
)
def test_two_processes_equal_one(tmp_path, strategy, accumulate):
    one = train_alone(tmp_path / "one", accumulate=accumulate, unused="unused" in strategy)
    two, printed = train_in_two_processes(tmp_path / "two", strategy, accumulate)
    for rank in two:
        assert_equal(rank, one)
    assert two[0]["logged"] == two[1]["logged"]
    assert len(two[0]["logged"]) == 10
    last, alone_last = two[0]["logged"][-1], one["logged"][-1]
    assert last.keys() == alone_last.keys() >= {"gc/mean_pre", "gc/removed_norm/up.weight", "gc/mean_post/table.weight"}
    assert last == pytest.approx(alone_last, rel=1e-5, abs=1e-12)
    assert last["gc/mean_pre"] > 1e-6 > 1e-12 > last["gc/mean_post"]
    assert printed.count("parameters are centralized") == 1  # rank zero alone


def test_it_would_show_if_nothing_was_centralized(tmp_path):
    with_it = train_alone(tmp_path / "with")
    without = train_alone(tmp_path / "without", centralize=False)
    differences = [(with_it["weights"][n] - w).abs().max().item() for n, w in without["weights"].items()]
    assert max(differences) > 1e-3
