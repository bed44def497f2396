"""The equation, on one tensor. Needs torch and nothing else.

A tensor holds *weight vectors*: the slices that span its *fan-in dims*. To centralize it is to
subtract from each weight vector its own mean, ``g - mean(g)``: the projection ``P = I - e eᵀ`` of
Yong et al. (2020), arXiv 2004.01461, equation (3), with ``e`` the normalised all-ones vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gc.equation.blocks import (
    goes_in_blocks,
    means_in_blocks,
    recentre_in_blocks_,
    recentre_measured_in_blocks_,
    squared_norm_in_blocks,
)
from lightning_gc.equation.dims import grouped, resolve_dims
from lightning_gc.equation.sparse import scatter_means, sum_duplicates, value_dims
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


@torch.no_grad()
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
        >>> weight = torch.nn.Parameter(torch.zeros(2, 3))
        >>> weight.grad = torch.tensor([[0.0, 1.0, 2.0], [6.0, 0.0, 0.0]])
        >>> centralize_(weight.grad)
        tensor([[-1.,  0.,  1.],
                [ 4., -2., -2.]])
    """
    _check_dtype(tensor)
    dims = resolve_dims(tensor.shape, dims, groups)
    if is_expanded(tensor):
        raise ValueError(
            f"centralize_ was given an expanded or overlapping tensor (shape {tuple(tensor.shape)}, strides "
            f"{tensor.stride()}): several of its elements share one place in memory, so it cannot be changed "
            "in place. Use centralize()."
        )
    if dims and tensor.numel():
        recentre_(tensor, dims, groups)
    return tensor


def recentre_(tensor: Tensor, dims: tuple[int, ...], groups: int = 1, to: Tensor | None = None) -> Tensor:
    """Move the mean of each weight vector to `to` (zero if None), in place; return what was removed.

    The one place where the library changes numbers. Arguments are not checked.

    Returns:
        The removed means, with `dims` kept as size 1 (of the grouped view, see :func:`grouped`) in
        :func:`accumulation_dtype`. For sparse tensors: of the stored values, row by row.
    """
    if tensor.layout == torch.sparse_coo:
        return recentre_(tensor._values(), value_dims(tensor, dims))
    view, dims = grouped(tensor, dims, groups)
    if goes_in_blocks(view, dims):
        return recentre_in_blocks_(view, dims, to)
    removed = view.mean(dims, keepdim=True, dtype=_wide_dtype(view))
    if to is not None:
        removed -= to
    view.sub_(removed)
    return removed


def recentre_measured_(
    tensor: Tensor, dims: tuple[int, ...], groups: int = 1, to: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`recentre_`, and a look at what it did.

    Returns:
        The removed means; the means after, as :func:`vector_means` has them; and the squared norm of the whole
        tensor before. For sparse tensors the removed means are of all weight vectors, too.
    """
    if not tensor.is_sparse:
        view, dims_of_view = grouped(tensor, dims, groups)
        if goes_in_blocks(view, dims_of_view):
            return recentre_measured_in_blocks_(view, dims_of_view, to)
    norm = squared_norm(tensor)
    removed = recentre_(tensor, dims, groups, to)
    if tensor.is_sparse:
        removed = scatter_means(tensor, removed)
    return removed, vector_means(tensor, dims, groups), norm


def vector_means(tensor: Tensor, dims: tuple[int, ...], groups: int = 1) -> Tensor:
    """The mean of each weight vector, with `dims` kept as size 1 (of the grouped view).

    Accumulated in :func:`accumulation_dtype`. For a sparse COO tensor these are the means of all
    its weight vectors, duplicates summed and untouched ones zero, as a dense tensor.
    """
    if tensor.layout == torch.sparse_coo:
        return scatter_means(tensor, vector_means(tensor._values(), value_dims(tensor, dims)))
    view, dims = grouped(tensor, dims, groups)
    if is_narrow(view) and goes_in_blocks(view, dims):
        return means_in_blocks(view, dims)
    return view.mean(dims, keepdim=True, dtype=_wide_dtype(view))


def squared_norm(tensor: Tensor) -> Tensor:
    """The sum of the squared absolute values, a scalar in the real :func:`accumulation_dtype`."""
    if tensor.layout == torch.sparse_coo:
        return squared_norm(sum_duplicates(tensor))
    if is_narrow(tensor) and goes_in_blocks(tensor, ()):
        return squared_norm_in_blocks(tensor)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=_wide_dtype(tensor))
    return norm.square()


def _wide_dtype(tensor: Tensor) -> torch.dtype | None:
    """What to accumulate in where the tensor's own type is too coarse; None where it is not."""
    return accumulation_dtype(tensor.dtype) if is_narrow(tensor) else None


def _check_dtype(tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a torch.Tensor, got {type(tensor).__name__}.")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"only floating point and complex tensors have a mean to remove, got {tensor.dtype}.")
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(f"only dense and sparse COO tensors are supported, got {tensor.layout}.")
