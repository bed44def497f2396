"""The examples start as a user starts them, on two CPU processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.distributed.launch import ROOT

pytestmark = pytest.mark.distributed


def run(script: str, *arguments: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)}:? +([\d.e+-]+)$", text, re.MULTILINE)
    assert found, text
    return float(found.group(1))


def test_ddp() -> None:
    out = run("ddp.py", "--epochs", "1")
    assert "2 processes on cpu, 29 steps" in out
    assert value(out, "largest difference between the processes' weights") == 0
    assert value(out, "largest move of the mean of a weight vector of the head") < 1e-6
    assert value(out, "gc/mean_post") < 1e-6 < value(out, "gc/mean_pre")


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_fsdp(target: str) -> None:
    out = run("fsdp.py", "--steps", "10", "--size", "36", "--target", target)
    assert "fsdp2: 2 processes on cpu" in out
    assert value(out, "gc/mean_post") < 1e-6 < value(out, "gc/mean_pre")
    assert value(out, "gc/mean_post/layers.1.linear2.weight") < 1e-6


@pytest.mark.parametrize("script", ["ddp.py", "fsdp.py"])
def test_help(script: str) -> None:
    assert "--devices" in run(script, "--help")
