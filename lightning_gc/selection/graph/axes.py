"""Where each dim of a parameter has gone to: the axes of a tensor, and of which parts they are made.

A view splits dims and merges them, so that an axis of a tensor may hold a part of one dim of the parameter and parts of
others. This is arithmetic on shapes alone; autograd has no place here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

DATA = -1
"""In place of a dim: an axis that the parameter does not have, such as the batch."""
LOOKED_UP = -2
"""In place of a dim: an axis of indices, along which slices of the parameter were looked up."""
JOINED = -3
"""In place of a dim: an axis along which the parameter was put together with others."""


class Unreadable(Exception):  # noqa: N818 - no error: it says why there is no verdict
    """Where the dims have gone to can't be told."""


class Part(NamedTuple):
    """A part of a dim: the indices ``stride * i`` for i below `size`, as a digit is a part of a number.

    Attributes:
        dim: The dim of the parameter, or `DATA`, `LOOKED_UP` or `JOINED`.
        stride: How many indices of the dim one step goes. The outermost part of a dim has the largest.
        size: The number of steps.
    """

    dim: int
    stride: int
    size: int

    @property
    def own(self) -> bool:
        """Whether it is of the parameter itself."""
        return self.dim >= 0


Axis = tuple[Part, ...]
"""What one axis is made of, outermost first; nothing if its size is 1."""
Axes = tuple[Axis, ...]


def axes_of(shape: Sequence[int]) -> Axes:
    """The axes of the parameter itself."""
    return tuple((Part(dim, 1, n),) if n > 1 else () for dim, n in enumerate(shape))


def sizes(axes: Axes) -> tuple[int, ...]:
    """The shape of a tensor that has these axes."""
    return tuple(math.prod(part.size for part in axis) for axis in axes)


def own_parts(axes: Iterable[Axis]) -> list[Part]:
    """The parts of the parameter's dims in these axes."""
    return [part for axis in axes for part in axis if part.own]


def data_axis(size: int) -> Axis:
    """An axis that the parameter does not have."""
    return (Part(DATA, 1, size),) if size > 1 else ()


def is_mixed(axis: Axis) -> bool:
    """Whether a batch, along which the parameter was repeated, was merged with a dim of its own."""
    return any(part.own for part in axis) and any(part.dim == DATA for part in axis)


def regrouped(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes after a reshape to `shape`.

    Raises:
        Unreadable: An axis of the new shape begins or ends within a part that can't be split there.
    """
    parts = _joined(part for axis in axes for part in axis)
    if math.prod(part.size for part in parts) != math.prod(shape):
        raise Unreadable("a reshape after a slice")
    parts.reverse()  # so that the next one is the last
    return tuple(tuple(_joined(_taken(parts, n))) for n in shape)


def _taken(parts: list[Part], size: int) -> Iterator[Part]:
    """Take an axis of this size off the parts."""
    while size > 1:
        part = parts.pop()
        outer = math.gcd(part.size, size)
        if outer != min(part.size, size):
            raise Unreadable("a reshape across dims")
        inner = part.size // outer
        if inner > 1:
            parts.append(Part(part.dim, part.stride, inner))
        yield Part(part.dim, part.stride * inner, outer)
        size //= outer


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbours that are one part, as one: a dim that was split and merged again, and dims of the data."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and last.dim == part.dim == DATA:
            joined[-1] = Part(DATA, 1, last.size * part.size)
        elif last is not None and last.own and last.dim == part.dim and last.stride == part.stride * part.size:
            joined[-1] = Part(part.dim, part.stride, last.size * part.size)
        else:
            joined.append(part)
    return joined


def broadcast(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes after broadcasting to `shape`: it may add axes in front, and stretch those of size 1.

    Raises:
        Unreadable: `shape` is no broadcast of them.
    """
    missing = len(shape) - len(axes)
    if missing < 0:
        raise Unreadable("fewer axes than before")
    aligned = ((),) * missing + axes
    if any(axis and n != size for axis, n, size in zip(aligned, shape, sizes(aligned), strict=True)):
        raise Unreadable("a repeated dim")
    return tuple(axis or data_axis(n) for axis, n in zip(aligned, shape, strict=True))


def resized(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes after slices were taken, or something was put in front or behind.

    What is left of a dim says its size, so that a sum over it is seen not to be over the whole dim.

    Raises:
        Unreadable: That was along an axis of several parts.
    """
    if len(axes) != len(shape):
        raise Unreadable("another number of axes")
    return tuple(_resized(axis, n) for axis, n in zip(axes, shape, strict=True))


def _resized(axis: Axis, size: int) -> Axis:
    if math.prod(part.size for part in axis) == size:
        return axis
    if len(axis) > 1:
        raise Unreadable("a slice of merged dims")
    return (axis[0]._replace(size=size),) if axis else (Part(JOINED, 1, size),)
