"""What a selection makes of what the graph of a loss says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_gc.selection.graph import Graph, Reading, leaves, read
from lightning_gc.selection.layouts import READ, Layout, LeftAlone, eligible

Readings = Mapping[nn.Parameter, Reading]


def readings_of(module: nn.Module, loss: Any) -> Readings:
    """What the graph of a loss says of all parameters of a module.

    Raises:
        TypeError: The loss is not a tensor.
        ValueError: It has no graph.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss={loss!r} is not a tensor. Pass what you would call backward() on.")
    if loss.grad_fn is None:
        raise ValueError(
            "loss has no graph to read: it does not depend on parameters that require gradients, or was computed under "
            "torch.no_grad() or detached. Pass what you would call backward() on, before backward() is called."
        )
    parameters = list(module.parameters())
    graph = Graph(loss, parameters)
    return read(graph, leaves(graph, parameters))


def as_read(known: Layout | LeftAlone, reading: Reading, shape: Sequence[int]) -> Layout | LeftAlone:
    """What is so far known of a parameter, corrected by what the graph says of it.

    Torch's own layers are what the table says; all else is what the graph says, where it says something.
    """
    if not (known.assumed or known.third_party) or reading.kind == "unread":
        return known
    if reading.kind == "summed":
        layout = Layout(reading.dims, reading.groups, READ)
        # The class says more than where it was read, as long as both say the same.
        said = isinstance(known, Layout) and known.third_party and same_layout(known, layout, shape)
        return known if said else eligible(layout, shape)
    if isinstance(known, LeftAlone) and known.third_party:
        return known
    return LeftAlone(f"not a set of weight vectors: {reading.why} ({READ})")


def same_layout(a: Layout | None, b: Layout | None, shape: Sequence[int]) -> bool:
    """Whether both centralize the same, or nothing: dims of size 1 make no difference."""
    if a is None or b is None:
        return a is b
    return a.groups == b.groups and [d for d in a.dims if shape[d] > 1] == [d for d in b.dims if shape[d] > 1]
