"""Fan-in dims: checked, counted, and viewed group by group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def resolve_dims(shape: Sequence[int], dims: int | Sequence[int] | None, groups: int = 1) -> tuple[int, ...]:
    """Check fan-in dims against a shape and return them sorted and non-negative."""
    rank = len(shape)
    if dims is None:
        resolved = tuple(range(1, rank))
        if groups == 1:  # what a loop of one's own asks of each gradient in each step
            return resolved
    else:
        given: tuple[Any, ...] = (dims,)
        if isinstance(dims, Iterable) and not isinstance(dims, str | bytes):
            given = tuple(dims)
        if not all(isinstance(d, int) and not isinstance(d, bool) for d in given):
            raise TypeError(f"dims must be an integer or a sequence of integers, got {dims!r}.")
        if any(not -rank <= d < rank for d in given):
            raise ValueError(
                f"dims={dims!r} are out of range for shape {tuple(shape)}: "
                + (f"allowed are {-rank} to {rank - 1}." if rank else "a scalar has no dims.")
            )
        resolved = tuple(sorted({d % rank for d in given}))
        if len(resolved) != len(given):
            raise ValueError(f"dims={dims!r} name the same dim of shape {tuple(shape)} twice.")
    if groups < 1 or (groups > 1 and (rank == 0 or shape[0] % groups)):
        raise ValueError(f"groups={groups} does not divide dim 0 of shape {tuple(shape)}.")
    return resolved


def fan_in_of(shape: Sequence[int], dims: Sequence[int], groups: int = 1) -> int:
    """The number of elements of one weight vector."""
    return math.prod([shape[d] for d in dims]) // (groups if 0 in dims else 1)


def means_shape(shape: Sequence[int], dims: Sequence[int]) -> torch.Size:
    """The shape of a tensor whose dims are kept as size 1."""
    return torch.Size([1 if d in dims else n for d, n in enumerate(shape)])


def grouped(tensor: Tensor, dims: tuple[int, ...], groups: int) -> tuple[Tensor, tuple[int, ...]]:
    """View dim 0 as ``(groups, -1)``, and the dims of that view that one weight vector spans."""
    if groups == 1 or 0 not in dims:
        return tensor, dims
    return torch.unflatten(tensor, 0, (groups, -1)), tuple(d + 1 for d in dims)
