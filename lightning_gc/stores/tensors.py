"""Weight vectors in tensors of their own: dense, sparse COO, or DTensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gc.functional import (
    centralize,
    is_expanded,
    is_narrow,
    recentre_,
    squared_norm,
    vector_means,
)
from lightning_gc.selection import Entry
from lightning_gc.sparse import scatter_means
from lightning_gc.stores.base import Means, Measurement, Role, Store, concatenate


class TensorStore(Store):
    """Each parameter and its gradient is a tensor of the parameter's whole shape."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._layouts = [(e.parameter, e.layout.dims, e.layout.groups) for e in self.entries if e.layout]
        # What needs no further look at each step: the two calls of the equation, and nothing else.
        self._plain = [(p, dims) for p, dims, groups in self._layouts if groups == 1 and not is_narrow(p)]
        self._special = [(p, dims, g) for p, dims, g in self._layouts if g > 1 or is_narrow(p)]

    @torch.no_grad()
    def means(self, role: Role) -> Means:
        """See :meth:`Store.means`."""
        tensors = [_tensor(p, role) for p, _, _ in self._layouts]
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
            tensor = _writable(parameter, role)
            if tensor is not None:
                found = True
                recentre_(tensor, dims, groups, None if to is None else to[index])
        return found

    @torch.no_grad()
    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement | None:
        """See :meth:`Store.recentre_measured_`."""
        present, before, after, norms = [], [], [], []
        for index, (parameter, dims, groups) in enumerate(self._layouts):
            tensor = _writable(parameter, role)
            if tensor is None:
                continue
            target = None if to is None else to[index]
            if role == "gradient":
                norms.append(squared_norm(tensor))
            removed = recentre_(tensor, dims, groups, target)
            if tensor.is_sparse:
                removed = scatter_means(tensor, removed)
            left = vector_means(tensor, dims, groups)
            present.append(index)
            before.append(removed)
            after.append(left if target is None else left - target)
        if not present:
            return None
        return concatenate(self.entries, present, before, after, norms if role == "gradient" else None)

    def _centralize_gradients_(self) -> bool:
        """The path of every step: no more Python than the two calls a parameter need."""
        found = False
        for parameter, dims in self._plain:
            gradient = parameter.grad
            if gradient is None:
                continue
            found = True
            try:
                if gradient.is_sparse:
                    recentre_(gradient, dims)
                else:
                    gradient.sub_(gradient.mean(dims, True))
            except RuntimeError:
                if not is_expanded(gradient):
                    raise
                parameter.grad = centralize(gradient, dims)
        for parameter, dims, groups in self._special:
            gradient = _writable(parameter, "gradient")
            if gradient is not None:
                found = True
                recentre_(gradient, dims, groups)
        return found


def _tensor(parameter: Tensor, role: Role) -> Tensor | None:
    if role == "gradient":
        return parameter.grad
    return parameter if parameter.requires_grad else None


def _writable(parameter: Tensor, role: Role) -> Tensor | None:
    """The tensor, after an expanded gradient, whose elements share memory, was replaced by a copy."""
    tensor = _tensor(parameter, role)
    if tensor is not None and is_expanded(tensor):
        tensor = tensor.contiguous()
        parameter.grad = tensor
    return tensor
