"""Training in 16 bits on several processes, held to what rounding allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import Tensor

from lightning_gc import GradientCentralization, select
from lightning_gc.equation.dims import grouped
from tests.distributed.checks import Recorder, Training
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
    clip: tuple[str, float] | None = None
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
        return Training(None, clip=self.clip, zero_unused=self.zero_unused)


@dataclass
class MastersInSixteenBits:
    """No mean of a weight vector moves in the float32 masters, from which the 16-bit weights are rounded.

    Nor do they with the targets that act on gradients, where there is no weight decay: a sum of gradients of zero mean has
    zero mean.

    Args:
        strategy: Makes the strategy.
        model: Makes the model.
        masters: Reads the whole masters, by name.
        precision: Lightning's name of it.
        gc: The arguments of the callback.
        skips: Whether the first steps are to be skipped for an overflow.
    """

    strategy: Callable[[], Any]
    model: Callable[[Training], Model]
    masters: Callable[[Any, Model], dict[str, Tensor]]
    precision: str
    gc: tuple[tuple[str, Any], ...]
    optimizer: str
    skips: bool = False

    def reference(self) -> list[dict[str, float]]:
        training = Training(self.gc, self.optimizer, zero_unused=True)
        model = training.model()
        training.fit(model)
        return model.logged

    def run(self, expected: list[dict[str, float]]) -> None:
        drift, logged = self._drift(self.gc)
        without, _ = self._drift(None)
        assert drift < 5e-7 < 1e-3 < without, (drift, without)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, logged)
        assert all(other == logged for other in everyone)
        if self.skips:
            return
        assert len(logged) == len(expected) == STEPS // 2
        for got, wanted in zip(logged, expected, strict=True):
            # ZeRO knows nothing of frozen parameters.
            assert got.keys() == {name for name in wanted if "frozen" not in name}
            for name in {"gc/mean_pre", "gc/removed_norm"} & wanted.keys():
                assert abs(got[name] / wanted[name] - 1) <= 0.05, (name, got[name], wanted[name])

    def _drift(self, arguments: Any) -> tuple[float, list[dict[str, float]]]:
        """How far the mean of a weight vector moved, of those that the callback has selected; what was logged."""
        training = Training(arguments, self.optimizer, zero_unused=True)
        model = self.model(training)
        recorder = Recorder(self.masters)
        trainer = training.fit(
            model, recorder, strategy=self.strategy(), devices=dist.get_world_size(), precision=self.precision
        )
        skipped = trainer.strategy.deepspeed_engine.skipped_steps
        assert 1 <= skipped <= STEPS - 3 if self.skips else skipped == 0, skipped
        drifts = []
        for entry in select(training.model()).centralized:
            if entry.name in recorder.before:
                changed = not torch.equal(recorder.after[entry.name], recorder.before[entry.name])
                assert changed or "unused" in entry.name, entry.name
                moved = (recorder.after[entry.name].double() - recorder.before[entry.name].double()).view(entry.shape)
                view, dims = grouped(moved, entry.layout.dims, entry.layout.groups)
                drifts.append(view.mean(dims).abs().max().item())
        assert len(drifts) >= 5
        return max(drifts), model.logged
