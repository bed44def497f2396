"""The callback as the Trainer calls it, on the gradients of a set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.shapes import GradientSet, Layer
from benchmarks.timing import Contender
from lightning_gc import GradientCentralization
from lightning_gc.kernels import VARIABLE

OURS = "ours"
TOTAL = "ours, logs total"
PER_PARAMETER = "ours, logs per parameter"
BETWEEN = "ours, total, between logged steps"
LOG_DICT = "ours, and Lightning's log_dict"
PLAIN = "ours, without the kernel"
PLAIN_TOTAL = "ours, without the kernel, logs total"

Measure = Callable[[list[tuple[Tensor, tuple[int, ...]]], dict[str, Contender]], None]


def in_trainer(gradient_set: GradientSet, device: torch.device, measure: Measure, folder: Path) -> None:
    """Call `measure` with gradients and our contenders, from within a real Trainer's optimizer step.

    The contenders call ``GradientCentralization.on_before_optimizer_step`` where Lightning would.
    """
    trainer = quiet_trainer(folder, device, max_steps=2, callbacks=[_MeasureInStep(gradient_set, measure)])
    module = SetModule(gradient_set, device)
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(2, 1))))


def quiet_trainer(folder: Path, device: torch.device, **kwargs: Any) -> Trainer:
    """A Trainer on one device that prints nothing and writes nothing."""
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=1,
        **kwargs,
    )


class SetModule(LightningModule):
    """Holds the layers of a set. Weights take no memory: each is one element, expanded."""

    def __init__(self, gradient_set: GradientSet, device: torch.device) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, device=device))
        self.layers = nn.ModuleList()
        element = torch.zeros((), dtype=gradient_set.dtype, device=device)
        for layer in gradient_set.layers:
            module = _module(layer)
            module.weight = nn.Parameter(element.expand(layer.shape))
            self.layers.append(module)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Something that has a gradient."""
        return self.scale.sum() * batch[0].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """It holds the parameters, and is never let take a step with them."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


class _MeasureInStep(Callback):
    def __init__(self, gradient_set: GradientSet, measure: Measure) -> None:
        self._set = gradient_set
        self._measure = measure

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step == 0:  # Lightning's first logging is not like all others
            return
        weights = [module.weight for module in pl_module.layers]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, dtype=weight.dtype, device=weight.device)
        gradients = [(w.grad, layer.dims) for w, layer in zip(weights, self._set.layers, strict=True)]
        with _callbacks(trainer, pl_module, optimizer) as contenders:
            self._measure(gradients, contenders)
        for weight in weights:  # these weights cannot take a step
            weight.grad = None


@contextlib.contextmanager
def _callbacks(
    trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
) -> Iterator[dict[str, Contender]]:
    callbacks = {
        OURS: GradientCentralization(log_means="off"),
        TOTAL: GradientCentralization(log_means="total"),
        PER_PARAMETER: GradientCentralization(log_means="per_parameter"),
    }

    def contender(callback: GradientCentralization, every: int) -> Contender:
        def call() -> None:
            trainer.log_every_n_steps = every
            trainer.fit_loop.epoch_loop._batches_that_stepped += 1  # each call is a step of its own: it logs again
            callback.on_before_optimizer_step(trainer, module, optimizer)

        return call

    if module.device.type == "cuda":
        callbacks |= {
            PLAIN: GradientCentralization(log_means="off"),
            PLAIN_TOTAL: GradientCentralization(log_means="total"),
        }
    counted = trainer.fit_loop.epoch_loop._batches_that_stepped
    for callback in callbacks.values():
        callback.on_fit_start(trainer, module)
    contenders = {name: contender(callback, 1) for name, callback in callbacks.items()}
    for name in (PLAIN, PLAIN_TOTAL):
        if name in contenders:  # whether the kernel is used is decided in a callback's first step
            os.environ[VARIABLE] = "0"
            contenders[name]()
            os.environ.pop(VARIABLE)
    contenders[BETWEEN] = contender(callbacks[TOTAL], 1_000_000)
    contenders[LOG_DICT] = partial(_log_constants, module, after=contenders[OURS])
    try:
        yield contenders
    finally:
        trainer.fit_loop.epoch_loop._batches_that_stepped = counted
        for callback in callbacks.values():
            callback.teardown(trainer, module, "fit")


def _log_constants(module: LightningModule, after: Contender) -> None:
    """What Lightning takes to log as many values as "total" does, whatever they are, where it would log them."""
    after()
    three = {f"constant/{i}": torch.zeros((), device=module.device) for i in range(3)}
    module.log_dict(three, on_step=True, on_epoch=False, batch_size=1)


def _module(layer: Layer) -> nn.Module:
    shape, nowhere = layer.shape, {"device": "meta"}
    if layer.kind == "conv":
        return nn.Conv2d(shape[1], shape[0], shape[2], bias=False, **nowhere)
    if layer.kind == "embedding":
        return nn.Embedding(*shape, **nowhere)
    if layer.kind == "conv1d":
        return conv1d_class()()
    return nn.Linear(shape[1], shape[0], bias=False, **nowhere)


def conv1d_class() -> type[nn.Module]:
    """A module that is recognised as transformers' `Conv1D`, whether that is installed or not."""
    return type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
