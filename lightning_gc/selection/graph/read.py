"""What a layer does with each of its parameters, read off autograd's graph of a loss.

A weight vector spans the dims that its layer sums over, and autograd has recorded that sum. From the leaf of a parameter
the walk goes on through views, and through what only gives the parameter another form, to the operation in which it
meets the data, and keeps account of where each dim of the parameter has gone to. Nothing is traced or run a second time,
and the forward is not touched.

No verdict is better than a wrong one: it speaks only where the parameter alone, in the place of a weight, meets data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from lightning_gc.selection.graph.after import after, end
from lightning_gc.selection.graph.alone import ADDED, AMONG_DATA, IN_PLACE_OF_DATA, SCALES, alone
from lightning_gc.selection.graph.axes import Unreadable, axes_of, regrouped
from lightning_gc.selection.graph.kinds import LOOK_UPS, SELECTS, SLICES
from lightning_gc.selection.graph.nodes import Graph, Node, outputs, shape_of
from lightning_gc.selection.graph.states import Outcome, Reading, State, Step, unread

LOOKED_UP = Reading("looked up", why="looked up by indices")
NO_WEIGHTS = (ADDED, SCALES, AMONG_DATA, IN_PLACE_OF_DATA, LOOKED_UP)
"""All readings of what is no set of weight vectors."""

P = TypeVar("P", bound=Tensor)


class Start(NamedTuple):
    """Where the walk of a parameter begins.

    Attributes:
        node: The node that gives the parameter: its leaf, or a view of what a strategy keeps it in, of any shape.
        output: Which of the node's outputs it is.
        shape: Its whole shape.
    """

    node: Node
    output: int
    shape: tuple[int, ...]


def read(graph: Graph, starts: Mapping[P, Sequence[Start]]) -> dict[P, Reading]:
    """What the graph says of each of these parameters."""
    if graph.is_second_order:
        return {parameter: unread("there are gradients of gradients in the loss") for parameter in starts}
    return {
        parameter: together(list(dict.fromkeys(use for start in there for use in _uses(graph, start))))
        for parameter, there in starts.items()
    }


def leaves(graph: Graph, parameters: Collection[P]) -> dict[P, list[Start]]:
    """The starts of those parameters that are leaves of the graph."""
    return {p: [Start(graph.leaves[p], 0, tuple(p.shape))] for p in parameters if p in graph.leaves}


def together(uses: Sequence[Reading]) -> Reading:
    """What all uses of a parameter say together."""
    kinds = {use.kind for use in uses}
    said = {(use.kind, use.dims, use.groups): use for use in uses}
    if "unread" in kinds:
        return next(use for use in uses if use.kind == "unread")
    if "summed" in kinds:
        sums = [use for use in said.values() if use.kind == "summed"]
        if len(sums) > 1 or "apart" in kinds:
            return unread("its uses say different things")
        return sums[0]
    return uses[0] if uses else unread("no use of it was read")


def _uses(graph: Graph, start: Start) -> Iterator[Reading]:
    visited = set()
    axes = axes_of(start.shape)
    if start.node not in graph.leaves.values():
        axes = regrouped(axes, shape_of(start.node, start.output))
    to_do = [(start.node, start.output, State(axes))]
    while to_do:
        node, output, state = reached = to_do.pop()
        if reached in visited:
            continue
        visited.add(reached)
        uses = graph.uses(node, output)
        if not uses and state.met is not None:
            yield end(state.met, "the loss")
        for use in uses:
            # Only what takes a tensor apart gives several that the walk can go on with.
            several = outputs(use.user) if graph.name(use.user) in SLICES | SELECTS else 1
            for i in range(several):
                outcome = _outcome(Step(graph, use, state, start.shape, i))
                if isinstance(outcome, Reading):
                    yield outcome
                elif outcome is not None:
                    to_do.append((use.user, i, outcome))
                    if state.met is None and graph.name(use.user) in LOOK_UPS:
                        yield LOOKED_UP


def _outcome(step: Step) -> Outcome:
    try:
        if 0 in step.shape:
            # No data came here. What was looked up may still have been for a product with them.
            return unread(f"{step.name} of nothing") if step.state.looked_up else None
        return alone(step) if step.state.met is None else after(step, step.state.met)
    except (Unreadable, IndexError, ValueError) as error:
        return unread(f"{step.name}: {error}")
