"""Runs what needs an XLA of its own in a process of its own: how many devices there are, say, is settled at its first use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SECONDS = 400  # what fails here may hang: a minute is usual


def run_alone(script: str, folder: Path, *arguments: str, devices: int = 1) -> dict[str, Any]:
    """Run ``python -m tests.xla.<script> FOLDER ARGUMENTS...``; what it saved in the folder, by the names of the files."""
    environment = {**os.environ, "CPU_NUM_DEVICES": str(devices)}
    command = [sys.executable, "-m", f"tests.xla.{script}", str(folder), *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A session of its own: what it starts ends with it.
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        try:
            said, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(
                f"{script} took more than {SECONDS} s, and was ended. It said:\n{process.communicate()[0][-3000:]}"
            )
    assert process.returncode == 0, said[-3000:]
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}
