"""Gradients of which everything but their values is known in advance: the equation in two calls, and no question asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gc.equation.blocks import centralize_rows_, centralize_rows_measured_, rows_per_block
from lightning_gc.equation.dims import fan_in_of
from lightning_gc.equation.traits import is_dtensor, is_expanded, is_narrow


class Plain(NamedTuple):
    """A parameter with such a gradient.

    Attributes:
        place: That of its entry in the store.
        parameter: The parameter.
        dims: Its fan-in dims.
        fan_in: The number of elements of a weight vector.
        reciprocal: That of the fan-in.
        rows_per_block: How many rows are gone through at a time, where torch has one thread; 0 for all.
    """

    place: int
    parameter: Tensor
    dims: tuple[int, ...]
    fan_in: int
    reciprocal: float
    rows_per_block: int


def plan(places: Sequence[int], layouts: Sequence[tuple[Tensor, tuple[int, ...], int]]) -> list[Plain]:
    """Those at `places` of all parameters, given with their fan-in dims and groups."""
    total_bytes = sum(layouts[place][0].nbytes for place in places)
    planned = []
    for place in places:
        parameter, dims, _ = layouts[place]
        fan_in = fan_in_of(parameter.shape, dims)
        # Where weight vectors span dim 0, they are not rows.
        rows = 0 if 0 in dims else rows_per_block(parameter, total_bytes)
        planned.append(Plain(place, parameter, dims, fan_in, 1 / fan_in, rows))
    return planned


def is_plain(parameter: Tensor, groups: int) -> bool:
    """Whether a dense gradient of the parameter can be summed in its own dtype, as it is."""
    # A parameter may take gradients of another dtype, or (None) of any.
    gradient_dtype = getattr(parameter, "grad_dtype", parameter.dtype)
    return groups == 1 and not is_narrow(parameter) and not is_dtensor(parameter) and gradient_dtype == parameter.dtype


def is_not_plain(gradient: Tensor) -> bool:
    """Whether a gradient that could not be summed or changed is one that has to be seen to first."""
    return gradient.is_sparse or is_expanded(gradient)


def centralize_(one: Plain, gradient: Tensor, sums: Tensor | None = None) -> Tensor:
    """Centralize the gradient, and return it.

    Args:
        one: The parameter.
        gradient: Its gradient.
        sums: Where to leave the sums of the weight vectors, with the fan-in dims kept as size 1, if it is a small one.

    Raises:
        RuntimeError: The gradient is not plain, and was not changed; or it is another error.
    """
    if one.rows_per_block and _goes_by_rows(one, gradient):
        centralize_rows_(gradient, one.dims, one.reciprocal, one.rows_per_block)
        return gradient
    # Not sub_(mean()): on a CPU, mean() is sum() and one more call.
    return gradient.sub_(torch.sum(gradient, one.dims, True, out=sums), alpha=one.reciprocal)


def centralize_measured_(
    one: Plain, gradient: Tensor, before: Tensor | None = None, after: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same; return the sums of the weight vectors before and after, which may be left in these, and the norm after."""
    dims, reciprocal = one.dims, one.reciprocal
    if one.rows_per_block and _goes_by_rows(one, gradient):
        return centralize_rows_measured_(gradient, dims, reciprocal, one.rows_per_block, before, after)
    before = torch.sum(gradient, dims, True, out=before)
    gradient.sub_(before, alpha=reciprocal)
    return before, torch.sum(gradient, dims, True, out=after), torch.linalg.vector_norm(gradient)


def _goes_by_rows(one: Plain, gradient: Tensor) -> bool:
    """Whether the gradient is to be cut into blocks of rows, and lies in memory row by row."""
    if torch.get_num_threads() > 1:
        return False
    return gradient.layout == torch.strided and gradient.stride(0) == one.fan_in
