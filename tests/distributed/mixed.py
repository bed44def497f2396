"""Training in 16 bits on several processes, held to what rounding allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import Tensor

from lightning_gc import GradientCentralization
from lightning_gc.equation.dims import grouped
from tests.distributed.checks import Training
from tests.distributed.models import STEPS, Model

WholeGradients = Callable[[Any, Model], dict[str, Tensor]]


class Residuals(Callback):
    """After the callback: the means of whole gradients, against what one rounding of each element allows."""

    def __init__(self, whole: WholeGradients, dtype: torch.dtype, callback: Any) -> None:
        self._whole, self._dtype, self._callback = whole, dtype, callback
        self.worst: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Model, optimizer: Any) -> None:
        gradients = self._whole(trainer, pl_module)
        worst = 0.0
        seen = 0
        for entry in self._callback.selection.centralized:
            gradient = gradients.get(entry.name)
            if gradient is None:
                continue
            seen += 1
            # Of this dtype, or read out of it.
            assert torch.equal(gradient.to(self._dtype).to(gradient), gradient), entry.name
            view, dims = grouped(gradient.double(), entry.layout.dims, entry.layout.groups)
            # Half a unit in the last place of each element, and the rounding of the float32 mean.
            u = torch.finfo(self._dtype).eps / 2
            allowed = u * view.abs().mean(dims) + 8 * torch.finfo(torch.float32).eps * view.abs().amax(dims) + 1e-12
            worst = max(worst, (view.mean(dims).abs() / allowed).max().item())
        assert seen >= 5, seen
        self.worst.append(worst)


@dataclass
class InSixteenBits:
    """Gradients are centralized within one rounding, and what is logged is alike on all ranks and close to float32.

    Args:
        strategy: Makes the strategy.
        model: Makes the model.
        whole: Reads the whole gradients, by name, as the optimizer is to get them.
        precision: Lightning's name of it.
        dtype: Of those gradients.
    """

    strategy: Callable[[], Any]
    model: Callable[[Training], Model]
    whole: WholeGradients
    precision: str
    dtype: torch.dtype
    zero_unused: bool = False
    rtol: float = 0.05

    def reference(self) -> list[dict[str, float]]:
        model = self._training().model()
        self._training().fit(model, GradientCentralization())
        return model.logged

    def run(self, expected: list[dict[str, float]]) -> None:
        callback = GradientCentralization()
        residuals = Residuals(self.whole, self.dtype, callback)
        training = self._training()
        model = self.model(training)
        training.fit(
            model,
            callback,
            residuals,
            strategy=self.strategy(),
            devices=dist.get_world_size(),
            precision=self.precision,
        )
        assert len(residuals.worst) == STEPS
        assert max(residuals.worst) <= 1, residuals.worst
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, model.logged)
        assert all(logged == model.logged for logged in everyone)
        assert len(model.logged) == len(expected) == STEPS // 2
        for got, wanted in zip(model.logged, expected, strict=True):
            for name in ("gc/mean_pre", "gc/removed_norm"):
                assert abs(got[name] / wanted[name] - 1) <= self.rtol, (name, model.logged, expected)
            # There was something to remove.
            assert got["gc/mean_pre"] > 30 * got["gc/mean_post"], got

    def _training(self) -> Training:
        return Training(None, zero_unused=self.zero_unused)
