"""Count what the callback sends: collectives, and the bytes that each rank puts in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightning_gc.steps.steps
from lightning_gc import GradientCentralization
from lightning_gc.steps.hooks import OnNestedStep, OnStep, around_step


class Traffic(TorchDispatchMode):
    """Every collective operation, by name, with the bytes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional") and "wait" not in function.name():
            tensors = [leaf for leaf in tree_leaves(args[:1]) if isinstance(leaf, Tensor)]
            self.sent.append((function.name(), sum(t.numel() * t.element_size() for t in tensors)))
        return function(*args, **(kwargs or {}))


@dataclass
class Step:
    """What the callback sent for one optimizer step, as two counters saw it."""

    logged: bool
    collectives: int = 0
    sent: list[tuple[str, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.sent)


class Counted(GradientCentralization):
    """The callback, its traffic counted, with the targets "gradient" and "update"."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps: list[Step] = []
        self._works_in_hooks = kwargs.get("target", "gradient") == "update"

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        def counted_around_step(optimizer: Any, before: OnStep, after: OnNestedStep) -> Any:
            def counted_before(optimizer: Any) -> None:
                self.steps.append(new_step(trainer))
                with counting(self.steps[-1]):
                    before(optimizer)

            def counted_after(optimizer: Any, first: bool) -> None:
                with counting(self.steps[-1]):
                    after(optimizer, first)

            return around_step(optimizer, counted_before, counted_after)

        with patch.object(lightning_gc.steps.steps, "around_step", counted_around_step):
            super().on_fit_start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if self._works_in_hooks:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            return
        self.steps.append(new_step(trainer))
        with counting(self.steps[-1]):
            super().on_before_optimizer_step(trainer, pl_module, optimizer)


class CountedInside(GradientCentralization):
    """The same where an engine's inner optimizers are stepped on, without a closure: between two hooks of the test's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps: list[Step] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        counters = ExitStack()

        def start(*_: Any) -> None:
            counters.enter_context(counting(self.steps[-1]))

        def start_anew(*_: Any) -> None:
            self.steps.append(new_step(trainer))
            start()

        def stop(*_: Any) -> None:
            counters.close()

        inner = trainer.optimizers[0].optimizer
        inner.register_step_pre_hook(start_anew)
        inner.register_step_post_hook(start)
        super().on_fit_start(trainer, pl_module)
        inner.register_step_pre_hook(stop)
        inner.register_step_post_hook(stop)


def bytes_of_log(gc: Mapping[str, Any], parameters: int) -> int:
    """What adding up the sums that are logged sends; there is no norm where the update is what is centralized."""
    sums = 4 if gc.get("target") == "update" else 5
    return 4 * sums * (parameters if gc.get("log_means") == "per_parameter" else 1)


def new_step(trainer: Trainer) -> Step:
    return Step(logged=(trainer.global_step + 1) % trainer.log_every_n_steps == 0)


@contextmanager
def counting(step: Step) -> Iterator[None]:
    """Add what is sent inside to `step`."""
    with Traffic() as traffic, CommDebugMode() as counter, torch.no_grad():
        yield
    step.collectives += counter.get_total_counts()
    step.sent += traffic.sent
