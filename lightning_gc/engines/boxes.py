"""Weight vectors in a piece of a flattened parameter.

Engines that shard cut a flattened parameter anywhere, also inside a weight vector. A contiguous piece of an
array of n dims is a handful of boxes (at most 2n - 1), and on a box sums over the fan-in dims are plain
tensor operations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A box of elements that stand in one stretch of a flattened array.

    Attributes:
        offset: Where the stretch starts, counted from the start of the piece that was cut up.
        starts: The index of the box's first element in each dim of the array.
        lengths: The size of the box in each dim.
    """

    offset: int
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.lengths)

    def among_means(self, dims: Collection[int]) -> tuple[slice, ...]:
        """Where the means of the box's weight vectors stand among all means, with `dims` kept as size 1."""
        return tuple(
            slice(0, 1) if d in dims else slice(start, start + length)
            for d, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True))
        )


def cut(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """The elements from `start` to `stop` of a flattened array of this shape, as boxes, in order.

    Example:
        >>> for box in cut((3, 4), 2, 9):  # the end of row 0, row 1, the start of row 2
        ...     print(box)
        Box(offset=0, starts=(0, 2), lengths=(1, 2))
        Box(offset=2, starts=(1, 0), lengths=(1, 4))
        Box(offset=6, starts=(2, 0), lengths=(1, 1))
    """
    boxes, offset = [], 0
    for starts, lengths in _cut(tuple(shape), start, stop):
        boxes.append(Box(offset, starts, lengths))
        offset += boxes[-1].numel
    return boxes


def _cut(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner  # the whole slices along dim 0
    if first > last:  # the piece lies inside one slice
        yield from _within(shape, last, start, stop)
        return
    yield from _within(shape, first - 1, start, first * inner)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _within(shape, last, last * inner, stop)


def _within(
    shape: tuple[int, ...], index: int, start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The part of slice `index` along dim 0 from `start` to `stop`."""
    before = index * math.prod(shape[1:])
    for starts, lengths in _cut(shape[1:], start - before, stop - before):
        yield (index, *starts), (1, *lengths)


def in_memory_order(
    shape: Sequence[int], dims: Sequence[int], groups: int = 1, strides: Sequence[int] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape in which a flattened tensor is row-major, and the fan-in dims of that shape.

    Groups become a dim of their own. `strides` are those the tensor had when its memory was flattened
    (channels last, for one); None if it was contiguous.
    """
    if strides is None:
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    sizes, steps, spanned = list(shape), list(strides), set(dims)
    if groups > 1 and 0 in spanned:
        sizes = [groups, sizes[0] // groups, *sizes[1:]]
        steps = [steps[0] * sizes[1], *steps]
        spanned = {d + 1 for d in spanned}
    order = sorted(range(len(sizes)), key=lambda d: -steps[d])
    return tuple(sizes[d] for d in order), tuple(i for i, d in enumerate(order) if d in spanned)
