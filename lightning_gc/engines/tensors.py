"""Weight vectors in tensors of their own: dense, sparse COO, or DTensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor

from lightning_gc.engines.chunks import Chunk, plan_chunks
from lightning_gc.engines.plain import Plain, centralize_, centralize_measured_, is_not_plain, is_plain, plan
from lightning_gc.engines.store import Means, Role, Store
from lightning_gc.equation.projection import recentre_, recentre_measured_, vector_means
from lightning_gc.equation.traits import is_dtensor, is_expanded
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.selection import Entry

_GRADIENT = attrgetter("grad")  # half the time of `parameter.grad` in a loop
T = TypeVar("T")


class TensorStore(Store):
    """Each parameter and its gradient is a tensor of the parameter's whole shape."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._layouts = [(e.parameter, e.layout.dims, e.layout.groups) for e in self.entries if e.layout]
        self._plan_steps({place for place, (p, _, groups) in enumerate(self._layouts) if is_plain(p, groups)})

    def _plan_steps(self, plain: set[int]) -> None:
        """Set apart what needs no further look at each step: the two calls of the equation, and nothing else."""
        self._plain = {one.place: one for one in plan(sorted(plain), self._layouts)}
        self._others = [place for place in range(len(self._layouts)) if place not in plain]
        self._in_blocks = [one for one in self._plain.values() if one.rows_per_block]
        whole = [one for one in self._plain.values() if not one.rows_per_block]
        # As columns, which a loop goes through in less time than through objects.
        self._whole = [[getattr(one, name) for one in whole] for name in ("parameter", "dims", "reciprocal", "place")]
        self._refused: list[int] = []
        self._chunks: dict[bool, list[Chunk]] = {}

    @torch.no_grad()
    def means(self, role: Role) -> Means:
        """See :meth:`Store.means`."""
        tensors = [tensor_of(p, role) for p, _, _ in self._layouts]
        return [
            None if tensor is None else vector_means(tensor, dims, groups)
            for tensor, (_, dims, groups) in zip(tensors, self._layouts, strict=True)
        ]

    @torch.no_grad()
    def recentre_(self, role: Role, to: Means | None = None) -> bool:
        """See :meth:`Store.recentre_`."""
        if role == "gradient" and to is None:
            moved = [self._centralize_whole_()]
            moved += [self._attempt(centralize_, one) is not None for one in self._in_blocks]
            self._set_refused_apart()
            places: Sequence[int] = self._others
        else:
            moved, places = [], range(len(self._layouts))
        moved += [self._recentre_one_(place, role, to) for place in places]
        return any(moved)

    @torch.no_grad()
    def recentre_measured_(self, role: Role, to: Means | None = None, *, each: bool = True) -> Measurement | None:
        """See :meth:`Store.recentre_measured_`."""
        plain = self._plain if role == "gradient" and to is None else {}
        if each:
            return self._measure_each_(plain, role, to)
        if bool(plain) not in self._chunks:
            self._chunks[bool(plain)] = plan_chunks(self.entries, list(plain))
        found = [
            self._measure_sums_(chunk) if chunk.has_sums else self._measure_means_(chunk, role, to)
            for chunk in self._chunks[bool(plain)]
        ]
        found += [self._measure_one_(place, role, to) for place in self._set_refused_apart()]
        measured = [one for one in found if one is not None]
        return Measurement.added(measured) if measured else None

    def _centralize_whole_(self) -> bool:
        """The path of every step: :func:`centralize_` with no more Python than its two calls need."""
        found = False
        parameters, *known = self._whole
        for gradient, dims, reciprocal, place in zip(list(map(_GRADIENT, parameters)), *known, strict=True):
            if gradient is None:
                continue
            try:
                gradient.sub_(gradient.sum(dims, True), alpha=reciprocal)
                found = True
            except RuntimeError:
                if not is_not_plain(gradient):
                    raise
                self._refused.append(place)
        return found

    def _attempt(self, act: Callable[..., T], one: Plain, *args: Tensor) -> T | None:
        """Act on a gradient that is taken to be plain; None if it is not there, or not plain after all."""
        gradient = one.parameter.grad
        if gradient is None:
            return None
        try:
            return act(one, gradient, *args)
        except RuntimeError:
            if not is_not_plain(gradient):
                raise
            self._refused.append(one.place)
            return None

    def _set_refused_apart(self) -> Sequence[int]:
        """For good: what has a sparse gradient once has one in every step."""
        refused = self._refused
        if refused:
            self._plan_steps(set(self._plain).difference(refused))
        return refused

    def _measure_each_(self, plain: Mapping[int, Plain], role: Role, to: Means | None) -> Measurement | None:
        found: dict[int, Measurement] = {}
        for place in range(len(self._layouts)):
            sums = self._attempt(centralize_measured_, plain[place]) if place in plain else None
            if sums is not None:
                found[place] = _of_sums(plain[place], *sums)
            elif place not in plain or place in self._refused:
                one = self._measure_one_(place, role, to)
                if one is not None:
                    found[place] = one
        self._set_refused_apart()
        if not found:
            return None
        nothing = next(iter(found.values())).nothing()
        return Measurement.joined([found.get(i, nothing) for i in range(len(self._layouts))])

    def _measure_sums_(self, chunk: Chunk) -> Measurement | None:
        """Centralize the plain gradients of a chunk."""
        found: list[Tensor] = []
        vectors = 0
        for slot in chunk.slots:
            one = self._plain[slot.place]
            if chunk.copied:
                centralized = self._attempt(centralize_, one, slot.before)
            else:
                sums = self._attempt(centralize_measured_, one, slot.before, slot.after)
                centralized = sums[-1] if sums else None
            if centralized is None:
                slot.clear()
                continue
            found.append(centralized)
            vectors += slot.before.numel()
        if not found:
            return None
        return chunk.measured_from_copy(vectors, found) if chunk.copied else chunk.measured(vectors, found)

    def _measure_means_(self, chunk: Chunk, role: Role, to: Means | None) -> Measurement | None:
        """Recentre the other tensors of a chunk."""
        norms: list[Tensor] = []
        vectors = 0
        for slot in chunk.slots:
            means = self._recentre_measured_one_(slot.place, role, to)
            if means is None:
                slot.clear()
                continue
            before, after, squared_norm = means
            slot.before.copy_(before.flatten())
            slot.after.copy_(after.flatten())
            norms.append(squared_norm.sqrt())
            vectors += slot.before.numel()
        if not norms:
            return None
        return chunk.measured(vectors, norms if role == "gradient" else [])

    def _measure_one_(self, place: int, role: Role, to: Means | None) -> Measurement | None:
        means = self._recentre_measured_one_(place, role, to)
        if means is None:
            return None
        before, after, squared_norm = means
        fan_in = self.entries[place].fan_in
        return Measurement.of_one(before, after, fan_in, squared_norm if role == "gradient" else None)

    def _recentre_measured_one_(self, place: int, role: Role, to: Means | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """The means of one parameter before and after, less their goals, and the squared norm before."""
        tensor, goal = self._movable(place, role, to)
        if tensor is None:
            return None
        _, dims, groups = self._layouts[place]
        before, after, squared_norm = recentre_measured_(tensor, dims, groups, goal)
        return _whole(before), _whole(after if goal is None else after - goal), _whole(squared_norm)

    def _recentre_one_(self, place: int, role: Role, to: Means | None) -> bool:
        """Move the means of one parameter to `to`; whether there was anything to move."""
        tensor, goal = self._movable(place, role, to)
        if tensor is not None:
            _, dims, groups = self._layouts[place]
            recentre_(tensor, dims, groups, goal)
        return tensor is not None

    def _movable(self, place: int, role: Role, to: Means | None) -> tuple[Tensor | None, Tensor | None]:
        """What there is to move, and where to; None for zero."""
        goal = None if to is None else to[place]
        # No mean to move to: the parameter was frozen when the means were taken.
        frozen = to is not None and goal is None
        return None if frozen else _writable(self._layouts[place][0], role), goal


def _whole(tensor: Tensor) -> Tensor:
    """Out of a DTensor, the tensor itself: what is logged of it goes together with what is logged of others."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def _of_sums(one: Plain, before: Tensor, after: Tensor, norm: Tensor) -> Measurement:
    means = before * one.reciprocal, after * one.reciprocal
    return Measurement.of_one(*means, one.fan_in, norm.square()).with_removed()


def tensor_of(parameter: Tensor, role: Role) -> Tensor | None:
    """The gradient, or the weight itself; None where there is no gradient, or the weight is frozen."""
    if role == "gradient":
        return parameter.grad
    return parameter if parameter.requires_grad else None


def _writable(parameter: Tensor, role: Role) -> Tensor | None:
    """The tensor, after an expanded gradient, whose elements share memory, was replaced by a copy."""
    tensor = tensor_of(parameter, role)
    if role == "gradient" and tensor is not None and is_expanded(tensor):
        tensor = tensor.contiguous()
        parameter.grad = tensor
    return tensor
