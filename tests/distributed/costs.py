"""Count what the callback sends: collectives, and the bytes that each rank puts in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_gc import GradientCentralization


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
    """What one call of the callback sent, as two counters saw it."""

    logged: bool
    collectives: int = 0
    sent: list[tuple[str, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.sent)


class Counted(GradientCentralization):
    """The callback, its traffic counted; ``target="gradient"`` alone, the others work in optimizer hooks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[Step] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        every = trainer.log_every_n_steps
        step = Step(logged=(trainer.global_step + 1) % every == 0)
        with Traffic() as traffic, CommDebugMode() as counter, torch.no_grad():
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
        step.collectives, step.sent = counter.get_total_counts(), traffic.sent
        self.steps.append(step)
