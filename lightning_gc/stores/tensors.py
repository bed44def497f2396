"""Weight vectors in tensors of their own: dense, sparse COO, or DTensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from lightning_gc.blocks import is_large
from lightning_gc.dims import fan_in_of
from lightning_gc.functional import recentre_, squared_norm, vector_means
from lightning_gc.selection import Entry
from lightning_gc.sparse import scatter_means
from lightning_gc.stores.base import Means, Measurement, Role, Store, concatenate
from lightning_gc.stores.measured import Centralized, Measured, Measurer
from lightning_gc.traits import is_dtensor, is_expanded, is_narrow

_GRADIENT = attrgetter("grad")  # half the time of `parameter.grad` in a loop


class TensorStore(Store):
    """Each parameter and its gradient is a tensor of the parameter's whole shape."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._layouts = [(e.parameter, e.layout.dims, e.layout.groups) for e in self.entries if e.layout]
        # What needs no further look at each step: the two calls of the equation, and nothing else.
        self._plain = [
            (index, parameter, dims, 1 / max(1, fan_in_of(parameter.shape, dims)))
            for index, (parameter, dims, groups) in enumerate(self._layouts)
            if _is_plain(parameter, dims, groups)
        ]
        self._plain_parameters = [parameter for _, parameter, *_ in self._plain]
        plain = {index for index, *_ in self._plain}
        self._others = [(i, *layout) for i, layout in enumerate(self._layouts) if i not in plain]
        self._measurer: Measurer | None = None

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
        found = False
        for index, (parameter, dims, groups) in enumerate(self._layouts):
            target = None if to is None else to[index]
            tensor = None if _is_unknown(to, index) else _writable(parameter, role)
            if tensor is not None:
                found = True
                recentre_(tensor, dims, groups, target)
        return found

    @torch.no_grad()
    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement | None:
        """See :meth:`Store.recentre_measured_`."""
        if role == "gradient" and to is None:
            found: dict[int, Centralized | Measured] = {}
            self._centralize_gradients_(found)
            return self._measure(found)
        present, before, after, norms = [], [], [], []
        for index, (parameter, dims, groups) in enumerate(self._layouts):
            target = None if to is None else to[index]
            tensor = None if _is_unknown(to, index) else _writable(parameter, role)
            if tensor is None:
                continue
            if role == "gradient":
                norms.append(squared_norm(tensor))
            removed, left = _recentre_and_look_(tensor, dims, groups, target)
            present.append(index)
            before.append(removed)
            after.append(left if target is None else left - target)
        if not present:
            return None
        return concatenate(self.entries, present, before, after, norms if role == "gradient" else None)

    def _centralize_gradients_(self, measured: dict[int, Centralized | Measured] | None = None) -> bool:
        """The path of every step: no more Python than the two calls a parameter need.

        What was centralized is put into `measured`. The arithmetic is the same with and without.
        """
        found = False
        others = self._others
        gradients: Iterator[Tensor | None] = map(_GRADIENT, self._plain_parameters)
        for gradient, (index, parameter, dims, reciprocal) in zip(gradients, self._plain, strict=True):
            if gradient is None:
                continue
            if gradient.is_sparse:
                others = [*others, (index, parameter, dims, 1)]
                continue
            found = True
            # Not sub_(mean()): on a CPU, mean() is sum() and one more call.
            sums = gradient.sum(dims, True)
            try:
                gradient.sub_(sums, alpha=reciprocal)
            except RuntimeError:
                if not is_expanded(gradient):
                    raise
                gradient = parameter.grad = gradient.contiguous().sub_(sums, alpha=reciprocal)
            if measured is not None:
                measured[index] = Centralized.of(gradient, dims, sums)
        for index, parameter, dims, groups in others:
            gradient = _writable(parameter, "gradient")
            if gradient is None:
                continue
            found = True
            if measured is None:
                recentre_(gradient, dims, groups)
            else:
                norm = squared_norm(gradient)
                measured[index] = Measured(*_recentre_and_look_(gradient, dims, groups), norm)
        return found

    def _measure(self, found: dict[int, Centralized | Measured]) -> Measurement | None:
        if not found:
            return None
        if self._measurer is None or not self._measurer.fits(found):
            self._measurer = Measurer(self.entries, found)
        return self._measurer(found)


def _recentre_and_look_(
    tensor: Tensor, dims: tuple[int, ...], groups: int, to: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What was removed from all the weight vectors, and their means after."""
    removed = recentre_(tensor, dims, groups, to)
    if tensor.is_sparse:
        removed = scatter_means(tensor, removed)
    return removed, vector_means(tensor, dims, groups)


def _is_plain(parameter: Tensor, dims: tuple[int, ...], groups: int) -> bool:
    """Whether a dense gradient of the parameter can be summed in its own dtype, as it is."""
    # A parameter may take gradients of another dtype, or (None) of any.
    gradient_dtype = getattr(parameter, "grad_dtype", parameter.dtype)
    if groups != 1 or gradient_dtype != parameter.dtype or is_narrow(parameter) or is_dtensor(parameter):
        return False
    return parameter.device.type != "cpu" or not is_large(parameter, dims)


def tensor_of(parameter: Tensor, role: Role) -> Tensor | None:
    """The gradient, or the weight itself; None where there is no gradient, or the weight is frozen."""
    if role == "gradient":
        return parameter.grad
    return parameter if parameter.requires_grad else None


def _is_unknown(to: Means | None, index: int) -> bool:
    """Whether there is no mean to move to: the parameter was frozen when the means were taken."""
    return to is not None and to[index] is None


def _writable(parameter: Tensor, role: Role) -> Tensor | None:
    """The tensor, after an expanded gradient, whose elements share memory, was replaced by a copy."""
    tensor = tensor_of(parameter, role)
    if role == "gradient" and tensor is not None and is_expanded(tensor):
        tensor = tensor.contiguous()
        parameter.grad = tensor
    return tensor
