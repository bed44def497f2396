"""Weight vectors in tensors of their own: dense, sparse COO, or DTensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gc.engines.store import Means, Role, Store
from lightning_gc.equation.projection import norm_of, recentre_, subtract_means_, vector_means, vector_sums
from lightning_gc.equation.sparse import scatter
from lightning_gc.equation.traits import is_dtensor, is_expanded, is_narrow
from lightning_gc.measuring.measurement import Measurement, Part
from lightning_gc.selection import Entry


class TensorStore(Store):
    """Each parameter and its gradient is a tensor of the parameter's whole shape."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._layouts = [(e.parameter, e.layout.dims, e.layout.groups, e.fan_in) for e in self.entries if e.layout]
        self._plain, self._others = [], []
        for place, (parameter, dims, groups, fan_in) in enumerate(self._layouts):
            if _is_plain(parameter, groups):
                self._plain.append((place, parameter, dims, fan_in))
            else:
                self._others.append(place)

    @torch.no_grad()
    def means(self, role: Role) -> Means:
        """See :meth:`Store.means`."""
        tensors = [tensor_of(parameter, role) for parameter, *_ in self._layouts]
        return [
            None if tensor is None else vector_means(tensor, dims, groups)
            for tensor, (_, dims, groups, _) in zip(tensors, self._layouts, strict=True)
        ]

    @torch.no_grad()
    def recentre_(self, role: Role, to: Means | None = None) -> bool:
        """See :meth:`Store.recentre_`."""
        if role == "gradient" and to is None:
            moved = self._centralize_plain_()
            places: Sequence[int] = self._others
        else:
            moved, places = False, range(len(self._layouts))
        for place in places:
            moved = self._recentre_one_(place, role, to) or moved
        return moved

    @torch.no_grad()
    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement | None:
        """See :meth:`Store.recentre_measured_`."""
        found = [self._recentre_measured_one_(place, role, to) for place in range(len(self._layouts))]
        first = next((part for part in found if part is not None), None)
        if first is None:
            return None
        nothing = first.nothing()
        return Measurement.of([nothing if part is None else part for part in found], first.before.device)

    def _centralize_plain_(self) -> bool:
        """The path of every step, for the models that have hundreds of small gradients: no question but the two calls."""
        found = False
        for place, parameter, dims, fan_in in self._plain:
            gradient = parameter.grad
            if gradient is None:
                continue
            found = True
            try:
                subtract_means_(gradient, dims, fan_in)
            except RuntimeError:
                if not (gradient.is_sparse or is_expanded(gradient)):
                    raise
                self._recentre_one_(place, "gradient", None)
        return found

    def _recentre_measured_one_(self, place: int, role: Role, to: Means | None) -> Part | None:
        """Recentre one parameter, and look at its means after, and at the norm of a gradient before."""
        tensor, goal = self._movable(place, role, to)
        if tensor is None:
            return None
        _, dims, groups, fan_in = self._layouts[place]
        norm = norm_of(tensor) if role == "gradient" else None
        before = recentre_(tensor, dims, groups, goal)
        after = vector_sums(tensor, dims, groups)
        if tensor.is_sparse:
            before = scatter(tensor, before)
        if goal is not None:
            after = after.sub_(goal, alpha=fan_in)
        return Part.of(_whole(before), _whole(after), fan_in, 1 / fan_in, None if norm is None else _whole(norm))

    def _recentre_one_(self, place: int, role: Role, to: Means | None) -> bool:
        """Move the means of one parameter to `to`; whether there was anything to move."""
        tensor, goal = self._movable(place, role, to)
        if tensor is not None:
            _, dims, groups, _ = self._layouts[place]
            recentre_(tensor, dims, groups, goal)
        return tensor is not None

    def _movable(self, place: int, role: Role, to: Means | None) -> tuple[Tensor | None, Tensor | None]:
        """What there is to move, and where to; None for zero."""
        goal = None if to is None else to[place]
        # No mean to move to: the parameter was frozen when the means were taken.
        frozen = to is not None and goal is None
        return None if frozen else _writable(self._layouts[place][0], role), goal


def tensor_of(parameter: Tensor, role: Role) -> Tensor | None:
    """The gradient, or the weight itself; None where there is no gradient, or the weight is frozen."""
    if role == "gradient":
        return parameter.grad
    return parameter if parameter.requires_grad else None


def _is_plain(parameter: Tensor, groups: int) -> bool:
    """Whether a dense gradient of the parameter can be summed in its own dtype, as it is."""
    if parameter.device.type == "xla":  # see _writable()
        return False
    # A parameter may take gradients of another dtype, or (None) of any.
    gradient_dtype = getattr(parameter, "grad_dtype", parameter.dtype)
    return groups == 1 and not is_narrow(parameter) and not is_dtensor(parameter) and gradient_dtype == parameter.dtype


def _whole(tensor: Tensor) -> Tensor:
    """Out of a DTensor, the tensor itself: what is logged of it goes together with what is logged of others."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def _writable(parameter: Tensor, role: Role) -> Tensor | None:
    """The tensor, after an expanded gradient, whose elements share memory, was replaced by a copy.

    On XLA every gradient is: one that is expanded cannot be told, and changed in place it comes out wrong, without an
    error. A compiled program makes no copy of it.
    """
    tensor = tensor_of(parameter, role)
    if role == "gradient" and tensor is not None and (is_expanded(tensor) or tensor.device.type == "xla"):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        parameter.grad = tensor
    return tensor
