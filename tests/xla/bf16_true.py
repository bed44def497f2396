"""Trains with what Lightning calls ``precision="bf16-true"`` on XLA: ``python -m tests.xla.bf16_true FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lightning_gc import GradientCentralization
from tests.models import fit
from tests.recorder import Recorder
from tests.xla import cpu_plugin  # noqa: F401
from tests.xla.spmd import model

if __name__ == "__main__":
    recorder, module = Recorder(), model()
    # XLA's first use is the Trainer's: the setting is read then, and never again.
    fit(module, recorder, GradientCentralization(), accelerator="tpu", precision="bf16-true", max_steps=2)
    found = {name: (recorder.used[-1][name].cpu(), recorder.weights[-1][name].cpu()) for name in recorder.used[-1]}
    torch.save(found, Path(sys.argv[1], "found.pt"))
