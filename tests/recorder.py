"""What the optimizer really did: gradients before and after the callback, and weights, step by step."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gc import select
from tests import oracle

Tensors = dict[str, Tensor]


class Recorder(Callback):
    """Put it *before* GradientCentralization among the callbacks.

    Attributes:
        raw: The gradients when Lightning announces the step: unscaled, not clipped, not centralized.
        used: The gradients that are there when the optimizer's step is over: those that it used.
        weights: The parameters at the start, and after every step of the optimizer's.
    """

    def __init__(self) -> None:
        self.raw: list[Tensors] = []
        self.used: list[Tensors] = []
        self.weights: list[Tensors] = []
        self._handles = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Later than on_fit_start, so that this post-hook runs after those of the callback under test.
        self.weights.append(weights_of(pl_module))
        for optimizer in trainer.optimizers:
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self._after_step(pl_module)))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.raw.append(gradients_of(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for handle in self._handles:
            handle.remove()

    def _after_step(self, module: LightningModule) -> None:
        self.used.append(gradients_of(module))
        self.weights.append(weights_of(module))


def gradients_of(module: nn.Module) -> Tensors:
    """Copies of the gradients that are there, by name."""
    return {name: p.grad.detach().clone() for name, p in module.named_parameters() if p.grad is not None}


def weights_of(module: nn.Module) -> Tensors:
    """Copies of the parameters, by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def selected_dims(module: nn.Module) -> dict[str, tuple[tuple[int, ...], int]]:
    """The fan-in dims and groups of the parameters that are centralized, by name."""
    return {e.name: (e.layout.dims, e.layout.groups) for e in select(module).centralized}


def largest_mean(tensors: Tensors, module: nn.Module) -> float:
    """The largest absolute mean of a weight vector among the selected parameters."""
    found = []
    for name, (dims, groups) in selected_dims(module).items():
        if name in tensors:
            found += [abs(mean) for mean in oracle.means_of(oracle.to_numpy(tensors[name]), dims, groups)]
    assert found, "nothing was selected"
    return max(found)


def largest_drift(before: Tensors, after: Tensors, module: nn.Module) -> float:
    """How far the mean of any weight vector moved."""
    return largest_mean({name: wide(after[name]) - wide(before[name]) for name in after}, module)


def wide(tensor: Tensor) -> Tensor:
    """In float64 or complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
