"""16-bit tensors that a CPU goes through block by block, each in float32 from its first read to its last.

A CPU's own kernels would make a float32 copy of the whole tensor to sum it in float32: 350 MB beside a gradient of 90.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_gc.equation.traits import accumulation_dtype, is_dtensor

# Large enough to hide the cost of the calls, small enough for the cache.
BLOCK_BYTES = 1 << 20


def blocks(view: Tensor, dims: tuple[int, ...], to: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Blocks of whole weight vectors, each with its part of `to`; the whole tensor where there is no need to cut it.

    Args:
        view: A 16-bit tensor.
        dims: The fan-in dims.
        to: A mean for each weight vector, with `dims` kept as size 1; or None.
    """
    dim, size = _cut(view, dims)
    if size >= view.shape[dim]:  # nothing to cut: of adapters there are hundreds
        yield view, to
        return
    parts = torch.split(view, size, dim)
    yield from zip(parts, [None] * len(parts) if to is None else torch.split(to, size, dim), strict=True)


def joined(parts: Sequence[Tensor], view: Tensor, dims: tuple[int, ...]) -> Tensor:
    """What was found of each of the :func:`blocks`, as of the whole."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), _cut(view, dims)[0])


def widens_as_it_reads(tensor: Tensor) -> bool:
    """Whether the device's own kernels sum and subtract in float32 what they read in 16 bits, and round once."""
    return tensor.is_cuda


def widened(block: Tensor) -> Tensor:
    """The block in the dtype that means are accumulated in."""
    return block.to(accumulation_dtype(block.dtype))


def _cut(view: Tensor, dims: tuple[int, ...]) -> tuple[int, int]:
    """The largest dim that is no fan-in dim, and how many of its slices make a block."""
    kept = [dim for dim in range(view.dim()) if dim not in dims]
    bytes_in_all = accumulation_dtype(view.dtype).itemsize * view.numel()
    if not kept or bytes_in_all <= BLOCK_BYTES or not view.is_cpu or is_dtensor(view):
        return 0, max(1, view.shape[0])
    dim = max(kept, key=lambda d: view.shape[d])
    return dim, max(1, BLOCK_BYTES // (bytes_in_all // view.shape[dim]))
