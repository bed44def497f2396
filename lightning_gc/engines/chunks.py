"""Weight vectors of many parameters side by side, to be reduced together to what is logged of them.

The Trainer mostly logs all parameters as one. A few small operations for each of them would cost more than the
arithmetic does. What depends on the entries alone is planned, and uploaded, once. Nothing is read on the host.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gc.equation.dims import means_shape
from lightning_gc.equation.traits import accumulation_dtype
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.selection import Entry

# So many weight vectors are reduced together.
_CHUNK_VECTORS = 1 << 16

# Of many small gradients of one shape a copy is made, of at most so many bytes, and measured as one.
_COPY_BYTES = 1 << 20
_SMALL_BYTES = _COPY_BYTES // 32
_MANY = 8

Member = tuple[int, Entry]
"""An entry, after its place in the store."""


class Slot(NamedTuple):
    """Where the sums, or means, of the weight vectors of one entry go.

    Attributes:
        place: That of the entry.
        before: For those before: sums with the fan-in dims kept as size 1, or means, one-dimensional.
        after: For those after.
    """

    place: int
    before: Tensor
    after: Tensor

    def clear(self) -> None:
        """There is nothing to measure."""
        self.before.zero_()
        self.after.zero_()


class Chunk:
    """Some entries on one device, and their slots.

    Args:
        members: The entries, at least one.
        buffers: What the slots are cut from. Other chunks may have the same: one at a time is filled and measured.
        has_sums: Whether the slots take sums, and not means.
        copied: Whether the gradients, of one shape, are measured from a copy of all. They have no use for slots after.
    """

    def __init__(
        self, members: Sequence[Member], buffers: tuple[Tensor, Tensor], *, has_sums: bool, copied: bool
    ) -> None:
        self.has_sums, self.copied = has_sums, copied
        self._layout = members[0][1].layout
        counts = [entry.weight_vectors for _, entry in members]
        self._before, self._after = (buffer[: sum(counts)] for buffer in buffers)
        self.slots: list[Slot] = []
        parts = zip(members, torch.split(self._before, counts), torch.split(self._after, counts), strict=True)
        for (place, entry), before, after in parts:
            assert entry.layout is not None
            shape = means_shape(entry.shape, entry.layout.dims) if has_sums else before.shape
            self.slots.append(Slot(place, before.view(shape), after.view(shape)))
        # What makes means of sums, or sums of means.
        factors = [1 / entry.fan_in if has_sums else float(entry.fan_in) for _, entry in members]
        spread = torch.tensor(factors, dtype=torch.float64).repeat_interleave(torch.tensor(counts))
        self._factors = spread.to(self._before.dtype.to_real()).to(self._before.device)

    def measured(self, vectors: int, norms: Sequence[Tensor]) -> Measurement:
        """What is in the slots, as one, of so many weight vectors. They are not to be read again.

        Args:
            vectors: How many there are; the slots of all others are cleared.
            norms: Those of the whole gradients: after where there are sums, before where there are means. None for
                weights.
        """
        norm = torch.linalg.vector_norm(torch.stack(list(norms))) if norms else None
        return self._reduced(vectors, self._after, norm)

    def measured_from_copy(self, vectors: int, gradients: Sequence[Tensor]) -> Measurement:
        """The same, with the gradients after instead of what could be in their slots."""
        assert self._layout is not None
        copy = torch.stack(list(gradients))
        after = copy.sum([d + 1 for d in self._layout.dims]).flatten()
        return self._reduced(vectors, after, torch.linalg.vector_norm(copy))

    def _reduced(self, vectors: int, after: Tensor, norm: Tensor | None) -> Measurement:
        factors = self._factors[: len(after)]  # fewer may have been copied; then all are alike
        before, after = _abs_(self._before), _abs_(after)
        scaled = before * self._factors
        one = Measurement(
            torch.full((1,), vectors, dtype=torch.float32, device=before.device),
            (scaled if self.has_sums else before).sum().float().view(1),
            (torch.dot(after, factors) if self.has_sums else after.sum()).float().view(1),
            torch.dot(before, scaled).float().view(1),  # the fan-in times the mean times the mean
            None if norm is None else norm.float().square().view(1),
        )
        return one.with_removed() if self.has_sums else one


def plan_chunks(entries: Sequence[Entry], with_sums: Sequence[int]) -> list[Chunk]:
    """Chunks of all entries: of those at the places `with_sums` these are measured, of the others means."""
    summed = set(with_sums)
    shapes = Counter(_alike(entries[place]) for place in summed)
    groups: dict[_Group, list[Member]] = defaultdict(list)
    for place, entry in enumerate(entries):
        parameter, alike = entry.parameter, _alike(entry)
        copied = place in summed and parameter.nbytes <= _SMALL_BYTES and shapes[alike] >= _MANY
        dtype = accumulation_dtype(parameter.dtype)
        groups[_Group(parameter.device, dtype, place in summed, alike if copied else None)].append((place, entry))
    parts = [
        (group, part)
        for group, members in groups.items()
        for part in _cut(members, math.inf if group.copied is None else _COPY_BYTES)
    ]
    sizes: Counter[tuple[torch.device, torch.dtype]] = Counter()
    for group, part in parts:
        on = group.device, group.dtype
        sizes[on] = max(sizes[on], sum(entry.weight_vectors for _, entry in part))
    buffers = {on: tuple(torch.empty(2, size, device=on[0], dtype=on[1])) for on, size in sizes.items()}
    return [
        Chunk(part, buffers[group.device, group.dtype], has_sums=group.has_sums, copied=group.copied is not None)
        for group, part in parts
    ]


class _Group(NamedTuple):
    device: torch.device
    dtype: torch.dtype
    has_sums: bool
    copied: object


def _alike(entry: Entry) -> object:
    """What gradients that are copied together have in common."""
    parameter = entry.parameter
    return parameter.shape, parameter.dtype, parameter.device, entry.layout


def _cut(members: Sequence[Member], most_bytes: float) -> Iterator[list[Member]]:
    """Cut members into parts of so many weight vectors, and so many bytes, at most; or of one."""
    part: list[Member] = []
    vectors = size = 0
    for member in members:
        _, entry = member
        vectors += entry.weight_vectors
        size += entry.parameter.nbytes
        if part and (vectors > _CHUNK_VECTORS or size > most_bytes):
            yield part
            part, vectors, size = [], entry.weight_vectors, entry.parameter.nbytes
        part.append(member)
    yield part


def _abs_(tensor: Tensor) -> Tensor:
    return tensor.abs() if tensor.is_complex() else tensor.abs_()
