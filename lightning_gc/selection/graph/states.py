"""How far the walk has come: a tensor that is the parameter in some form, or that the parameter has gone into."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_gc.selection.graph.axes import LOOKED_UP, Axes, Axis, own_parts
from lightning_gc.selection.graph.nodes import Graph, Made, Node, Use, shape_of

Kind = Literal["summed", "apart", "looked up", "unread"]


@dataclass(frozen=True)
class Reading:
    """What one use of a parameter says, or all of them together.

    Attributes:
        kind: "summed" over `dims`, so that these are the fan-in dims; "apart": added to data or scaling them, no set of
            weight vectors; "looked up", which is none either; or "unread": nothing.
        dims: The dims of the parameter that are summed over, without those of size 1.
        groups: Into how many groups dim 0 falls, if it is summed over group by group.
        why: The reason, for people to read.
    """

    kind: Kind
    dims: tuple[int, ...] = ()
    groups: int = 1
    why: str = ""


def unread(why: str) -> Reading:
    """The reading that says nothing."""
    return Reading("unread", why=why)


@dataclass(frozen=True)
class Met:
    """That the parameter has met data.

    Attributes:
        reading: What that says, if nothing that follows speaks against it.
        by: The operation: only of a multiplication element by element is a sum still to be expected.
        clean: Whether nothing but views and additions has followed, nor factors that are no constants after a sum.
        constant: Whether it met a constant, which was taken for data.
        spread: Whether the result was broadcast since, as a weight is along a batch.
    """

    reading: Reading
    by: Literal["sum", "addition", "multiplication"]
    clean: bool = True
    constant: bool = False
    spread: bool = False


@dataclass(frozen=True)
class State:
    """A tensor on the way from a parameter to the loss.

    Attributes:
        axes: What its axes are made of.
        gone: The parts of the parameter that were selected away.
        met: That it has met data; None while it is the parameter alone, in some form.
    """

    axes: Axes
    gone: Axis = ()
    met: Met | None = None

    def at(self, axes: Axes) -> State:
        """The same with other axes."""
        return replace(self, axes=axes)

    @property
    def looked_up(self) -> bool:
        """Whether indices have gone into it."""
        return any(part.dim == LOOKED_UP for axis in self.axes for part in axis)

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Whether all of a parameter of this shape is in it."""
        parts = own_parts(self.axes)
        return all(math.prod(p.size for p in parts if p.dim == dim) == size for dim, size in enumerate(shape))


Outcome = State | Reading | None
"""The walk goes on from a state, ends with a reading, or ends without one."""


@dataclass(frozen=True)
class Step:
    """One step of the walk: from a tensor to one operation on it.

    Attributes:
        graph: The graph.
        use: The operation, and which of its operands the tensor is.
        state: The tensor.
        whole: The shape of the parameter.
        output: The output of the operation that the walk goes on with, where it has several.
    """

    graph: Graph
    use: Use
    state: State
    whole: tuple[int, ...]
    output: int = 0

    @property
    def node(self) -> Node:
        """The node of the operation."""
        return self.use.user

    @property
    def name(self) -> str:
        """The name of the operation."""
        return self.graph.name(self.use.user)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what the operation gives."""
        return shape_of(self.use.user, self.output)

    @property
    def others(self) -> list[Made]:
        """What the other operands are made of."""
        return self.graph.others(self.node, self.use.operand)

    def summed(self, over: Collection[int]) -> Reading:
        """What it says that the operation sums over these axes."""
        axes, gone = self.state.axes, self.state.gone
        parts = own_parts(axes[i] for i in over)
        if any(part.dim == LOOKED_UP for i in over for part in axes[i]):
            return unread(f"{self.name} sums over indices")
        if not parts:
            return unread(f"{self.name} sums over no dim of its own")
        dims = sorted({part.dim for part in parts})
        groups = 1
        kept_parts = own_parts([*(axis for i, axis in enumerate(axes) if i not in over), gone])
        for dim in dims:
            summed = [part for part in parts if part.dim == dim]
            kept = [part for part in kept_parts if part.dim == dim]
            if math.prod(part.size for part in (*kept, *summed)) != self.whole[dim]:
                return unread(f"{self.name} sums over a slice of dim {dim}")
            if kept:
                outer = min(part.stride for part in kept) >= max(part.stride * part.size for part in summed)
                if dim != 0 or not outer:
                    return unread(f"{self.name} sums over a part of dim {dim}")
                groups = math.prod(part.size for part in kept)
        return Reading("summed", tuple(dims), groups, f"{self.name} sums over them")
