"""What every store can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lightning_gc.measuring.measurement import Measurement
from lightning_gc.selection import Entry

Role = Literal["gradient", "weight"]
"""Which tensor of a parameter: its gradient, or itself."""

Means = Sequence[Tensor | None]
"""The mean of each weight vector, parameter by parameter; None where there is nothing to take it of."""


class Store(ABC):
    """Some selected parameters, however their elements are held."""

    entries: tuple[Entry, ...]

    @abstractmethod
    def means(self, role: Role) -> Means:
        """The mean of each weight vector; None for a gradient that is absent and for a frozen weight."""

    @abstractmethod
    def recentre_(self, role: Role, to: Means | None = None) -> bool:
        """Move the mean of each weight vector to `to`, or to zero; whether there was anything to move."""

    @abstractmethod
    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement | None:
        """:meth:`recentre_`, and what it removed from each entry; None if there was nothing to move.

        The norms, one more read of every element, are those of the gradients; weights come without.
        Where ranks hold different elements, this is what one rank is to account for: what all ranks
        measured, added up, is that of one process (:meth:`sum_over_ranks_`), and it is never None.
        """

    def holds_any(self, role: Role) -> bool:
        """Whether this rank has anything to move: a gradient, or a weight that is trained."""
        parameters = [entry.parameter for entry in self.entries]
        return any(p.grad is not None if role == "gradient" else p.requires_grad for p in parameters)

    def on_any_rank(self, truth: bool) -> bool:
        """Whether it is true on any rank, where that differs; then all ranks must call this alike."""
        return truth

    def moved_by(self, optimizer: Optimizer) -> Sequence[Store]:
        """The parts of it that the step of a torch optimizer moves: all, unless the step is one of several."""
        return [self]

    def gathered(self, part: Store, measurement: Measurement) -> Measurement | None:
        """What was measured in the whole step, once the last of its parts (:meth:`moved_by`) was measured."""
        return measurement

    def sum_over_ranks_(self, sums: Sequence[Tensor]) -> None:  # noqa: B027
        """Add up, in place, sums of the measurements of all ranks, where each measured only a part.

        Nothing to do where every rank measures everything. Else all ranks must call this alike.
        """


def on_any_rank(truth: bool, device: torch.device) -> bool:
    """Whether it is true on any rank, with one all-reduce of one number."""
    count = torch.full((1,), float(truth), device=device)
    dist.all_reduce(count)
    return bool(count.item())


def add_up_(sums: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, with one all-reduce."""
    packed = torch.cat([tensor.flatten() for tensor in sums])
    dist.all_reduce(packed)
    for tensor, summed in zip(sums, torch.split(packed, [tensor.numel() for tensor in sums]), strict=True):
        tensor.copy_(summed.view_as(tensor))
