"""Weight vectors whose elements several ranks hold.

Each rank adds up what it holds of a weight vector. Only the weight vectors that others hold a part of need the
others: their sums, and nothing else, go through one all-reduce for all parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gc.engines.store import Means, Role, Store, add_up_, on_any_rank
from lightning_gc.equation.projection import norm_of
from lightning_gc.equation.traits import accumulation_dtype
from lightning_gc.measuring.measurement import Measurement, Part
from lightning_gc.selection import Entry


class Piece(ABC):
    """This rank's part of one parameter.

    Attributes:
        entry: The selected parameter.
        device: Where sums are exchanged.
        dtype: What sums are accumulated in.
        groups: The process groups over which sums are added up, one after the other; none if no weight
            vector is shared with another rank.
        count: How many sums are added up.
        has_all: Whether no other rank holds elements that this one does not.
        counts_norm: Whether this rank's elements count for the norm: not if they are copies.
    """

    entry: Entry
    device: torch.device
    dtype: torch.dtype
    groups: tuple[Any, ...] = ()
    count: int = 0
    has_all: bool = False
    counts_norm: bool = True

    def __init__(self, entry: Entry, device: torch.device) -> None:
        self.entry, self.device = entry, device
        self.dtype = accumulation_dtype(entry.parameter.dtype)

    @abstractmethod
    def tensor(self, role: Role) -> Tensor | None:
        """This rank's elements of the gradient or weight, as the engine holds them; None if there are none."""

    @abstractmethod
    def share(self, tensor: Tensor) -> Tensor:
        """This rank's share of the means: the sums of its elements of each weight vector, over the fan-in."""

    @abstractmethod
    def shared(self, share: Tensor) -> Tensor:
        """Out of shares, those that are added up, one-dimensional."""

    @abstractmethod
    def set_shared_(self, share: Tensor, summed: Tensor) -> None:
        """Put what was added up back."""

    @abstractmethod
    def subtract_(self, tensor: Tensor, means: Tensor) -> None:
        """Subtract a mean from each weight vector, in place: 16-bit values are rounded once."""

    @abstractmethod
    def measured(self, means: Tensor) -> Tensor:
        """Out of means, those that this rank accounts for: over all ranks, each weight vector once."""

    def norm(self, tensor: Tensor | None) -> Tensor:
        """The norm of those of this rank's elements that count."""
        if tensor is None or not self.counts_norm:
            return torch.zeros((), device=self.device)
        return norm_of(tensor)


class ShardedStore(Store):
    """Parameters in pieces. All ranks must call each method alike, also those that hold nothing."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.entries = tuple(piece.entry for piece in pieces)
        self.pieces = tuple(pieces)
        # One all-reduce for each process group (and dtype), however many parameters there are.
        self._exchanges: dict[Any, list[int]] = {}
        for index, piece in enumerate(pieces):
            if piece.groups and piece.count:
                self._exchanges.setdefault((piece.groups, piece.dtype), []).append(index)

    @torch.no_grad()
    def means(self, role: Role) -> Means:
        """This rank's share of the means: nothing is sent until they are compared with others."""
        return self._shares(self._tensors(role))

    @torch.no_grad()
    def recentre_(self, role: Role, to: Means | None = None) -> bool:
        """See :meth:`Store.recentre_`; True also if only another rank can tell."""
        tensors = self._tensors(role)
        self._recentre_(tensors, to)
        return any(t is not None for t in tensors) or not all(piece.has_all for piece in self.pieces)

    @torch.no_grad()
    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement:
        """See :meth:`Store.recentre_measured_`; never None, since other ranks may have measured something."""
        tensors = self._tensors(role)
        norms = [piece.norm(tensor) for piece, tensor in zip(self.pieces, tensors, strict=True)]
        before = self._recentre_(tensors, to)
        after = self._deviations(tensors, to)
        return Measurement.of(
            [
                _part(piece, one_before, one_after, norm if role == "gradient" else None)
                for piece, norm, one_before, one_after in zip(self.pieces, norms, before, after, strict=True)
            ],
            self.pieces[0].device,
        )

    def holds_any(self, role: Role) -> bool:
        """See :meth:`Store.holds_any`."""
        return any(tensor is not None for tensor in self._tensors(role))

    def on_any_rank(self, truth: bool) -> bool:
        """See :meth:`Store.on_any_rank`."""
        return on_any_rank(truth, self.pieces[0].device)

    def sum_over_ranks_(self, sums: Sequence[Tensor]) -> None:
        """See :meth:`Store.sum_over_ranks_`."""
        add_up_(sums)

    def _tensors(self, role: Role) -> list[Tensor | None]:
        return [piece.tensor(role) for piece in self.pieces]

    def _shares(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if t is None else piece.share(t) for piece, t in zip(self.pieces, tensors, strict=True)]

    def _recentre_(self, tensors: Sequence[Tensor | None], to: Means | None) -> list[Tensor | None]:
        """Subtract, and return, how far each mean is from `to`."""
        deviations = self._deviations(tensors, to)
        for piece, tensor, deviation in zip(self.pieces, tensors, deviations, strict=True):
            if tensor is not None and deviation is not None:
                piece.subtract_(tensor, deviation)
        return deviations

    def _deviations(self, tensors: Sequence[Tensor | None], to: Means | None) -> list[Tensor | None]:
        shares = self._shares(tensors)
        if to is not None:
            shares = [None if s is None or t is None else s - t for s, t in zip(shares, to, strict=True)]
        for (groups, dtype), indices in self._exchanges.items():
            self._exchange_(shares, indices, groups, dtype)
        return shares

    def _exchange_(
        self, shares: Sequence[Tensor | None], indices: Sequence[int], groups: Sequence[Any], dtype: torch.dtype
    ) -> None:
        """Add up the shares in weight vectors that ranks share; a rank without any takes part with zeros."""
        device = self.pieces[indices[0]].device
        buffer = torch.cat([self._to_send(index, shares[index], dtype).to(device) for index in indices])
        for group in groups:
            dist.all_reduce(torch.view_as_real(buffer) if buffer.is_complex() else buffer, group=group)
        summed = torch.split(buffer, [self.pieces[index].count for index in indices])
        for index, sums in zip(indices, summed, strict=True):
            share = shares[index]
            if share is not None:
                self.pieces[index].set_shared_(share, sums.to(share.device))

    def _to_send(self, index: int, share: Tensor | None, dtype: torch.dtype) -> Tensor:
        piece = self.pieces[index]
        return torch.zeros(piece.count, dtype=dtype, device=piece.device) if share is None else piece.shared(share)


def _part(piece: Piece, before: Tensor | None, after: Tensor | None, norm: Tensor | None) -> Part:
    """What this rank accounts for of one parameter."""
    if before is None or after is None:
        before = after = torch.zeros(0, device=piece.device)
    else:
        before, after = piece.measured(before), piece.measured(after)
    return Part.of(before, after, piece.entry.fan_in, norm=norm)
