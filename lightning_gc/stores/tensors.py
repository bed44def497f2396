"""Weight vectors in tensors of their own: dense, sparse COO, or DTensors."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gc.blocks import centralize_rows_, centralize_rows_measured_, rows_per_block
from lightning_gc.dims import fan_in_of
from lightning_gc.functional import recentre_, recentre_measured_, vector_means
from lightning_gc.measurement import Measurement
from lightning_gc.selection import Entry
from lightning_gc.stores.base import Means, Role, Store
from lightning_gc.stores.measured import Measurer, Seen, is_small
from lightning_gc.traits import is_dtensor, is_expanded, is_narrow

_GRADIENT = attrgetter("grad")  # half the time of `parameter.grad` in a loop


class TensorStore(Store):
    """Each parameter and its gradient is a tensor of the parameter's whole shape."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._layouts = [(e.parameter, e.layout.dims, e.layout.groups) for e in self.entries if e.layout]
        self._measurer: Measurer | None = None
        self._plan_steps({index for index, (p, _, groups) in enumerate(self._layouts) if _is_plain(p, groups)})

    def _plan_steps(self, plain: set[int]) -> None:
        """Set apart what needs no further look at each step: the two calls of the equation, and nothing else."""
        total = sum(self._layouts[index][0].nbytes for index in plain)
        self._plain = [
            _plan(index, p, dims, total) for index, (p, dims, _) in enumerate(self._layouts) if index in plain
        ]
        self._plain_parameters = [self._layouts[one.place][0] for one in self._plain]
        self._others = [index for index in range(len(self._layouts)) if index not in plain]

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
            return self._centralize_gradients_()
        moved = [self._recentre_one_(index, role, to) for index in range(len(self._layouts))]
        return any(moved)

    @torch.no_grad()
    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement | None:
        """See :meth:`Store.recentre_measured_`."""
        seen = Seen()
        if role == "gradient" and to is None:
            self._centralize_gradients_(seen)
        else:
            for index in range(len(self._layouts)):
                self._recentre_one_(index, role, to, seen)
        if not (seen.small or seen.measured):
            return None
        if self._measurer is None or not self._measurer.fits(seen):
            self._measurer = Measurer(self.entries, seen)
        return self._measurer(seen)

    def _centralize_gradients_(self, seen: Seen | None = None) -> bool:
        """The path of every step: no more Python than the two calls a parameter need.

        What was centralized is added to `seen`. The arithmetic is the same with and without.
        """
        found = False
        refused = []
        has_one_thread = torch.get_num_threads() == 1
        for gradient, (index, dims, fan_in, reciprocal, small, rows) in zip(
            map(_GRADIENT, self._plain_parameters), self._plain, strict=True
        ):
            if gradient is None:
                continue
            try:
                if rows and has_one_thread and gradient.layout == torch.strided and gradient.stride(0) == fan_in:
                    if seen is not None:
                        seen.add(index, fan_in, *centralize_rows_measured_(gradient, dims, reciprocal, rows))
                    else:
                        centralize_rows_(gradient, dims, reciprocal, rows)
                    found = True
                    continue
                # Not sub_(mean()): on a CPU, mean() is sum() and one more call.
                sums = gradient.sum(dims, True)
                gradient.sub_(sums, alpha=reciprocal)
            except RuntimeError:  # nothing was written
                if not (gradient.is_sparse or is_expanded(gradient)):
                    raise
                refused.append(index)
                continue
            found = True
            if seen is None:
                continue
            if small:
                seen.small.append((index, gradient, sums))
            else:
                seen.add(index, fan_in, sums, gradient.sum(dims, True), torch.linalg.vector_norm(gradient))
        if refused:  # for good: what has a sparse gradient once has one in every step
            self._plan_steps({one.place for one in self._plain}.difference(refused))
        for index in self._others:
            found |= self._recentre_one_(index, "gradient", None, seen)
        return found

    def _recentre_one_(self, index: int, role: Role, to: Means | None, seen: Seen | None = None) -> bool:
        """Move the means of one parameter to `to`; whether there was anything to move."""
        parameter, dims, groups = self._layouts[index]
        target = None if to is None else to[index]
        # No mean to move to: the parameter was frozen when the means were taken.
        tensor = None if to is not None and target is None else _writable(parameter, role)
        if tensor is None:
            return False
        if seen is None:
            recentre_(tensor, dims, groups, target)
        else:
            before, after, squared_norm = recentre_measured_(tensor, dims, groups, target)
            norm = squared_norm.sqrt() if role == "gradient" else None
            seen.add(index, 1, before, after if target is None else after - target, norm)
        return True


class _Plain(NamedTuple):
    place: int
    dims: tuple[int, ...]
    fan_in: int
    reciprocal: float
    small: bool
    rows_per_block: int


def _plan(place: int, parameter: Tensor, dims: tuple[int, ...], total_bytes: int) -> _Plain:
    fan_in = fan_in_of(parameter.shape, dims)
    # Where weight vectors span dim 0, they are not rows.
    rows = 0 if 0 in dims else rows_per_block(parameter, total_bytes)
    return _Plain(place, dims, fan_in, 1 / max(1, fan_in), is_small(parameter), rows)


def _is_plain(parameter: Tensor, groups: int) -> bool:
    """Whether a dense gradient of the parameter can be summed in its own dtype, as it is."""
    # A parameter may take gradients of another dtype, or (None) of any.
    gradient_dtype = getattr(parameter, "grad_dtype", parameter.dtype)
    return groups == 1 and not is_narrow(parameter) and not is_dtensor(parameter) and gradient_dtype == parameter.dtype


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
