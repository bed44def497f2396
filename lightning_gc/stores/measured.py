"""The measurement of what was centralized, at little more than its own cost.

What is large is measured at once, while it is in the cache. Small gradients of one shape are measured together, from
a copy of at most `_COPY_BYTES`. Everything that depends on shapes alone is planned once. Nothing is read on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gc.measurement import Measurement
from lightning_gc.selection import Entry

_COPY_BYTES = 1 << 20
_SMALL_BYTES = _COPY_BYTES // 32


def is_small(parameter: Tensor) -> bool:
    """Whether gradients of the parameter are measured together with others."""
    return parameter.nbytes <= _SMALL_BYTES


class Measured(NamedTuple):
    """What was measured of one tensor: scalars, of its dtype.

    Attributes:
        before: The sum of the absolute values of the means (or sums) of its weight vectors before.
        after: The same after.
        square: The norm of those before.
        norm: Of the whole tensor: after where there are sums, before where there are means. None for weights.
    """

    before: Tensor
    after: Tensor
    square: Tensor
    norm: Tensor | None


class Seen:
    """The tensors of one step whose weight vectors were moved.

    Attributes:
        small: Those that are still to be measured: place of the entry, gradient after, and sums before.
        measured: The others: place of the entry, what makes means of sums (the fan-in, or 1 where there are means),
            and what was measured.
    """

    def __init__(self) -> None:
        self.small: list[tuple[int, Tensor, Tensor]] = []
        self.measured: list[tuple[int, int, Measured]] = []

    def add(self, place: int, divisor: int, before: Tensor, after: Tensor, norm: Tensor | None) -> None:
        """Reduce the means, or sums, of weight vectors before and after to what is logged of them."""
        sizes = torch.linalg.vector_norm(before, 1), torch.linalg.vector_norm(after, 1)
        self.measured.append((place, divisor, Measured(*sizes, torch.linalg.vector_norm(before), norm)))

    def signature(self) -> object:
        """What a :class:`Measurer` depends on: which tensors there are, and what is known of each."""
        return [place for place, _, _ in self.small], [(p, d, m.norm is None) for p, d, m in self.measured]


class Measurer:
    """Measures tensors of the same entries, shapes and devices again and again.

    Args:
        entries: All entries of the store.
        seen: What is measured, at least one; only shapes, dtypes and devices are looked at.
    """

    def __init__(self, entries: Sequence[Entry], seen: Seen) -> None:
        self._signature = seen.signature()
        self._batches = _batches(seen)
        small = [seen.small[i] for batch in self._batches for i in batch]
        order = [(p, entries[p].fan_in) for p, *_ in small] + [(p, divisor) for p, divisor, _ in seen.measured]
        tensors = [sums for *_, sums in small] + [one.before for *_, one in seen.measured]
        self._device = device = tensors[0].device
        self._several_devices = any(tensor.device != device for tensor in tensors)
        self._count = len(entries)
        self._dims = [_dims(entries[p]) for p, *_ in seen.small]
        self._places = torch.tensor([place for place, _ in order], device=device)
        self._vectors = _numbers([entries[place].weight_vectors for place, _ in order], device)
        self._reciprocal = _numbers([1 / divisor for _, divisor in order], device)
        self._squared_scale = _numbers([entries[place].fan_in / divisor**2 for place, divisor in order], device)
        self._norm_is_after = self._reciprocal != 1

    def fits(self, seen: Seen) -> bool:
        """Whether the measurer was made for tensors like these."""
        return seen.signature() == self._signature

    def __call__(self, seen: Seen) -> Measurement:
        """Measure them."""
        found = [self._measure(seen, batch) for batch in self._batches]
        found += [one for *_, one in seen.measured]
        squared_removed = self._join([one.square for one in found]).square_() * self._squared_scale
        norms = [one.norm for one in found if one.norm is not None]
        measured = Measurement(
            self._vectors,
            self._join([one.before for one in found]) * self._reciprocal,
            self._join([one.after for one in found]) * self._reciprocal,
            squared_removed,
            # Pythagoras: what was removed is orthogonal to what was left.
            self._join(norms).square_() + squared_removed.where(self._norm_is_after, 0) if norms else None,
        )
        return measured.placed(self._places, self._count, self._device)

    def _measure(self, seen: Seen, batch: Sequence[int]) -> Measured:
        """Some small gradients of one shape, along a first dim."""
        together = [seen.small[i] for i in batch]
        gradients = torch.stack([gradient for _, gradient, _ in together])
        sums = torch.stack([one for *_, one in together])
        after = gradients.sum([d + 1 for d in self._dims[batch[0]]], True)
        return Measured(_norms(sums, 1), _norms(after, 1), _norms(sums, 2), _norms(gradients, 2))

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """One number for each of the tensors: those of the batches, then the others."""
        if self._several_devices:
            parts = [part.to(self._device) for part in parts]
        batches, scalars = list(parts[: len(self._batches)]), list(parts[len(self._batches) :])
        return torch.cat([*batches, torch.stack(scalars)] if scalars else batches).float()


def _batches(seen: Seen) -> list[list[int]]:
    """Indices of the small ones that are measured together: what is of one shape, dtype and device."""
    batches: list[list[int]] = []
    open_batches: dict[object, list[int]] = {}
    for index, (_, gradient, sums) in enumerate(seen.small):
        key = (gradient.shape, sums.shape, gradient.dtype, gradient.device)
        batch = open_batches.get(key)
        if batch is None or len(batch) * gradient.nbytes > _COPY_BYTES - gradient.nbytes:
            batch = open_batches[key] = []
            batches.append(batch)
        batch.append(index)
    return batches


def _norms(stacked: Tensor, order: int) -> Tensor:
    """The norm of each of some tensors along the first dim."""
    if len(stacked) == 1:  # a quarter of the time
        return torch.linalg.vector_norm(stacked, order).view(1)  # type: ignore[no-any-return]
    return torch.linalg.vector_norm(stacked, order, dim=tuple(range(1, stacked.dim())))  # type: ignore[no-any-return]


def _numbers(numbers: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device, dtype=torch.float32)


def _dims(entry: Entry) -> tuple[int, ...]:
    assert entry.layout is not None
    return entry.layout.dims
