"""The check of most distributed tests: training gives what one process gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_gc import GradientCentralization
from lightning_gc.engines.store import on_any_rank
from lightning_gc.selection.places import clean_name
from tests.distributed.models import Model, Net
from tests.models import trainer_kwargs

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Training:
    """What is trained, however it is distributed; `gc` are arguments of the callback, None leaves it out."""

    gc: tuple[tuple[str, Any], ...] | None = ()
    optimizer: str = "sgd"
    accumulate: int = 1
    clip: tuple[str, float] | None = None
    zero_unused: bool = False
    weight_norm: bool = False
    net: Callable[[], nn.Module] | None = None
    raw: bool = False

    def model(self) -> Model:
        net = self.net or partial(Net, self.zero_unused, self.weight_norm, self.raw)
        return Model(net, self.optimizer, self.accumulate)

    def fit(self, model: Model, *callbacks: Callback, ckpt_path: Any = None, **kwargs: Any) -> Trainer:
        callbacks = callbacks if self.gc is None else (GradientCentralization(**dict(self.gc)), *callbacks)
        callbacks = (*callbacks, AllRead()) if self.raw and self.gc is not None else callbacks
        if self.clip:
            kwargs.update(gradient_clip_algorithm=self.clip[0], gradient_clip_val=self.clip[1])
        # Every other step is logged: steps are measured, and not measured.
        given = {
            "accumulate_grad_batches": self.accumulate,
            "log_every_n_steps": 2,
            "use_distributed_sampler": False,
            **kwargs,
        }
        trainer = Trainer(**trainer_kwargs(callbacks=list(callbacks), **given))
        trainer.fit(model, ckpt_path=ckpt_path)
        return trainer


@dataclass
class Outcome:
    """The weights before and after, and what was logged."""

    before: Weights
    after: Weights
    logged: list[dict[str, float]]


class Recorder(Callback):
    """Reads the whole weights when training starts and ends, however they are held."""

    def __init__(self, whole: Callable[[Trainer, Model], Weights]) -> None:
        self._whole = whole
        self.before: Weights = {}
        self.after: Weights = {}

    def on_train_start(self, trainer: Trainer, pl_module: Model) -> None:
        self.before = self._whole(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Model) -> None:
        self.after = self._whole(trainer, pl_module)


class AllRead(Callback):
    """Checks that the graph was read of all that is not known: training alone would not show what was assumed."""

    def on_train_end(self, trainer: Trainer, pl_module: Model) -> None:
        callback = next(c for c in trainer.callbacks if isinstance(c, GradientCentralization))
        assert callback.selection is not None
        read = {entry.name: entry.layout for entry in callback.selection if ".raw." in entry.name}
        dims = {name: layout and (layout.dims, layout.groups, layout.source) for name, layout in read.items()}
        assert dims == {
            "net.raw.up": ((0,), 1, "read from the graph"),
            "net.raw.scale": None,
            "net.raw.blocks": ((0,), 2, "read from the graph"),
            "net.raw.down": ((1,), 1, "read from the graph"),
        }


def plain_weights(trainer: Trainer, model: Model) -> Weights:
    return {clean_name(name): p.detach().clone() for name, p in model.named_parameters()}


@cache
def single_process(training: Training) -> Outcome:
    """The outcome in one process."""
    model, recorder = training.model(), Recorder(plain_weights)
    training.fit(model, recorder)
    return Outcome(recorder.before, recorder.after, model.logged)


@dataclass
class Check:
    """Train in several processes, and compare with one."""

    training: Training
    strategy: Callable[[], Any]
    whole: Callable[[Trainer, Model], Weights] = plain_weights
    trainer: dict[str, Any] = field(default_factory=dict)
    model: Callable[[Training], Model] = Training.model
    logs: bool = True
    unlogged: str = ""

    def reference(self) -> Outcome:
        outcome = single_process(self.training)
        # The comparison must be able to fail: without the callback, weights are quite different.
        without = single_process(Training(None, *list(vars(self.training).values())[1:]))
        assert max_difference(outcome.after, without.after) > 1e-3
        assert not self.logs or len(outcome.logged) == 3
        return outcome

    def run(self, expected: Outcome) -> None:
        model, recorder = self.model(self.training), Recorder(self.whole)
        self.training.fit(model, recorder, strategy=self.strategy(), devices=dist.get_world_size(), **self.trainer)
        compare_weights(recorder.before, expected.before, "before")
        compare_weights(recorder.after, expected.after, "after")
        # On all ranks, as in one process.
        if self.logs:
            compare_logged(model.logged, expected.logged, self.unlogged)


@dataclass
class Told:
    """The user is told that nothing is centralized, or not, as it is; and asking costs one all-reduce in the whole fit.

    Args:
        training: What is trained.
        strategy: Makes the strategy.
        said: What rank zero warns of; empty: nothing.
        model: Makes the model.
        broken: Patches the library for as long as it trains.
    """

    training: Training
    strategy: Callable[[], Any]
    said: str
    model: Callable[[Training], Model] = Training.model
    broken: Callable[[], Any] = nullcontext

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        asked = []

        def counted(*args: Any) -> bool:
            asked.append(args)
            return on_any_rank(*args)

        asks = [patch(f"lightning_gc.engines.{module}.on_any_rank", counted) for module in ("sharded", "mixed")]
        with warnings.catch_warnings(record=True) as caught, self.broken(), asks[0], asks[1]:
            warnings.simplefilter("always")
            self.training.fit(self.model(self.training), strategy=self.strategy(), devices=dist.get_world_size())
        remarks = [str(w.message) for w in caught if str(w.message).startswith("GradientCentralization")]
        assert len(asked) == 1, len(asked)
        if self.said and dist.get_rank() == 0:
            assert len(remarks) == 1, remarks
            assert self.said in remarks[0], remarks
        else:
            assert remarks == []


def compare_weights(got: Weights, expected: Weights, when: str) -> None:
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(
            got[name].to(wanted), wanted, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{when}: {name}: {m}"
        )


def compare_logged(logged: list[dict[str, float]], expected: list[dict[str, float]], unlogged: str = "") -> None:
    """All logged steps; names with `unlogged` in them are left out of what is expected."""
    assert len(logged) == len(expected), (logged, expected)
    for step, (got, wanted) in enumerate(zip(logged, expected, strict=True)):
        kept = {name: value for name, value in wanted.items() if not unlogged or unlogged not in name}
        compare_logs(got, kept, step)


def compare_logs(got: dict[str, float], expected: dict[str, float], step: int) -> None:
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    for name, wanted in expected.items():
        # What is left after centralizing is rounding, which may differ.
        allowed = 1e-6 if "mean_post" in name else 1e-7 + 1e-4 * abs(wanted)
        assert abs(got[name] - wanted) <= allowed, f"logged step {step}: {name}: {got[name]} is not {wanted}"


def max_difference(one: Weights, other: Weights) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def gc(target: str = "gradient", **kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """Arguments of the callback that can be hashed."""
    return tuple({"target": target, "log_means": "per_parameter", **kwargs}.items())
