"""The measurement of what was centralized, at little more than its own cost.

What is of one shape is measured together: the sums of weight vectors, and of small gradients the elements, too,
from a copy of at most `_COPY_BYTES`. Everything that depends on shapes alone is planned once. Nothing is read on
the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gc.measurement import Measurement
from lightning_gc.selection import Entry

_COPY_BYTES = 1 << 20

# Larger ones are measured each by itself, and at once, while they are in the cache.
_SMALL_BYTES = _COPY_BYTES // 32


class Seen(NamedTuple):
    """A tensor whose weight vectors were moved.

    Attributes:
        place: That of its entry in the store.
        divisor: What makes means of `before` and `after`: the fan-in where these are sums, else 1.
        before: Of each weight vector, its mean (or sum) before; with the fan-in dims kept as size 1.
        after: The same after; None: still to be measured, with the norm.
        norm: The norm of the whole tensor: after where there are sums, before where there are means. None for weights.
        tensor: The tensor after, if it is still to be measured; dense, and of its parameter's whole shape.
    """

    place: int
    divisor: int
    before: Tensor
    after: Tensor | None
    norm: Tensor | None
    tensor: Tensor | None = None


def is_small(parameter: Tensor) -> bool:
    """Whether gradients of the parameter are measured together with others."""
    return parameter.numel() * parameter.element_size() <= _SMALL_BYTES


class Measurer:
    """Measures tensors of the same entries, shapes and devices again and again.

    Args:
        entries: All entries of the store.
        seen: What is measured; only shapes, dtypes and devices are looked at.
    """

    def __init__(self, entries: Sequence[Entry], seen: Sequence[Seen]) -> None:
        self._signature = signature(seen)
        self._batches = _batches(seen)
        order = [seen[i] for batch in self._batches for i in batch]
        self._device = device = order[0].before.device
        self._several_devices = any(one.before.device != device for one in order)
        self._count = len(entries)
        self._places = torch.tensor([one.place for one in order], device=device)
        self._vectors = _numbers([entries[one.place].weight_vectors for one in order], device)
        self._reciprocal = _numbers([1 / one.divisor for one in order], device)
        self._squared_scale = _numbers([entries[one.place].fan_in / one.divisor**2 for one in order], device)
        self._norm_is_after = self._reciprocal != 1
        self._dims = {one.place: _dims(entries[one.place]) for one in order}

    def fits(self, seen: Sequence[Seen]) -> bool:
        """Whether the measurer was made for tensors like these."""
        return signature(seen) == self._signature

    def __call__(self, seen: Sequence[Seen]) -> Measurement:
        """Measure them."""
        before, after, squares, norms = [], [], [], []
        for batch in self._batches:
            together = [seen[i] for i in batch]
            sums, sums_after, norm = self._look(together)
            before.append(_norms(sums, 1))
            after.append(_norms(sums_after, 1))
            squares.append(_norms(sums, 2))
            norms.append(norm)
        squared_removed = self._join(squares).square_() * self._squared_scale
        known = [norm for norm in norms if norm is not None]
        measured = Measurement(
            self._vectors,
            self._join(before) * self._reciprocal,
            self._join(after) * self._reciprocal,
            squared_removed,
            # Pythagoras: what was removed is orthogonal to what was left.
            self._join(known).square_() + squared_removed.where(self._norm_is_after, 0) if known else None,
        )
        return measured.placed(self._places, self._count, self._device)

    def _look(self, together: Sequence[Seen]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The sums before and after, and the norms, of some of one shape, along a new first dim."""
        sums = _stack([one.before for one in together])
        tensors = [one.tensor for one in together if one.tensor is not None]
        if tensors:
            elements = _stack(tensors)
            dims = [d + 1 for d in self._dims[together[0].place]]
            return sums, elements.sum(dims, True), _norms(elements, 2)
        sums_after = _stack([one.after for one in together if one.after is not None])
        norms = [one.norm for one in together if one.norm is not None]
        return sums, sums_after, torch.stack(norms) if norms else None

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        if self._several_devices:
            parts = [part.to(self._device) for part in parts]
        return torch.cat(list(parts)).float()


def signature(seen: Sequence[Seen]) -> list[object]:
    """What a measurer depends on: which tensors there are, and what is known of each."""
    return [(one.place, one.divisor, one.tensor is None, one.norm is None) for one in seen]


def _batches(seen: Sequence[Seen]) -> list[list[int]]:
    """Indices in `seen` of what is measured together: what is of one shape, dtype and device."""
    batches: list[list[int]] = []
    open_batches: dict[object, list[int]] = {}
    for index, one in enumerate(seen):
        size = 0 if one.tensor is None else one.tensor.numel() * one.tensor.element_size()
        shape = one.before.shape if one.tensor is None else one.tensor.shape
        key = (shape, one.before.shape, one.before.dtype, one.before.device, one.tensor is None, one.norm is None)
        batch = open_batches.get(key)
        if batch is None or len(batch) * size > _COPY_BYTES - size:
            batch = open_batches[key] = []
            batches.append(batch)
        batch.append(index)
    return batches


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)


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
