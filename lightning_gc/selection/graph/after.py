"""After a parameter has met the data: whether what follows takes back what that says."""

from __future__ import annotations

from dataclasses import replace

from lightning_gc.selection.graph.axes import DATA, Axes, Unreadable, broadcast, own_parts, resized
from lightning_gc.selection.graph.kinds import (
    ADDITIONS,
    ATTENTION,
    BILINEAR,
    CONVOLUTIONS,
    EXPANDS,
    JOINS,
    LINEAR,
    LOOK_UPS,
    LOSSES,
    NONLINEAR,
    OTHER_REDUCTIONS,
    PRODUCTS,
    SUMS,
    VIEWS,
)
from lightning_gc.selection.graph.nodes import Made
from lightning_gc.selection.graph.states import Met, Outcome, Reading, State, Step, unread
from lightning_gc.selection.graph.views import summed_axes, viewed

# After these, a sum is not one of products any more.
_ENDS = NONLINEAR | ATTENTION | LOSSES | OTHER_REDUCTIONS | LOOK_UPS | CONVOLUTIONS | {BILINEAR}


def after(step: Step, met: Met) -> Outcome:
    """Where one operation leads what the parameter and data have given."""
    try:
        return _next(step, met)
    except Unreadable as error:
        return end(met, str(error))


def end(met: Met, where: str) -> Reading:
    """What the meeting says when nothing more is to be learnt."""
    # Of a product element by element it isn't known then whether it is summed.
    return unread(f"{where} after a product") if met.by == "multiplication" else met.reading


def _next(step: Step, met: Met) -> Outcome:
    state, name = step.state, step.name
    if name in _ENDS:
        return met.reading
    if name in PRODUCTS and step.use.operand in PRODUCTS[name].summed:
        return _multiplied(step, met)
    if name in VIEWS:
        reached = viewed(step)
        grown = name in EXPANDS and reached.axes != state.axes
        return replace(reached, met=replace(met, spread=True)) if grown else reached
    if name in SUMS:
        return _summed(step, met)
    in_parts = met.by == "sum" and any(part.dim in met.reading.dims for part in state.gone)
    if in_parts and (name == "Stack" or (name in ADDITIONS and Made.OF_DATA in step.others)):
        return unread(f"{name} of what may be products of its parts")
    if name in LINEAR or name in PRODUCTS:
        met = met if _stays_clean(step, met) else replace(met, clean=False)
        return State(broadcast(state.axes, step.shape), state.gone, met)
    if name == "Cat" and in_parts:
        return met.reading  # side by side, and not added up
    if name in JOINS and name != "Stack":
        return State(resized(state.axes, step.shape), state.gone, met)
    return end(met, name)


def _stays_clean(step: Step, met: Met) -> bool:
    if step.name in ADDITIONS or step.name in PRODUCTS or step.name == "Neg":
        return True
    # Scaled and dropped products are summed as they are. Weighed by the data, they are of one expert each.
    return met.by == "sum" and set(step.others) <= {Made.CONSTANT}


def _multiplied(step: Step, met: Met) -> Outcome:
    """The next product: is it one of a layer with its data, or is a weight what the first one gave?"""
    axes, product, operand = step.state.axes, PRODUCTS[step.name], step.use.operand
    over = product.summed[operand] % len(axes)
    rows = [axes[i] for i in range(len(axes))[-2:] if i != over]
    other = step.graph.other_factor(step.node, operand)
    is_weight = own_parts([axes[over]]) and any(rows) and all(part.own for axis in rows for part in axis)
    if other is Made.OF_PARAMETERS and operand != product.weight:
        return met.reading
    if is_weight:
        return unread(f"a weight of {step.name} may be made of it")
    # `B @ A @ x` with B frozen looks like `x @ W1 @ W2` with W2 frozen, where no batch of the data goes along.
    along_batch = step.name == "Bmm" and any(part.dim == DATA for part in axes[0]) and not met.spread
    if met.constant and not along_batch and other is not Made.OF_PARAMETERS:
        return unread(f"{step.name} with two constants")
    return met.reading


def _summed(step: Step, met: Met) -> Outcome:
    axes, state = step.state.axes, step.state
    over = summed_axes(step)
    own = own_parts(axes[i] for i in over)
    if not own:
        return replace(state, axes=_without(axes, over, keepdim=len(step.shape) == len(axes)))
    if _centres(step):
        return met.reading
    if met.by == "addition":
        # Multiplied by data, noise for each sample and its weight are summed as the weight alone would be.
        return met.reading if met.clean else unread(f"{step.name} of products with it")
    over_data = any(not part.own for i in over for part in axes[i])
    if met.by == "sum":
        # With the batch it is the loss that sums, or a pool of outputs, and with a factor in between another layer.
        # Else more is summed than the product did.
        return unread(f"{step.name} over more than the product") if met.clean and not over_data else met.reading
    # A sum of everything is the loss.
    if over_data or not met.clean or len(over) == len(axes):
        return unread(f"{step.name} of products with it")
    reading = step.summed(over)
    if reading.kind != "summed":
        return reading
    left = _without(axes, over, keepdim=len(step.shape) == len(axes))
    return State(left, state.gone, Met(reading, "sum"))


def _centres(step: Step) -> bool:
    """Whether it is a mean that is subtracted from what it is of, as in a normalisation: no sum of a layer."""
    tensor = step.node.next_functions[0][0]
    users = [use.user for use in step.graph.uses(step.node, 0)]
    return any(step.graph.name(u) == "Sub" and u.next_functions[0][0] is tensor for u in users)


def _without(axes: Axes, over: tuple[int, ...], *, keepdim: bool) -> Axes:
    return tuple(() if i in over else axis for i, axis in enumerate(axes) if keepdim or i not in over)
