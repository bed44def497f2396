"""Parameters whose weight vectors are in several tensors that an optimizer steps on one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gc.engines.mixed import MixedStore
from lightning_gc.engines.sharded import Piece, ShardedStore
from lightning_gc.engines.store import Store
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.selection import Entry


class PartitionedStore(MixedStore):
    """A store for each partition. In a step of the optimizer, those are moved that it holds at the moment.

    Args:
        entries: The parameters, in their own order.
        parts: The store of what is in each partition.
        device: Where sums are exchanged.
    """

    def __init__(self, entries: Sequence[Entry], parts: Mapping[Tensor, ShardedStore], device: torch.device) -> None:
        super().__init__(entries, list(parts.values()), device)
        self._of_partition = dict(parts)
        self._measured: dict[Store, Measurement] = {}

    def moved_by(self, optimizer: Optimizer) -> Sequence[Store]:
        """See :meth:`Store.moved_by`."""
        held = [partition for group in optimizer.param_groups for partition in group["params"]]
        return [self._of_partition[partition] for partition in held if partition in self._of_partition]

    def gathered(self, part: Store, measurement: Measurement) -> Measurement | None:
        """See :meth:`Store.gathered`: once there is one of each part."""
        self._measured[part] = measurement
        if len(self._measured) < len(self._parts):
            return None
        return self._joined([self._measured.pop(part) for part, _ in self._parts])

    def pieces(self) -> Iterator[Piece]:
        """All pieces of all parts."""
        for part in self._of_partition.values():
            yield from part.pieces
