"""Parameters that are held in different ways, as one store."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gc.engines.sharded import Piece, ShardedStore
from lightning_gc.engines.store import Means, Role, Store, add_up_, on_any_rank
from lightning_gc.engines.tensors import TensorStore
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.selection import Entry


class MixedStore(Store):
    """Several stores as one, with the entries in their own order. At least one of them is sharded."""

    def __init__(self, entries: Sequence[Entry], parts: Sequence[Store], device: torch.device) -> None:
        self.entries = tuple(entries)
        self._device = device
        position = {id(entry): index for index, entry in enumerate(self.entries)}
        self._parts = [(part, [position[id(entry)] for entry in part.entries]) for part in parts]
        self._indices = [torch.tensor(indices, device=device) for _, indices in self._parts]

    def means(self, role: Role) -> Means:
        """See :meth:`Store.means`."""
        found: list[Tensor | None] = [None] * len(self.entries)
        for part, indices in self._parts:
            for index, means in zip(indices, part.means(role), strict=True):
                found[index] = means
        return found

    def recentre_(self, role: Role, to: Means | None = None) -> bool:
        """See :meth:`Store.recentre_`."""
        # All of them, whatever the first finds: the other ranks may wait.
        moved = [part.recentre_(role, self._of(to, indices)) for part, indices in self._parts]
        return any(moved)

    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement:
        """See :meth:`Store.recentre_measured_`: never None, since other ranks may have measured something."""
        return self._joined([part.recentre_measured_(role, self._of(to, indices)) for part, indices in self._parts])

    def holds_any(self, role: Role) -> bool:
        """See :meth:`Store.holds_any`."""
        return any(part.holds_any(role) for part, _ in self._parts)

    def on_any_rank(self, truth: bool) -> bool:
        """See :meth:`Store.on_any_rank`."""
        return on_any_rank(truth, self._device)

    def sum_over_ranks_(self, sums: Sequence[Tensor]) -> None:
        """See :meth:`Store.sum_over_ranks_`."""
        add_up_(sums)

    def _joined(self, found: Sequence[Measurement | None]) -> Measurement:
        """What the parts measured, as one."""
        # Tensors that every rank holds whole are measured on each of them; one accounts for them.
        counted = [
            (measurement.to(self._device), places)
            for (part, _), places, measurement in zip(self._parts, self._indices, found, strict=True)
            if measurement is not None and not (isinstance(part, TensorStore) and dist.get_rank() != 0)
        ]
        count = len(self.entries)
        return Measurement.added([one.placed(places, count) for one, places in counted])

    @staticmethod
    def _of(means: Means | None, indices: Sequence[int]) -> Means | None:
        return None if means is None else [means[index] for index in indices]


def store_of(entries: Sequence[Entry], pieces: Sequence[Piece], device: torch.device) -> Store:
    """The store of entries of which this rank holds some in pieces, and the others whole."""
    if not pieces:
        return TensorStore(entries)
    in_pieces = {id(piece.entry) for piece in pieces}
    whole = [entry for entry in entries if id(entry) not in in_pieces]
    parts: list[Store] = [ShardedStore(pieces)]
    return MixedStore(entries, [*parts, TensorStore(whole)] if whole else parts, device)
