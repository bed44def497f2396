"""However a strategy holds weight vectors: read their means, move them.

This is the library's one seam towards the engines that shard parameters and gradients. The callback
deals with a :class:`Store` and doesn't know which it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gc import kernels
from lightning_gc.selection import Entry
from lightning_gc.stores.base import Means, Measurement, Role, Store
from lightning_gc.stores.tensors import TensorStore


def tensor_store(entries: Sequence[Entry]) -> Store:
    """The store for tensors of their own: the plain one, or the kernel's where the user asked for it."""
    if not kernels.wanted():
        return TensorStore(entries)
    from lightning_gc.kernels.store import FusedTensorStore

    return FusedTensorStore(entries)


__all__ = ["Means", "Measurement", "Role", "Store", "TensorStore", "tensor_store"]
