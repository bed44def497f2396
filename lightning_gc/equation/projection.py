"""The equation, on one tensor. Needs torch and nothing else.

A tensor holds *weight vectors*: the slices that span its *fan-in dims*. To centralize it is to
subtract from each weight vector its own mean, ``g - mean(g)``: the projection ``P = I - e eᵀ`` of
Yong et al. (2020), arXiv 2004.01461, equation (3), with ``e`` the normalised all-ones vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gc.equation.blocks import blocks, joined, widened, widens_as_it_reads
from lightning_gc.equation.dims import fan_in_of, grouped, resolve_dims
from lightning_gc.equation.sparse import scatter, sum_duplicates, value_dims
from lightning_gc.equation.traits import accumulation_dtype, is_expanded, is_narrow


def centralize(tensor: Tensor, dims: int | Sequence[int] | None = None, *, groups: int = 1) -> Tensor:
    """Subtract from each weight vector its mean, out of place.

    Differentiable (for dense tensors), and the same as ``optax.centralize()`` with the default `dims`. Means of 16-bit
    tensors are accumulated in float32 and the result is rounded once. Inf and NaN are passed on:
    a gradient scaler must see them.

    Args:
        tensor: Floating point or complex, of any shape. Dense, or sparse COO with one sparse
            dimension or more, all of them outside `dims`.
        dims: The fan-in dims: those that one weight vector spans. ``None``: all but the first,
            which leaves a tensor of fewer than two dimensions as it is.
        groups: How many groups dim 0 falls into. A weight vector that spans dim 0 stays within its
            group, as the incoming weights of a grouped transposed convolution do.

    Returns:
        A tensor of the same shape and dtype, in which the mean over `dims` is zero.

    Raises:
        TypeError: `tensor` is neither floating point nor complex, or `dims` are not integers.
        ValueError: `dims` are out of range, repeated, or sparse; `groups` does not divide dim 0.

    Example:
        >>> import torch
        >>> from lightning_gc import centralize
        >>> centralize(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
        tensor([[-0.5000,  0.5000],
                [-1.0000,  1.0000]])
        >>> centralize(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), dims=0)
        tensor([[-1.0000, -1.5000],
                [ 1.0000,  1.5000]])
    """
    _check_dtype(tensor)
    dims = resolve_dims(tensor.shape, dims, groups)
    if not dims:
        return tensor.clone()
    if tensor.layout == torch.sparse_coo:
        values = centralize(tensor._values(), value_dims(tensor, dims))
        # The indices are those of a tensor that is there already: they need no check, nor a warning of none.
        return torch.sparse_coo_tensor(
            tensor._indices(), values, tensor.shape, is_coalesced=tensor.is_coalesced(), check_invariants=False
        )
    view, dims = grouped(tensor, dims, groups)
    if is_narrow(tensor):
        wide = view.to(accumulation_dtype(tensor.dtype))
        return (wide - wide.mean(dims, keepdim=True)).to(tensor.dtype).view_as(tensor)
    return (view - view.mean(dims, keepdim=True)).view_as(tensor)


def centralize_(tensor: Tensor, dims: int | Sequence[int] | None = None, *, groups: int = 1) -> Tensor:
    """Subtract from each weight vector its mean, in place: :func:`centralize` without a copy.

    Takes dense tensors of any strides, sparse COO tensors (coalesced or not: the operation is
    linear, so the values are centralized row by row) and DTensors (sharded rows need no
    communication, sharded fan-in dims one all-reduce of the means).

    Args:
        tensor: As in :func:`centralize`.
        dims: The fan-in dims, as in :func:`centralize`.
        groups: As in :func:`centralize`.

    Returns:
        `tensor` itself.

    Raises:
        TypeError: As :func:`centralize`.
        ValueError: As :func:`centralize`; also for an expanded tensor, whose elements share memory.

    Example:
        >>> import torch
        >>> from lightning_gc import centralize_
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> weight.grad = torch.tensor([[0.0, 2.0], [6.0, 0.0]])
        >>> centralize_(weight.grad)
        tensor([[-1.,  1.],
                [ 3., -3.]])
    """
    _check_dtype(tensor)
    dims = resolve_dims(tensor.shape, dims, groups)
    if is_expanded(tensor):
        raise ValueError(
            f"centralize_ was given an expanded or overlapping tensor (shape {tuple(tensor.shape)}, strides "
            f"{tensor.stride()}): several of its elements share one place in memory, so it cannot be changed "
            "in place. Use centralize()."
        )
    if not dims or not tensor.numel():
        return tensor
    if tensor.requires_grad:
        with torch.no_grad():
            recentre_(tensor, dims, groups)
    else:  # a loop of one's own has a gradient here, where no_grad() would take half as long as the equation
        recentre_(tensor, dims, groups)
    return tensor


def subtract_means_(
    tensor: Tensor, dims: tuple[int, ...], fan_in: int, to: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The equation: the one place where the library changes numbers. Every dense tensor comes by here.

    Args:
        tensor: Dense. Arguments are not checked.
        dims: The fan-in dims.
        fan_in: Their number of elements.
        to: The means to move to, with `dims` kept as size 1; zero if None.
        dtype: What to sum in; the tensor's own if None.

    Returns:
        The sums of what was removed: `fan_in` times the means, with `dims` kept as size 1.
    """
    sums = tensor.sum(dims, True, dtype=dtype)
    if to is None:
        # Not mean(): on a CPU that is sum() and one more call, which for small tensors is a third of the time.
        tensor.sub_(sums, alpha=1 / fan_in)
        return sums
    # As vector_means() divides: a weight vector that did not change (a scaler skipped the step) stays as it is to the bit.
    removed = sums.div_(fan_in).sub_(to)
    tensor.sub_(removed)
    return removed.mul_(fan_in)


def recentre_(tensor: Tensor, dims: tuple[int, ...], groups: int = 1, to: Tensor | None = None) -> Tensor:
    """Move the mean of each weight vector to `to` (zero if None), in place. Arguments are not checked.

    16-bit values are rounded once, from float32.

    Returns:
        The sums of what was removed, as :func:`subtract_means_` returns them (of the grouped view, see
        :func:`grouped`). For sparse tensors: of the stored values, row by row.
    """
    if tensor.layout == torch.sparse_coo:
        tensor, dims = tensor._values(), value_dims(tensor, dims)
    view, dims = grouped(tensor, dims, groups)
    fan_in = fan_in_of(view.shape, dims)
    if not is_narrow(view):
        return subtract_means_(view, dims, fan_in, to)
    if widens_as_it_reads(view):
        return subtract_means_(view, dims, fan_in, to, accumulation_dtype(view.dtype))
    removed = [_recentre_block_(block, dims, fan_in, goal) for block, goal in blocks(view, dims, to)]
    return joined(removed, view, dims)


def _recentre_block_(block: Tensor, dims: tuple[int, ...], fan_in: int, to: Tensor | None) -> Tensor:
    wide = widened(block)
    sums = subtract_means_(wide, dims, fan_in, to)
    block.copy_(wide)
    return sums


def vector_sums(tensor: Tensor, dims: tuple[int, ...], groups: int = 1) -> Tensor:
    """The sum of each weight vector, with `dims` kept as size 1 (of the grouped view).

    Accumulated in :func:`accumulation_dtype`. For a sparse COO tensor these are the sums of all
    its weight vectors, duplicates summed and untouched ones zero, as a dense tensor.
    """
    if tensor.layout == torch.sparse_coo:
        return scatter(tensor, vector_sums(tensor._values(), value_dims(tensor, dims)))
    view, dims = grouped(tensor, dims, groups)
    if not is_narrow(view) or widens_as_it_reads(view):
        return view.sum(dims, True, dtype=accumulation_dtype(view.dtype))
    return joined([widened(block).sum(dims, True) for block, _ in blocks(view, dims)], view, dims)


def vector_means(tensor: Tensor, dims: tuple[int, ...], groups: int = 1) -> Tensor:
    """:func:`vector_sums` over the fan-in."""
    return vector_sums(tensor, dims, groups).div_(fan_in_of(tensor.shape, dims, groups))


def norm_of(tensor: Tensor) -> Tensor:
    """The norm of the whole tensor, a scalar in the real :func:`accumulation_dtype`."""
    norm: Tensor
    if tensor.layout == torch.sparse_coo:
        return norm_of(sum_duplicates(tensor))
    if not is_narrow(tensor) or widens_as_it_reads(tensor):
        norm = torch.linalg.vector_norm(tensor, dtype=accumulation_dtype(tensor.dtype))
        return norm
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(widened(b)) for b, _ in blocks(tensor, ())]))
    return norm


def _check_dtype(tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a torch.Tensor, got {type(tensor).__name__}.")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"only floating point and complex tensors have a mean to remove, got {tensor.dtype}.")
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(f"only dense and sparse COO tensors are supported, got {tensor.layout}.")
