"""Whole training steps under the Trainer, with and without the callback."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from benchmarks.networks import NETWORKS, Network
from benchmarks.step import quiet_trainer
from benchmarks.timing import Clock
from lightning_gc import GradientCentralization

Row = dict[str, Any]

WARM_UP = 2
"""Steps at the start of each run that are not counted."""


def run(names: Sequence[str], device: torch.device, folder: Path, *, chunks: int, clock: Clock) -> list[Row]:
    """One row for each network: medians over all steps of all runs."""
    return [_compare(name, NETWORKS[name], device, folder, chunks, clock) for name in names]


def _compare(name: str, network: Network, device: torch.device, folder: Path, chunks: int, clock: Clock) -> Row:
    print(f"{name} ...", file=sys.stderr, flush=True)
    module, batch = Training(network.build()), network.batch()
    steps: dict[bool, list[float]] = {True: [], False: []}
    hooks: list[float] = []
    differences = []
    for chunk in range(chunks):
        medians = {}
        for with_callback in (True, False) if chunk % 2 else (False, True):
            per_step = StepClock(device, clock)
            timed = TimedCallback(device, clock)
            callbacks = [per_step, timed] if with_callback else [per_step]
            trainer = quiet_trainer(folder, device, max_steps=WARM_UP + network.steps, callbacks=callbacks)
            trainer.fit(module, DataLoader([batch] * (WARM_UP + network.steps), batch_size=None))
            counted = per_step.seconds[WARM_UP:]
            medians[with_callback] = statistics.median(counted)
            steps[with_callback] += counted
            hooks += timed.seconds[WARM_UP:]
        differences.append(medians[True] / medians[False] - 1)
    without = statistics.median(steps[False])
    hook = statistics.median(hooks)
    return {
        "network": name,
        "steps": len(steps[True]),
        "without_us": without * 1e6,
        "with_us": statistics.median(steps[True]) * 1e6,
        "difference": statistics.median(differences),
        "hook_us": hook * 1e6,
        "hook_share": hook / without,
    }


class Training(LightningModule):
    """Cross-entropy and SGD with momentum."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        inputs, targets = batch
        return F.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum, small enough to stay where it is."""
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class StepClock(Callback):
    """The time from the start to the end of each training batch."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._start = 0.0
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        _synchronise(self._device)
        self._start = self._clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it."""
        _synchronise(self._device)
        self.seconds.append(self._clock() - self._start)


class TimedCallback(GradientCentralization):
    """The callback, with a clock around the hook that centralizes. It logs nothing, as on most steps."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        super().__init__(log_means="off")
        self._device = device
        self._clock = clock
        self.seconds: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Centralize, on the clock."""
        _synchronise(self._device)
        start = self._clock()
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        _synchronise(self._device)
        self.seconds.append(self._clock() - start)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
