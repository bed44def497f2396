"""One parameter: whether it is centralized, over which dims, and why not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lightning_gc.equation.dims import fan_in_of
from lightning_gc.selection.layouts import Layout


@dataclass(frozen=True, eq=False, repr=False)
class Entry:
    """One parameter in a :class:`Selection`.

    Attributes:
        name: Its first qualified name, without the parts that wrappers put in.
        parameter: The parameter itself; None in what `callback.selection` is after fit, which keeps no model alive.
        shape: The shape of the whole parameter, also where a strategy holds only a shard of it.
        layout: Its fan-in dims, or None if it is left alone.
        reason: Why it is left alone or, for a frozen parameter, not centralized at present.
        open: Whether the graph of a loss may still say otherwise: what is said here is assumed, or comes from a
            table of layers that are not torch's.
    """

    name: str
    # Not typed as None too: nobody holds such an entry but who asks for it after fit, and all others would have to check.
    parameter: nn.Parameter
    shape: torch.Size
    layout: Layout | None = None
    reason: str = ""
    open: bool = False

    def __repr__(self) -> str:
        parts = [repr(self.name), f"shape={tuple(self.shape)}"]
        if self.layout is not None:
            parts += [f"dims={self.layout.dims}", f"groups={self.layout.groups}"][: 1 + (self.layout.groups > 1)]
            parts += [f"source={self.layout.source!r}"]
        parts += [f"reason={self.reason!r}"] if self.reason else []
        parts += ["parameter=None"] if self.parameter is None else []
        return f"Entry({', '.join(parts)})"

    @property
    def centralized(self) -> bool:
        """Whether the parameter is centralized, as things stand."""
        return self.layout is not None and not self.reason

    @property
    def fan_in(self) -> int:
        """The number of elements of one weight vector; 0 if it is left alone."""
        return fan_in_of(self.shape, self.layout.dims, self.layout.groups) if self.layout else 0

    @property
    def weight_vectors(self) -> int:
        """The number of weight vectors; 0 if it is left alone."""
        return self.shape.numel() // self.fan_in if self.layout else 0
