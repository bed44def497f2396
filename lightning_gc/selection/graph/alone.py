"""A parameter on its way to the data: what each operation does with it, and what it says when they meet."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch

from lightning_gc.selection.graph.axes import (
    JOINED,
    LOOKED_UP,
    Axes,
    Part,
    Unreadable,
    broadcast,
    data_axis,
    is_mixed,
    own_parts,
    resized,
    sizes,
)
from lightning_gc.selection.graph.kinds import (
    ADDITIONS,
    ATTENTION,
    BILINEAR,
    CONVOLUTIONS,
    ELEMENTWISE,
    EMBEDDINGS,
    EXPANDS,
    JOINS,
    LOOK_UPS,
    MULTIPLICATIONS,
    OTHER_REDUCTIONS,
    PRODUCTS,
    SUMS,
    VIEWS,
)
from lightning_gc.selection.graph.nodes import Made, saved, saved_dims, source_shape
from lightning_gc.selection.graph.states import Met, Outcome, Reading, State, Step, unread
from lightning_gc.selection.graph.views import summed_axes, viewed

ADDED = Reading("apart", why="added to the data")
SCALES = Reading("apart", why="scales the data")
AMONG_DATA = Reading("apart", why="put together with the data")
IN_PLACE_OF_DATA = Reading("apart", why="in the place of the data")


def alone(step: Step) -> Outcome:
    """Where one operation leads a tensor that is the parameter alone.

    Raises:
        Unreadable: That can't be told.
    """
    name = step.name
    if name in PRODUCTS:
        outcome = _product(step)
    elif name in CONVOLUTIONS:
        outcome = _convolution(step)
    elif name == BILINEAR:
        outcome = _bilinear(step)
    elif name in EMBEDDINGS:
        outcome = _embedded(step)
    elif name in LOOK_UPS:
        outcome = _looked_up(step)
    elif name in VIEWS:
        outcome = viewed(step)
    elif name in JOINS:
        outcome = _joined(step)
    elif name in SUMS or name in OTHER_REDUCTIONS:
        outcome = _reduced(step)
    elif name in ELEMENTWISE:
        outcome = _elementwise(step)
    elif name in ATTENTION and step.use.operand == 3:
        outcome = ADDED if step.graph.made(step.node) is Made.OF_DATA else unread(f"{name} with a parameter")
    else:
        outcome = unread(f"{name} is not known")
    has_met = name in LOOK_UPS or (isinstance(outcome, State) and outcome.met is not None)
    if has_met and step.graph.makes_weight(step.node):
        return unread(f"a weight is made of what {name} gives")
    return outcome


def _product(step: Step) -> Outcome:
    state, operand, name = step.state, step.use.operand, step.name
    product, axes = PRODUCTS[name], step.state.axes
    if operand not in product.summed:
        return _added(step, axes)
    over = product.summed[operand] % len(axes)
    kept = [i for i in range(len(axes))[-2:] if i != over]
    other = step.graph.other_factor(step.node, operand)
    if any(is_mixed(axes[i]) for i in kept) and operand != product.weight:
        # A batch that the parameter was repeated along, merged with its own dims: latents, or queries.
        return IN_PLACE_OF_DATA if other is Made.OF_PARAMETERS else unread(f"{name} with {other.value}")
    if operand != product.weight and other is Made.OF_PARAMETERS and state.looked_up:
        return None  # what was looked up goes through a layer
    if operand != product.weight and product.only_weights:
        # Data stand here as a rule, and what is made of data there may be a weight: one that was normed by them, say.
        return unread(f"{name} in the place of the data")
    rows = () if len(step.shape) < 2 else (step.shape[-2],)
    reading = _judged(
        step, other, in_place_of_weight=operand == product.weight, constant=(*rows, sizes(axes)[over])
    ) or step.summed([over])
    if reading.kind != "summed" or name == "GroupedMm":
        return reading
    given, result = step.shape, [axes[i] for i in kept]
    if len(given) >= 2:
        batch = broadcast(axes[:-2], given[:-2])
        # The rows are of the first factor, the columns of the second.
        is_first = operand == min(product.summed)
        result = [*batch, *result, data_axis(given[-1])] if is_first else [*batch, data_axis(given[-2]), *result]
    return State(tuple(result), state.gone, Met(reading, "sum", constant=other is Made.CONSTANT))


def _convolution(step: Step) -> Outcome:
    name, axes, node = step.name, step.state.axes, step.node
    if step.use.operand != 1:
        return unread(f"{name} of it") if step.use.operand == 0 else ADDED
    input_made = step.graph.made(node.next_functions[0][0])
    transposed = name == "Convolution" and saved(node, "transposed")
    over = [0, *range(2, len(axes))] if transposed else list(range(1, len(axes)))
    reading = _judged(step, input_made, in_place_of_weight=True) or step.summed(over)
    if reading.kind != "summed":
        return reading
    groups = int(saved(node, "groups")) if transposed else 1
    if groups > 1:
        if axes[0] != (Part(0, 1, step.whole[0]),) or reading.groups != 1:
            return unread(f"{name} in groups over a part of dim 0")
        reading = replace(reading, groups=groups)
    channels = axes[1] if transposed else axes[0]
    if groups > 1:
        channels = (Part(0, step.whole[0] // groups, groups), *channels)
    spatial = [data_axis(n) for n in step.shape[2:]]
    met = Met(reading, "sum", constant=input_made is Made.CONSTANT)
    return State((data_axis(step.shape[0]), channels, *spatial), step.state.gone, met)


def _bilinear(step: Step) -> Outcome:
    if step.use.operand != 1:
        return unread(f"{step.name} of it")
    for other in step.others:
        refused = _judged(step, other, in_place_of_weight=True)
        if refused:
            return refused
    return step.summed([1, 2])


def _judged(
    step: Step, other: Made, *, in_place_of_weight: bool, constant: tuple[int, ...] | None = None
) -> Reading | None:
    """Why a product with this is no weight's product with data; None if it is one.

    Args:
        step: The product.
        other: What the other operand is made of.
        in_place_of_weight: Whether the parameter stands where weights do.
        constant: The shape of the other operand, as a matrix or vector.
    """
    if other is Made.OF_DATA:
        return None
    # What has no gradient may be data, or a frozen weight that latents go through. Where the data carry gradients,
    # it isn't data, nor where it has the shape of a frozen weight.
    if other is Made.CONSTANT and in_place_of_weight and not step.graph.has_data_leaves:
        return unread(f"{step.name} with what may be a frozen weight") if constant in step.graph.frozen else None
    return unread(f"{step.name} with {other.value}")


def _embedded(step: Step) -> Reading:
    """A function for embeddings says that each row is a weight vector."""
    if step.use.operand != 0:
        return unread(f"{step.name} of it")
    if len(step.whole) > 2:
        return unread(f"{step.name} of rows that may be matrices")
    return step.summed([1])


def _reduced(step: Step) -> Reading | None:
    """A penalty, or a norm that rescales the parameter: no weight vector is told by it."""
    state = step.state
    if step.name in SUMS and state.looked_up and step.shape and own_parts(state.axes[i] for i in summed_axes(step)):
        return unread(f"{step.name} of what was looked up")  # what it was multiplied with may have been data
    return None


def _looked_up(step: Step) -> State:
    axes, node, name = step.state.axes, step.node, step.name
    if name == "IndexSelect":
        dims = list(saved_dims(node, "dim", len(axes)))
    elif name in ("Index", "UnsafeIndex"):
        indices = saved(node, "indices")
        if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
            raise Unreadable("a mask selects")
        dims = [dim for dim, index in enumerate(indices) if index is not None]
    else:
        raise Unreadable(f"which dim {name} looks up")
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        raise Unreadable(f"{name} looks up dims that do not stand side by side")
    before, after = axes[: dims[0]], axes[dims[-1] + 1 :]
    shape = step.shape
    places = tuple((Part(LOOKED_UP, 1, n),) if n > 1 else () for n in shape[len(before) : len(shape) - len(after)])
    gone = step.state.gone + tuple(part for dim in dims for part in axes[dim])
    return State((*before, *places, *after), gone)


def _joined(step: Step) -> Outcome:
    """Put together with other tensors: with data, it is among them; with others, it still is a parameter."""
    before, shape = step.state.axes, step.shape
    if step.name == "Stack":
        (along,) = saved_dims(step.node, "dim", len(shape))
        axes = (*before[:along], (Part(JOINED, 1, shape[along]),), *before[along:])
    else:
        axes = resized(before, shape)
        (along,) = [i for i, size in enumerate(sizes(before)) if size != shape[i]] or [0]
    others = step.others
    if Made.OF_DATA not in others:
        if set(others) <= {Made.OF_PARAMETERS}:
            return step.state.at(axes)
        return unread(f"{step.name} with what may be data")
    # Memory keys among keys: the axis along which they stand is the data's from here on.
    axes = (*axes[:along], data_axis(shape[along]), *axes[along + 1 :])
    return State(axes, step.state.gone, Met(AMONG_DATA, "addition"))


def _added(step: Step, axes: Axes) -> Outcome:
    """Added to a product."""
    if step.graph.made(step.node) is not Made.OF_DATA:
        return unread(f"{step.name} with a parameter")
    return State(broadcast(axes, step.shape), step.state.gone, Met(ADDED, "addition"))


def _elementwise(step: Step) -> Outcome:
    state, name = step.state, step.name
    others = step.others
    same_shape = sizes(state.axes) == step.shape
    if Made.OF_DATA not in others and same_shape:
        # Masked, scaled, standardised, with noise: the parameter in another form.
        if Made.UNCLEAR in others or (name in MULTIPLICATIONS and _is_multiplied_with_its_like(step)):
            return unread(f"{name} with what may be no weight")
        return state
    if not (Made.OF_DATA in others or (Made.CONSTANT in others and Made.UNCLEAR not in others)):
        return unread(f"{name} with a parameter")
    if name == "Sub":
        return unread("differences of data and it, as of distances")
    by: Literal["addition", "multiplication"] = "addition" if _is_addend(step) else "multiplication"
    if by == "multiplication" and not state.is_whole(step.whole) and not state.looked_up:
        return unread(f"{name} with a part of it")  # the products of all parts may be added up
    met = Met(ADDED if by == "addition" else SCALES, by, constant=Made.OF_DATA not in others)
    return State(broadcast(state.axes, step.shape), state.gone, met)


def _is_addend(step: Step) -> bool:
    """Whether the result grows with it as it is: what is multiplied may be summed as products afterwards."""
    name, operand = step.name, step.use.operand
    return name in ADDITIONS or name == "Where" or (name, operand) in {("Lerp", 0), ("Lerp", 1), ("Addcmul", 0)}


def _is_multiplied_with_its_like(step: Step) -> bool:
    """Whether the other factor is a whole parameter's worth: two that are multiplied are no weight each."""
    for i, (source, _) in enumerate(step.node.next_functions):
        if i == step.use.operand or source is None:
            continue
        # Its own norm, by which it is divided, may have been broadcast before.
        expanded = step.graph.name(source) in EXPANDS
        shape = source_shape(source, 0) if expanded else source_shape(step.node, i)
        if math.prod(shape) >= math.prod(step.shape):
            return True
    return False
