"""What every store can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gc.selection import Entry

Role = Literal["gradient", "weight"]
"""Which tensor of a parameter: its gradient, or itself."""

Means = Sequence[Tensor | None]
"""The mean of each weight vector, parameter by parameter; None where there is nothing to take it of."""


class Measurement(NamedTuple):
    """What was removed from V weight vectors of P parameters: the arguments of `GradientMeans.update`."""

    before: Tensor
    after: Tensor
    fan_in: Tensor
    squared_norm: Tensor | None
    parameter: Tensor


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
        """:meth:`recentre_`, and what it removed; None if there was nothing to move.

        The norms, one more read of every element, are those of the gradients; weights come without.
        Where ranks hold different elements, this is what one rank is to account for: what all ranks
        measured, added up, is that of one process (:meth:`sum_over_ranks_`), and it is never None.
        """

    def sum_over_ranks_(self, sums: Sequence[Tensor]) -> None:  # noqa: B027
        """Add up, in place, sums of the measurements of all ranks, where each measured only a part.

        Nothing to do where every rank measures everything. Else all ranks must call this alike.
        """


def concatenate(
    entries: Sequence[Entry],
    present: Sequence[int],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    squared_norms: Sequence[Tensor] | None,
) -> Measurement:
    """Make one measurement of those of the `present` parameters, without reading anything on the host."""
    device = before[0].device
    lengths = [means.numel() for means in before]

    def spread(numbers: Sequence[int]) -> Tensor:
        return torch.cat([torch.full((n,), x, device=device) for x, n in zip(numbers, lengths, strict=True)])

    norm = None
    if squared_norms is not None:
        of_each = dict(zip(present, (n.to(device, torch.float32) for n in squared_norms), strict=True))
        zero = torch.zeros((), device=device)
        norm = torch.stack([of_each.get(i, zero) for i in range(len(entries))])
    return Measurement(
        torch.cat([means.abs().flatten().to(device) for means in before]),
        torch.cat([means.abs().flatten().to(device) for means in after]),
        spread([entries[i].fan_in for i in present]),
        norm,
        spread(present),
    )


def join(parts: Sequence[Measurement], device: torch.device) -> Measurement:
    """One measurement of the weight vectors of several, which may be none, without norms."""
    none, no_numbers = torch.zeros(0, device=device), torch.zeros(0, device=device, dtype=torch.int64)
    return Measurement(
        before=torch.cat([none, *(part.before.to(device) for part in parts)]),
        after=torch.cat([none, *(part.after.to(device) for part in parts)]),
        fan_in=torch.cat([no_numbers, *(part.fan_in.to(device) for part in parts)]),
        squared_norm=None,
        parameter=torch.cat([no_numbers, *(part.parameter.to(device) for part in parts)]),
    )


def add_up_(sums: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, with one all-reduce."""
    packed = torch.cat([tensor.flatten() for tensor in sums])
    dist.all_reduce(packed)
    for tensor, summed in zip(sums, torch.split(packed, [tensor.numel() for tensor in sums]), strict=True):
        tensor.copy_(summed.view_as(tensor))
