"""The measurement of gradients that were centralized, at little more than their own cost.

Small gradients of one shape are measured together, from a copy of at most `_COPY_BYTES`; everything that
depends on shapes alone is planned once. Nothing is read on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gc.selection import Entry
from lightning_gc.stores.base import Measurement

_COPY_BYTES = 1 << 20

# Larger ones are measured each by itself, and at once, while they are in the cache.
_SMALL_BYTES = _COPY_BYTES // 32


class Centralized(NamedTuple):
    """A gradient that was centralized.

    Attributes:
        tensor: The gradient after, dense and of its parameter's whole shape.
        dims: The fan-in dims.
        sums: The sum of each weight vector before, with `dims` kept as size 1.
        after: The sum of each weight vector after; None: still to be measured.
        norm: The norm after.
    """

    tensor: Tensor
    dims: tuple[int, ...]
    sums: Tensor
    after: Tensor | None = None
    norm: Tensor | None = None

    @classmethod
    def of(cls, tensor: Tensor, dims: tuple[int, ...], sums: Tensor) -> Centralized:
        """A gradient that was centralized just now."""
        if tensor.numel() * tensor.element_size() <= _SMALL_BYTES:
            return cls(tensor, dims, sums)
        return cls(tensor, dims, sums, tensor.sum(dims, True), torch.linalg.vector_norm(tensor).view(1))


class Measured(NamedTuple):
    """A gradient that was measured already: its means before and after, and its squared norm before."""

    before: Tensor
    after: Tensor
    squared_norm: Tensor


Found = Mapping[int, Centralized | Measured]
"""By the index of the entry."""


class Measurer:
    """Measures gradients of the same entries, shapes and devices again and again.

    Args:
        entries: All entries of the store.
        found: What is measured; only shapes, dtypes and devices are looked at.
    """

    def __init__(self, entries: Sequence[Entry], found: Found) -> None:
        self._signature = signature(found)
        self._batches = _batches(found)
        order = [index for batch in self._batches for index in batch]
        device = _any_tensor(found[order[0]]).device
        fan_in = torch.tensor([entries[index].fan_in for index in order], device=device, dtype=torch.float32)
        counts = [entries[index].weight_vectors for index in order]
        vectors, total = torch.tensor(counts, device=device), sum(counts)  # without the total, the host would read it
        self._device = device
        self._parameters = len(entries)
        self._order = torch.tensor(order, device=device)
        self._parameter = self._order.repeat_interleave(vectors, output_size=total)
        self._fan_in = fan_in.repeat_interleave(vectors, output_size=total)
        # Of gradients that were centralized by their sums, and 1 where there are means.
        unknown = torch.tensor([isinstance(found[index], Centralized) for index in order], device=device)
        self._divisor = torch.where(unknown, fan_in, 1.0).repeat_interleave(vectors, output_size=total)
        self._removed_is_missing = unknown.repeat_interleave(vectors, output_size=total)

    def fits(self, found: Found) -> bool:
        """Whether the measurer was made for gradients like these."""
        return signature(found) == self._signature

    def __call__(self, found: Found) -> Measurement:
        """Measure them."""
        before, after, norms = [], [], []
        for batch in self._batches:
            first = found[batch[0]]
            if isinstance(first, Measured):
                pre, post, squared_norm = first
                norms.append(squared_norm.to(self._device, torch.float32).sqrt().view(1))
            else:
                together = [found[index] for index in batch]
                pre, post, norm = _measure([c for c in together if isinstance(c, Centralized)])
                norms.append(norm.to(self._device, torch.float32))
            before.append(pre.to(self._device).flatten())
            after.append(post.to(self._device).flatten())
        mean_before = torch.cat(before).abs().div_(self._divisor)
        mean_after = torch.cat(after).abs().div_(self._divisor)
        squared_norm = torch.zeros(self._parameters, device=self._device, dtype=torch.float32)
        squared_norm.index_copy_(0, self._order, torch.cat(norms).square_())
        # Pythagoras: what was removed is orthogonal to what was left.
        removed = (self._fan_in * mean_before.square()).to(squared_norm) * self._removed_is_missing
        squared_norm.index_add_(0, self._parameter, removed)
        return Measurement(mean_before, mean_after, self._fan_in, squared_norm, self._parameter)


def signature(found: Found) -> list[object]:
    """What a measurer depends on: which gradients there are, and what is known of each."""
    return [
        (index, one.tensor.shape, one.tensor.dtype, one.tensor.device)
        if isinstance(one, Centralized)
        else (index, None)
        for index, one in found.items()
    ]


def _measure(together: Sequence[Centralized]) -> tuple[Tensor, Tensor, Tensor]:
    """The sums before and after, and the norms after, of gradients of one shape."""
    tensor, dims, sums, sums_after, norm = together[0]
    if sums_after is not None and norm is not None:
        return sums, sums_after, norm
    if len(together) == 1:
        return sums, tensor.sum(dims, True), torch.linalg.vector_norm(tensor).view(1)
    copy = torch.stack([one.tensor for one in together])
    after = copy.sum([d + 1 for d in dims], True)
    norms = torch.linalg.vector_norm(copy, dim=tuple(range(1, copy.dim())))
    return torch.stack([one.sums for one in together]), after, norms


def _batches(found: Found) -> list[list[int]]:
    """Indices of what is measured together: small gradients of one shape, dtype and device."""
    batches: list[list[int]] = []
    open_batches: dict[object, list[int]] = {}
    for index, one in found.items():
        if isinstance(one, Measured):
            batches.append([index])
            continue
        tensor, dims = one.tensor, one.dims
        size = max(1, tensor.numel() * tensor.element_size())
        key = (tensor.shape, dims, tensor.dtype, tensor.device)
        batch = open_batches.get(key)
        if batch is None or size > _SMALL_BYTES or len(batch) >= _COPY_BYTES // size:
            batch = open_batches[key] = []
            batches.append(batch)
        batch.append(index)
    return batches


def _any_tensor(one: Centralized | Measured) -> Tensor:
    return one.tensor if isinstance(one, Centralized) else one.before
