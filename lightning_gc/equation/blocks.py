"""Tensors that a CPU goes through block by block, each block in the cache from its first read to its last.

16-bit tensors always, since CPU kernels would make a float32 copy of the whole tensor. Others only if they are larger
than the caches and torch has one thread: with several, each small operation waits for all of them, which costs
more than it gains, and very much more where other processes have the cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gc.equation.traits import accumulation_dtype, is_dtensor, is_narrow

# Large enough to hide the cost of the calls. Of a narrow tensor there are two copies of a block at a time.
NARROW_BLOCK_BYTES = 1 << 20
WIDE_BLOCK_BYTES = 1 << 21

# What may be in a shared cache as a whole gains nothing from blocks, and loses a fifth of its time to the calls. One of
# many is not there any more when its turn comes again.
LARGE_BYTES = 1 << 25
LARGE_AMONG_MANY_BYTES = 6 << 20


def goes_in_blocks(tensor: Tensor, dims: tuple[int, ...]) -> bool:
    """Whether it is worth while to go through the tensor in blocks of whole weight vectors."""
    if tensor.device.type != "cpu" or is_dtensor(tensor):
        return False
    if is_narrow(tensor):
        return True
    return tensor.nbytes > LARGE_BYTES and torch.get_num_threads() == 1 and _lie_apart(tensor, dims)


def rows_per_block(tensor: Tensor, total_bytes: int) -> int:
    """How many rows, cut along dim 0, make a block; 0 if the tensor is better taken as a whole.

    Args:
        tensor: On a CPU, and not narrow.
        total_bytes: The size of all tensors that are gone through in turn, this one included.
    """
    large = LARGE_AMONG_MANY_BYTES if total_bytes > 2 * LARGE_BYTES else LARGE_BYTES
    if tensor.device.type != "cpu" or tensor.nbytes <= large:
        return 0
    return max(1, WIDE_BLOCK_BYTES * tensor.shape[0] // tensor.nbytes)


def centralize_rows_(tensor: Tensor, dims: tuple[int, ...], reciprocal: float, rows: int) -> Tensor:
    """Subtract from each row its mean, by so many rows at a time; return the sums. `reciprocal` is that of the fan-in."""
    return torch.cat([_centralize_(block, dims, reciprocal) for block in torch.split(tensor, rows)])


def centralize_rows_measured_(
    tensor: Tensor,
    dims: tuple[int, ...],
    reciprocal: float,
    rows: int,
    before: Tensor | None = None,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same; return the sums before and after, which may be left in these, and the norm after."""
    sums_before, sums_after, norms = [], [], []
    for block in torch.split(tensor, rows):
        sums_before.append(_centralize_(block, dims, reciprocal))
        sums_after.append(block.sum(dims, True))
        norms.append(torch.linalg.vector_norm(block))
    norm = torch.linalg.vector_norm(torch.stack(norms))
    return torch.cat(sums_before, out=before), torch.cat(sums_after, out=after), norm


def _centralize_(block: Tensor, dims: tuple[int, ...], reciprocal: float) -> Tensor:
    sums = block.sum(dims, True)
    block.sub_(sums, alpha=reciprocal)
    return sums


def _lie_apart(tensor: Tensor, dims: tuple[int, ...]) -> bool:
    """Whether weight vectors are not interleaved, as they are in transposed layers.

    There a block would be thousands of short stretches of memory.
    """
    strides = {d: stride for d, stride in enumerate(tensor.stride()) if tensor.shape[d] > 1}
    within = max((strides[d] for d in dims if d in strides), default=0)
    return all(stride > within for d, stride in strides.items() if d not in dims)


def recentre_in_blocks_(view: Tensor, dims: tuple[int, ...], to: Tensor | None) -> Tensor:
    """Move the mean of each weight vector to `to`, in place; return what was removed."""
    dim, blocks = _blocks(view, dims)
    goals = _goals(to, blocks, dim, dims)
    return _joined(
        [_recentre_(block, _widened(block), dims, goal) for block, goal in zip(blocks, goals, strict=True)], dim
    )


def recentre_measured_in_blocks_(
    view: Tensor, dims: tuple[int, ...], to: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same; return also the means after and the squared norm before."""
    dim, blocks = _blocks(view, dims)
    before, after, norms = [], [], []
    for block, goal in zip(blocks, _goals(to, blocks, dim, dims), strict=True):
        wide = _widened(block)
        norms.append(torch.linalg.vector_norm(wide))
        before.append(_recentre_(block, wide, dims, goal))
        after.append(_widened(block).mean(dims, keepdim=True))
    return _joined(before, dim), _joined(after, dim), _squared(norms)


def means_in_blocks(view: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The mean of each weight vector, with `dims` kept as size 1."""
    dim, blocks = _blocks(view, dims)
    return _joined([_widened(block).mean(dims, keepdim=True) for block in blocks], dim)


def squared_norm_in_blocks(tensor: Tensor) -> Tensor:
    """The sum of the squared absolute values."""
    _, blocks = _blocks(tensor, ())
    return _squared([torch.linalg.vector_norm(_widened(block)) for block in blocks])


def _recentre_(block: Tensor, wide: Tensor, dims: tuple[int, ...], goal: Tensor | None) -> Tensor:
    """Move the means of one block, by way of its widened copy if that is another; return what was removed."""
    removed = wide.mean(dims, keepdim=True)
    if goal is not None:
        removed -= goal
    wide.sub_(removed)
    if wide is not block:
        block.copy_(wide)
    return removed


def _goals(to: Tensor | None, blocks: Sequence[Tensor], dim: int, dims: tuple[int, ...]) -> Sequence[Tensor | None]:
    """The part of `to` that is of each block."""
    if to is None or dim in dims:
        return [to] * len(blocks)
    return torch.split(to, [block.shape[dim] for block in blocks], dim)


def _blocks(view: Tensor, dims: tuple[int, ...]) -> tuple[int, Sequence[Tensor]]:
    """Cut `view` along its largest dim that is no fan-in dim."""
    kept = [dim for dim in range(view.dim()) if dim not in dims]
    if not kept:  # a single weight vector: there is nothing to cut
        return 0, (view,)
    dim = max(kept, key=lambda d: view.shape[d])
    size = NARROW_BLOCK_BYTES if is_narrow(view) else WIDE_BLOCK_BYTES
    bytes_in_all = accumulation_dtype(view.dtype).itemsize * view.numel()
    if bytes_in_all <= size:
        return dim, (view,)
    return dim, torch.split(view, max(1, size // (bytes_in_all // view.shape[dim])), dim)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """What was found of each block, as of the whole; of one block it is there already."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _squared(norms: Sequence[Tensor]) -> Tensor:
    """The squared norm of the whole, from the norms of its blocks."""
    return norms[0].square() if len(norms) == 1 else torch.stack(list(norms)).square().sum()


def _widened(block: Tensor) -> Tensor:
    """The block itself, or a copy of it in the dtype that means are accumulated in."""
    return block.to(accumulation_dtype(block.dtype))
