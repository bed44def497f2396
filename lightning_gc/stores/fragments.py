"""Weight vectors in fragments of flattened parameters, as FSDP and DeepSpeed ZeRO hold them.

Each rank adds up what it holds of a weight vector. Only the weight vectors that a cut between two ranks runs
through need the other ranks: their sums, and nothing else, go through one all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gc.functional import accumulation_dtype, squared_norm, vector_means
from lightning_gc.selection import Entry
from lightning_gc.stores.base import Means, Measurement, Role, Store, add_up_, join
from lightning_gc.stores.boxes import cut, in_memory_order


@dataclass(frozen=True)
class Fragment:
    """What each rank holds of one flattened parameter.

    Attributes:
        entry: The selected parameter.
        spans: For each rank of `group`, the first element it holds, and the one after the last. The
            same on all ranks, in ascending order.
        rank: This process's rank in `group`.
        group: The process group that the parameter is cut among; None if it is not.
        device: Where the fragment is.
        tensor: This rank's part of the gradient or weight, one-dimensional; None where there is none.
        strides: Those that the parameter had when its memory was flattened; None if it was contiguous.
    """

    entry: Entry
    spans: Sequence[tuple[int, int]]
    rank: int
    group: Any
    device: torch.device
    tensor: Callable[[Role], Tensor | None]
    strides: Sequence[int] | None = None


class FragmentStore(Store):
    """Each parameter is flattened and cut among the ranks of a process group.

    All ranks must call each method alike, also those that hold nothing.
    """

    def __init__(self, fragments: Sequence[Fragment]) -> None:
        self.entries = tuple(fragment.entry for fragment in fragments)
        self._pieces = [_Piece(fragment) for fragment in fragments]
        # One all-reduce for each process group (and dtype), however many parameters it holds.
        self._exchanges: dict[Any, list[int]] = {}
        for index, piece in enumerate(self._pieces):
            if piece.split is not None and piece.split.numel():
                self._exchanges.setdefault((piece.group, piece.dtype), []).append(index)

    @torch.no_grad()
    def means(self, role: Role) -> Means:
        """This rank's share of the means: sums of the weight vectors that are split, means of the others."""
        return [piece.share(piece.tensor(role)) for piece in self._pieces]

    @torch.no_grad()
    def recentre_(self, role: Role, to: Means | None = None) -> bool:
        """See :meth:`Store.recentre_`."""
        tensors = [piece.tensor(role) for piece in self._pieces]
        self._recentre_(tensors, to)
        return self._any(tensors)

    @torch.no_grad()
    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement:
        """See :meth:`Store.recentre_measured_`: never None, since other ranks may have measured something."""
        tensors = [piece.tensor(role) for piece in self._pieces]
        norms = [piece.squared_norm(tensor) for piece, tensor in zip(self._pieces, tensors, strict=True)]
        before = self._recentre_(tensors, to)
        after = self._deviations(tensors, to)
        parts = []
        for index, piece in enumerate(self._pieces):
            of_before, of_after = before[index], after[index]
            if of_before is None or of_after is None or not piece.accounts:
                continue
            parts.append(
                Measurement(
                    piece.owned(of_before).abs().float(),
                    piece.owned(of_after).abs().float(),
                    torch.full((piece.count,), piece.entry.fan_in, device=of_before.device),
                    None,
                    torch.full((piece.count,), index, device=of_before.device),
                )
            )
        joined = join(parts, self._pieces[0].device)
        return joined._replace(squared_norm=torch.stack(norms) if role == "gradient" else None)

    def sum_over_ranks_(self, sums: Sequence[Tensor]) -> None:
        """See :meth:`Store.sum_over_ranks_`."""
        add_up_(sums)

    def _recentre_(self, tensors: Sequence[Tensor | None], to: Means | None) -> list[Tensor | None]:
        """Subtract, and return, how far each mean is from `to`, all-reducing the sums of split weight vectors."""
        deviations = self._deviations(tensors, to)
        for piece, tensor, deviation in zip(self._pieces, tensors, deviations, strict=True):
            if tensor is not None and deviation is not None:
                piece.subtract_(tensor, deviation)
        return deviations

    def _deviations(self, tensors: Sequence[Tensor | None], to: Means | None) -> list[Tensor | None]:
        shares = [piece.share(tensor) for piece, tensor in zip(self._pieces, tensors, strict=True)]
        if to is not None:
            shares = [None if s is None or t is None else s - t for s, t in zip(shares, to, strict=True)]
        for (group, dtype), indices in self._exchanges.items():
            self._exchange_(shares, indices, group, dtype)
        return [
            share if share is None or piece.is_whole else share / piece.entry.fan_in
            for piece, share in zip(self._pieces, shares, strict=True)
        ]

    def _exchange_(self, shares: list[Tensor | None], indices: Sequence[int], group: Any, dtype: torch.dtype) -> None:
        """Add up the sums of split weight vectors; ranks without such a sum take part with zeros."""
        pieces = [self._pieces[index] for index in indices]
        buffer = torch.cat([piece.split_sums(shares[i]) for i, piece in zip(indices, pieces, strict=True)])
        dist.all_reduce(buffer, group=group)
        summed = torch.split(buffer, [piece.split_count for piece in pieces])
        for index, piece, sums in zip(indices, pieces, summed, strict=True):
            share = shares[index]
            if share is not None and piece.split is not None:
                share.view(-1).index_copy_(0, piece.split, sums)

    def _any(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether there is anything to move; where other ranks hold a part, this rank cannot tell."""
        return any(t is not None for t in tensors) or not all(piece.is_whole for piece in self._pieces)


class _Piece:
    """What is known before training about this rank's part of one parameter."""

    def __init__(self, fragment: Fragment) -> None:
        entry, layout = fragment.entry, fragment.entry.layout
        assert layout is not None
        self.entry, self.group, self.device = entry, fragment.group, fragment.device
        self.dtype = accumulation_dtype(entry.parameter.dtype)
        self._tensor = fragment.tensor
        self._shape, self._dims = in_memory_order(entry.shape, layout.dims, layout.groups, fragment.strides)
        self._means_shape = tuple(1 if d in self._dims else n for d, n in enumerate(self._shape))
        start, stop = fragment.spans[fragment.rank]
        self._numel = stop - start
        self._boxes = cut(self._shape, start, stop)
        self.is_whole = self._numel == entry.shape.numel()
        # Of several groups of ranks that hold copies, the one with rank 0 is measured.
        self.accounts = 0 in (dist.get_process_group_ranks(fragment.group) if fragment.group else [dist.get_rank()])
        self.split: Tensor | None = None
        self._owned: Tensor | None = None
        if not self.is_whole:
            self._find_split(fragment)
        self.count = entry.weight_vectors if self._owned is None else self._owned.numel()
        self.split_count = 0 if self.split is None else self.split.numel()

    def tensor(self, role: Role) -> Tensor | None:
        """This rank's part of the gradient or weight; None if there is none."""
        return self._tensor(role) if self._numel else None

    def share(self, tensor: Tensor | None) -> Tensor | None:
        """The means of a whole parameter; of a part of one, the sums of its weight vectors."""
        if tensor is None:
            return None
        if self.is_whole:
            return vector_means(tensor.view(self._shape), self._dims)
        sums = torch.zeros(self._means_shape, dtype=self.dtype, device=tensor.device)
        for box in self._boxes:
            part = tensor.narrow(0, box.offset, box.numel).view(box.lengths)
            sums[box.among_means(self._dims)] += part.sum(self._dims, keepdim=True, dtype=self.dtype)
        return sums

    def subtract_(self, tensor: Tensor, means: Tensor) -> None:
        """Subtract a mean from each weight vector, in place: 16-bit values are rounded once."""
        for box in self._boxes:
            part = tensor.narrow(0, box.offset, box.numel).view(box.lengths)
            part.sub_(means[box.among_means(self._dims)])

    def split_sums(self, sums: Tensor | None) -> Tensor:
        """The sums that other ranks have a part in."""
        if sums is None or self.split is None:
            return torch.zeros(self.split_count, dtype=self.dtype, device=self.device)
        return sums.view(-1)[self.split]

    def owned(self, means: Tensor) -> Tensor:
        """The means of the weight vectors that this rank accounts for."""
        return means.reshape(-1) if self._owned is None else means.reshape(-1)[self._owned]

    def squared_norm(self, tensor: Tensor | None) -> Tensor:
        """That of this rank's part; zero if another group of ranks accounts for it."""
        if tensor is None or not self.accounts:
            return torch.zeros((), device=self.device)
        return squared_norm(tensor).float()

    def _find_split(self, fragment: Fragment) -> None:
        """Which weight vectors several ranks hold a part of, and which this rank accounts for."""
        holders = torch.zeros(self._means_shape, dtype=torch.int32)
        mine = torch.zeros(self._means_shape, dtype=torch.bool)
        taken = torch.zeros(self._means_shape, dtype=torch.bool)
        for rank, (start, stop) in enumerate(fragment.spans):
            held = torch.zeros(self._means_shape, dtype=torch.bool)
            for box in cut(self._shape, start, stop):
                held[box.among_means(self._dims)] = True
            holders += held
            if rank == fragment.rank:
                mine = held & ~taken
            taken |= held
        self.split = (holders > 1).flatten().nonzero().flatten().to(fragment.device)
        self._owned = mine.flatten().nonzero().flatten().to(fragment.device)


def spans_of_chunks(start: int, numel: int, chunk: int, ranks: int) -> list[tuple[int, int]]:
    """The spans of a parameter of `numel` elements at `start` of an array that ranks hold in chunks.

    Example:
        >>> spans_of_chunks(start=3, numel=10, chunk=8, ranks=3)  # elements 3 to 13 of 0-8, 8-16, 16-24
        [(0, 5), (5, 10), (10, 10)]
    """
    edges = [min(max(rank * chunk - start, 0), numel) for rank in range(ranks + 1)]
    return list(pairwise(edges))
