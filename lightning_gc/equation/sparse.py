"""Weight vectors in sparse COO tensors, without reading anything on the host."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def value_dims(tensor: Tensor, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The fan-in dims of a sparse COO tensor as dims of its values, ``(nnz, *dense)``."""
    first = tensor.sparse_dim()
    if any(d < first for d in dims):
        raise ValueError(
            f"fan-in dims {dims} of a sparse tensor with {first} sparse dimension(s) of {tensor.dim()}: only its dense "
            f"dimensions, {tuple(range(first, tensor.dim()))}, can be centralized over. Densify the gradient instead."
        )
    return tuple(d - first + 1 for d in dims)


def scatter(tensor: Tensor, rows: Tensor) -> Tensor:
    """Scatter one row for each of a sparse tensor's values to all its weight vectors, adding up duplicates."""
    count = math.prod(tensor.shape[: tensor.sparse_dim()])
    return rows.new_zeros((count, *rows.shape[1:])).index_add_(0, _flat_indices(tensor), rows)


def sum_duplicates(tensor: Tensor) -> Tensor:
    """The values of a sparse tensor with duplicates added up (zero rows fill the rest).

    ``coalesce()`` would read the number of distinct indices on the host; this reads nothing.
    """
    values = tensor._values()
    if tensor.is_coalesced() or not values.numel():
        return values
    rows, order = _flat_indices(tensor).sort()
    is_new = torch.ones_like(rows)
    is_new[1:] = rows[1:] != rows[:-1]
    return torch.zeros_like(values).index_add_(0, is_new.cumsum(0) - 1, values[order])


def _flat_indices(tensor: Tensor) -> Tensor:
    """One index for each stored value, over all sparse dimensions."""
    flat = tensor._indices()[0]
    for dim in range(1, tensor.sparse_dim()):
        flat = flat * tensor.shape[dim] + tensor._indices()[dim]
    return flat
