"""A store that gives the kernel all it can take, and leaves the rest to the plain one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gc.engines.store import Means, Role, Store
from lightning_gc.engines.tensors import TensorStore, tensor_of
from lightning_gc.equation.dims import means_shape
from lightning_gc.equation.traits import is_dtensor
from lightning_gc.kernels.launch import Batch, Outputs, Rows, as_rows, takes
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.selection import Entry


class FusedTensorStore(Store):
    """:class:`TensorStore`, with at most two launches for each device and dtype.

    Dense tensors whose weight vectors follow one another in memory go to the kernel; transposed
    layers, sparse and sharded tensors, and dtypes other than float32, bfloat16 and float16 do not.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._plans: dict[Role, _Plan] = {}

    @torch.no_grad()
    def means(self, role: Role) -> Means:
        """See :meth:`Store.means`."""
        tensors = self._tensors(role)
        plan = self._plan(role, tensors)
        found: list[Tensor | None] = [None] * len(tensors)
        for batch, indices in plan.batches:
            outputs = batch(_pick(tensors, indices), write=False, means=True)
            assert outputs is not None
            for i, offset in zip(indices, batch.offsets, strict=True):
                shape = self._means_shape(i)
                found[i] = outputs.before[offset : offset + shape.numel()].view(shape)
        for i, of_rest in zip(plan.rest_indices, plan.rest.means(role), strict=True):
            found[i] = of_rest
        return found

    @torch.no_grad()
    def recentre_(self, role: Role, to: Means | None = None) -> bool:
        """See :meth:`Store.recentre_`."""
        tensors = self._tensors(role)
        plan = self._plan(role, tensors)
        for batch, indices in plan.batches:
            batch(_pick(tensors, indices), _goals(to, indices))
        return plan.rest.recentre_(role, _some(to, plan.rest_indices)) or bool(plan.batches)

    @torch.no_grad()
    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement | None:
        """See :meth:`Store.recentre_measured_`."""
        tensors = self._tensors(role)
        plan = self._plan(role, tensors)
        found = [self._launch(role, tensors, batch, indices, to) for batch, indices in plan.batches]
        of_rest = plan.rest.recentre_measured_(role, _some(to, plan.rest_indices))
        if of_rest is not None:
            found.append((of_rest, plan.rest_places))
        if not found:
            return None
        return Measurement.added(
            [part.placed(places.to(part.before.device), len(self.entries)) for part, places in found]
        )

    def _launch(
        self, role: Role, tensors: Sequence[Tensor | None], batch: Batch, indices: Sequence[int], to: Means | None
    ) -> tuple[Measurement, Tensor]:
        """One batch, and the places of its tensors among the entries."""
        outputs = batch(_pick(tensors, indices), _goals(to, indices), measure=True)
        assert isinstance(outputs, Outputs)
        assert outputs.after is not None
        assert outputs.squares is not None
        known = batch.described([self.entries[i].fan_in for i in indices], indices)
        before, after = outputs.before.abs(), outputs.after.abs()
        rows = torch.stack([before, after, before.square() * known.fan_in, outputs.squares])
        # Rows to tensors: one launch, whatever their number.
        sums = rows.new_zeros(len(rows), len(indices)).index_add_(1, known.owner, rows)
        norm = sums[3] if role == "gradient" else None
        return Measurement(known.rows, sums[0], sums[1], sums[2], norm), known.places

    def _tensors(self, role: Role) -> list[Tensor | None]:
        return [tensor_of(entry.parameter, role) for entry in self.entries]

    def _plan(self, role: Role, tensors: Sequence[Tensor | None]) -> _Plan:
        """The plan for tensors held like these, made anew when one is held differently than before."""
        held = [None if t is None else (t.dtype, t.stride() if t.layout == torch.strided else None) for t in tensors]
        plan = self._plans.get(role)
        if plan is None or plan.held != held:
            plan = self._plans[role] = _Plan(self.entries, tensors, held)
        return plan

    def _means_shape(self, index: int) -> torch.Size:
        entry = self.entries[index]
        assert entry.layout is not None
        return means_shape(entry.shape, entry.layout.dims)


class _Plan:
    """Which tensors go to which batch, and which to the plain store."""

    def __init__(self, entries: Sequence[Entry], tensors: Sequence[Tensor | None], held: Sequence[object]) -> None:
        self.held = held
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[int, Rows]]] = {}
        for i, (entry, tensor) in enumerate(zip(entries, tensors, strict=True)):
            rows = None if tensor is None else _rows(entry, tensor)
            if tensor is not None and rows is not None:
                groups.setdefault((tensor.device, tensor.dtype), []).append((i, rows))
        self.batches = [
            (Batch(device, dtype, [rows for _, rows in group]), [i for i, _ in group])
            for (device, dtype), group in groups.items()
        ]
        taken = {i for _, indices in self.batches for i in indices}
        self.rest_indices = [i for i in range(len(entries)) if i not in taken]
        self.rest = TensorStore([entries[i] for i in self.rest_indices])
        # On the device now: to upload them in a step would make the host wait.
        device = next((tensor.device for tensor in tensors if tensor is not None), None)
        self.rest_places = torch.tensor(self.rest_indices, dtype=torch.int64, device=device)


def _rows(entry: Entry, tensor: Tensor) -> Rows | None:
    layout = entry.layout
    if layout is None or tensor.layout != torch.strided or is_dtensor(tensor) or not takes(tensor.device, tensor.dtype):
        return None
    if (layout.groups > 1 and 0 in layout.dims) or tensor.shape != entry.shape:
        return None
    return as_rows(tensor.shape, tensor.stride(), layout.dims)


def _pick(tensors: Sequence[Tensor | None], indices: Sequence[int]) -> list[Tensor]:
    return [tensor for tensor in (tensors[i] for i in indices) if tensor is not None]


def _some(to: Means | None, indices: Sequence[int]) -> Means | None:
    return None if to is None else [to[i] for i in indices]


def _goals(to: Means | None, indices: Sequence[int]) -> list[Tensor] | None:
    if to is None:
        return None
    return [goal.to(torch.float32).contiguous() for goal in _pick(to, indices)]
