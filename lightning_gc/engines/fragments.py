"""Fragments of flattened parameters, as FSDP and DeepSpeed ZeRO hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gc.engines.boxes import cut, in_memory_order
from lightning_gc.engines.sharded import Piece
from lightning_gc.engines.store import Role
from lightning_gc.equation.dims import means_shape
from lightning_gc.equation.projection import vector_means
from lightning_gc.selection import Entry


@dataclass(frozen=True)
class Fragment:
    """What each rank holds of one flattened parameter.

    Attributes:
        entry: The selected parameter.
        spans: For each rank of `group`, the first element it holds, and the one after the last. The
            same on all ranks, in ascending order.
        rank: This process's rank in `group`.
        group: The process group that the parameter is cut among; None if it is not.
        device: Where sums are exchanged.
        tensor: This rank's part of the gradient or weight, one-dimensional; None where there is none.
        strides: Those that the parameter had when its memory was flattened; None if it was contiguous.
        home: Where the elements are, if not there where sums are exchanged.
    """

    entry: Entry
    spans: Sequence[tuple[int, int]]
    rank: int
    group: Any
    device: torch.device
    tensor: Callable[[Role], Tensor | None]
    strides: Sequence[int] | None = None
    home: torch.device | None = None


class FragmentPiece(Piece):
    """A fragment: some boxes of elements. Only weight vectors that a cut runs through are shared."""

    def __init__(self, fragment: Fragment) -> None:
        super().__init__(fragment.entry, fragment.device)
        entry, layout = fragment.entry, fragment.entry.layout
        assert layout is not None
        self._tensor = fragment.tensor
        self._shape, self._dims = in_memory_order(entry.shape, layout.dims, layout.groups, fragment.strides)
        self._means_shape = means_shape(self._shape, self._dims)
        start, stop = fragment.spans[fragment.rank]
        self._numel = stop - start
        self._boxes = cut(self._shape, start, stop)
        self.has_all = self._numel == entry.shape.numel()
        ranks = [dist.get_rank()] if fragment.group is None else dist.get_process_group_ranks(fragment.group)
        self.counts_norm = 0 in ranks  # of several groups that hold copies, the one with rank 0 is measured
        self._shared, self._owned = self._find_shared(fragment)
        self.count = self._shared.numel()
        self.groups = (fragment.group,) if self.count else ()

    def tensor(self, role: Role) -> Tensor | None:
        """See :meth:`Piece.tensor`."""
        return self._tensor(role) if self._numel else None

    def share(self, tensor: Tensor) -> Tensor:
        """See :meth:`Piece.share`."""
        if self.has_all:
            return vector_means(tensor.view(self._shape), self._dims)
        sums = torch.zeros(self._means_shape, dtype=self.dtype, device=tensor.device)
        for box in self._boxes:
            part = tensor.narrow(0, box.offset, box.numel).view(box.lengths)
            sums[box.among_means(self._dims)] += part.sum(self._dims, keepdim=True, dtype=self.dtype)
        return sums.div_(self.entry.fan_in)

    def shared(self, share: Tensor) -> Tensor:
        """See :meth:`Piece.shared`."""
        return share.view(-1)[self._shared]

    def set_shared_(self, share: Tensor, summed: Tensor) -> None:
        """See :meth:`Piece.set_shared_`."""
        share.view(-1).index_copy_(0, self._shared, summed)

    def subtract_(self, tensor: Tensor, means: Tensor) -> None:
        """See :meth:`Piece.subtract_`."""
        for box in self._boxes:
            tensor.narrow(0, box.offset, box.numel).view(box.lengths).sub_(means[box.among_means(self._dims)])

    def measured(self, means: Tensor) -> Tensor:
        """See :meth:`Piece.measured`."""
        return means.reshape(-1)[self._owned]

    def _find_shared(self, fragment: Fragment) -> tuple[Tensor, Tensor]:
        """Which weight vectors several ranks hold a part of; which this rank holds the first part of."""
        holders = torch.zeros(self._means_shape, dtype=torch.int32)
        owned = torch.zeros(self._means_shape, dtype=torch.bool)
        for rank, (start, stop) in enumerate(fragment.spans):
            held = torch.zeros(self._means_shape, dtype=torch.bool)
            for box in cut(self._shape, start, stop):
                held[box.among_means(self._dims)] = True
            if rank == fragment.rank and self.counts_norm:
                owned = held & (holders == 0)
            holders += held
        shared, mine = ((holders > 1).flatten().nonzero().flatten(), owned.flatten().nonzero().flatten())
        home = fragment.home or fragment.device
        return shared.to(home), mine.to(home)


def spans_of_chunks(start: int, numel: int, chunk: int, ranks: int) -> list[tuple[int, int]]:
    """The spans of a parameter of `numel` elements at `start` of an array that ranks hold in chunks.

    Example:
        >>> spans_of_chunks(start=3, numel=10, chunk=8, ranks=3)  # elements 3 to 13 of 0-8, 8-16, 16-24
        [(0, 5), (5, 10), (10, 10)]
    """
    edges = [min(max(rank * chunk - start, 0), numel) for rank in range(ranks + 1)]
    return list(pairwise(edges))
