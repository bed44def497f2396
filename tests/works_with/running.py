"""Train a module with a target, and see that what the target promises holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gc import GradientCentralization
from tests.models import fit
from tests.recorder import Recorder, largest_drift, largest_mean


class Regression(LightningModule):
    """Fits a network's output to targets, with any optimizer; the caller may replace the loss."""

    def __init__(self, net: nn.Module, optimizer: Any = torch.optim.SGD, **optimizer_arguments: Any) -> None:
        super().__init__()
        self.net = net
        self._make = partial(optimizer, **{"lr": 0.1, **optimizer_arguments})

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.net(x) - y).abs().square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)

    def configure_optimizers(self):
        return self._make([p for p in self.parameters() if p.requires_grad])


def pairs(*x_shape: int, y: tuple[int, ...] = (3,), count: int = 4, dtype: torch.dtype = torch.float64) -> DataLoader:
    """`count` batches of inputs of a shape, the mean of which is not zero, and targets."""
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        # Drawn as float32, whatever the dtype, so that it is always the same data.
        return tuple((torch.randn(5, *shape, generator=generator) + 0.7).to(dtype) for shape in (x_shape, y))

    return DataLoader([batch() for _ in range(count)], batch_size=None)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` makes, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def train(module: LightningModule, target: str | None, *callbacks: Any, data: DataLoader, **arguments: Any) -> Recorder:
    """Train in float64 with the callback (none if `target` is None) and return what was recorded."""
    recorder = Recorder()
    gc = [GradientCentralization(target=target)] if target else []
    fit(module, recorder, *gc, *callbacks, data=data, **{"precision": "64-true", **arguments})
    return recorder


def assert_centralized(target: str, module: nn.Module, recorder: Recorder, tolerance: float = 1e-13) -> None:
    """What the target promises, for all selected parameters; and that they did train."""
    assert recorder.used, "no step was taken"
    first, last = recorder.weights[0], recorder.weights[-1]
    if target == "update":
        assert largest_drift(first, last, module) < tolerance
    else:
        assert max(largest_mean(used, module) for used in recorder.used) < tolerance


def assert_trained(recorder: Recorder, *names: str) -> None:
    """These parameters moved."""
    for name in names:
        assert not torch.equal(recorder.weights[0][name], recorder.weights[-1][name]), f"{name} did not move"


def check(module: LightningModule, target: str, *callbacks: Any, data: DataLoader, **arguments: Any) -> Recorder:
    """:func:`train` and :func:`assert_centralized`."""
    recorder = train(module, target, *callbacks, data=data, **arguments)
    assert_centralized(target, module, recorder)
    return recorder
