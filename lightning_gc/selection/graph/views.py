"""What views do with the axes of a tensor, and which of them a sum takes away."""

from __future__ import annotations

from lightning_gc.selection.graph.axes import Unreadable, broadcast, regrouped, resized, sizes
from lightning_gc.selection.graph.kinds import EXPANDS, RESHAPES, SELECTS, SLICES
from lightning_gc.selection.graph.nodes import saved_dims
from lightning_gc.selection.graph.states import State, Step


def viewed(step: Step) -> State:
    """The tensor after a view of it, or after a copy.

    Raises:
        Unreadable: Where the dims have gone to can't be told.
    """
    axes, name, node, state = step.state.axes, step.name, step.node, step.state
    if name == "T":
        return state.at(axes[::-1])
    if name == "Transpose":
        moved = list(axes)
        (a,), (b,) = (saved_dims(node, dim, len(axes)) for dim in ("dim0", "dim1"))
        moved[a], moved[b] = moved[b], moved[a]
        return state.at(tuple(moved))
    if name == "Permute":
        return state.at(tuple(axes[dim] for dim in saved_dims(node, "dims", len(axes))))
    if name in SELECTS:
        (dim,) = saved_dims(node, "dim", len(axes))
        return State(axes[:dim] + axes[dim + 1 :], state.gone + axes[dim], state.met)
    if name in SLICES:
        return state.at(resized(axes, step.shape))
    if name in EXPANDS:
        return state.at(broadcast(axes, step.shape))
    assert name in RESHAPES, name
    # Most of what is called a reshape is none: a copy, or an axis of size 1 more or less.
    return state if sizes(axes) == step.shape else state.at(regrouped(axes, step.shape))


def summed_axes(step: Step) -> tuple[int, ...]:
    """The axes that a sum or mean goes over."""
    every = tuple(range(len(step.state.axes)))
    try:
        return saved_dims(step.node, "dim", len(every)) or every
    except Unreadable:
        return every  # where there are no dims to tell
