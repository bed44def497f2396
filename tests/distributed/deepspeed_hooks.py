"""The hooks on the torch optimizer inside of DeepSpeed's: there while training, and gone afterwards, however it ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch.optim import Optimizer

from lightning_gc import GradientCentralization
from tests.distributed.checks import Training
from tests.distributed.models import Model


def hooks_on(optimizer: Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


class Inner(Callback):
    """How many hooks there are on the inner optimizer, once Lightning has set it up and in each batch."""

    def __init__(self) -> None:
        self.hooks: dict[Optimizer, list[int]] = {}

    def on_fit_start(self, trainer: Trainer, *args: Any) -> None:
        inner = trainer.strategy.deepspeed_engine.optimizer.optimizer
        self.hooks.setdefault(inner, []).append(hooks_on(inner))

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.on_fit_start(trainer)

    def check(self, optimizers: int, batches: int) -> None:
        assert [len(counts) for counts in self.hooks.values()] == [1 + batches] * optimizers
        assert all(min(counts) > 0 for counts in self.hooks.values())
        assert [hooks_on(optimizer) for optimizer in self.hooks] == [0] * optimizers


class FailsInStep(Callback):
    """Between the hook that is run before the second step, and what the step does."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Model, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            inner = trainer.strategy.deepspeed_engine.optimizer.optimizer
            self.handle = inner.register_step_pre_hook(self._fail)

    def _fail(self, *args: Any) -> None:
        self.handle.remove()
        raise RuntimeError("in the middle of a step")


class Tuned(Model):
    """Has what the finders look for."""

    lr, batch_size = 0.1, 4


@dataclass
class Hooks:
    """What ends with no hook left.

    Args:
        strategy: Makes the strategy.
        target: The callback's.
        ends: How training ends, or what trains before.
    """

    strategy: Callable[[], Any]
    target: str
    ends: str

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        getattr(self, self.ends)(GradientCentralization(target=self.target), Inner())

    def _fit(self, *callbacks: Callback, model: Model | None = None, **kwargs: Any) -> Trainer:
        training = Training(None, zero_unused=True)
        arguments = {"strategy": self.strategy(), "devices": dist.get_world_size(), **kwargs}
        return training.fit(model or training.model(), *callbacks, **arguments)

    def fitted_twice(self, callback: Callback, inner: Inner) -> None:
        trainer = self._fit(callback, inner)
        inner.check(optimizers=1, batches=6)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(Training(zero_unused=True).model())
        inner.check(optimizers=2, batches=6)

    def exception(self, callback: Callback, inner: Inner) -> None:
        with pytest.raises(RuntimeError, match="in the middle of a step"):
            self._fit(callback, inner, FailsInStep())
        inner.check(optimizers=1, batches=2)

    def learning_rate_finder(self, callback: Callback, inner: Inner) -> None:
        # Lightning calls finders first, and cannot run this one on what DeepSpeed has in the place of an optimizer.
        with tempfile.TemporaryDirectory() as directory, pytest.raises(TypeError, match="is not an Optimizer"):
            self._fit(
                callback, inner, LearningRateFinder(num_training_steps=3), model=Tuned(), default_root_dir=directory
            )
        assert not inner.hooks
        self._fit(callback, inner)
        inner.check(optimizers=1, batches=6)

    def batch_size_finder(self, callback: Callback, inner: Inner) -> None:
        with pytest.raises(MisconfigurationException, match="not supported with distributed strategies"):
            self._fit(callback, inner, BatchSizeFinder(), model=Tuned())
        assert not inner.hooks
        self._fit(callback, inner)
        inner.check(optimizers=1, batches=6)
