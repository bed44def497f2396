"""Autograd's graph of a loss: its nodes, what each gives, and what is made of that.

Everything that is asked of autograd's nodes is asked here. Their attributes are no public interface of torch, so where
one is missing, `Unreadable` is raised, and there is no verdict.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_gc.selection.graph.axes import Unreadable
from lightning_gc.selection.graph.kinds import (
    BILINEAR,
    CONVOLUTIONS,
    ELEMENTWISE,
    EMBEDDINGS,
    JOINS,
    LOOK_UPS,
    OTHER_REDUCTIONS,
    PRODUCTS,
    SUMS,
    VIEWS,
)

Node = Any
"""A node of autograd's graph; torch has no type for it."""


class Made(Enum):
    """What a tensor is made of."""

    OF_DATA = "data"
    OF_PARAMETERS = "a parameter"
    CONSTANT = "a constant"  # or data: what has no gradient is not in the graph
    UNCLEAR = "what can't be read"


class Use(NamedTuple):
    """Operand number `operand` of `user` is output number `output` of a node."""

    user: Node
    operand: int
    output: int


class Graph:
    """The graph of a loss.

    Args:
        loss: What backward will be called on.
        parameters: All parameters of the module, frozen ones too, as they stand in the graph; every other leaf that is
            no `Parameter` is data.

    Attributes:
        frozen: The shapes in which frozen parameters may stand in products, where a constant is one of them or data.
        leaves: The node of each leaf.
        has_data_leaves: Whether data carry gradients: then a constant is no data.
        is_second_order: Whether it has gradients in it, as a gradient penalty has, so that layers stand in it
            backwards too.
    """

    def __init__(self, loss: Tensor, parameters: Collection[Tensor]) -> None:
        self._parameters = set(parameters)
        self.frozen = {
            matrix
            for parameter in parameters
            if not parameter.requires_grad
            for shape in (parameter.shape[-2:], (*parameter.shape[:1], math.prod(parameter.shape[1:])))
            for matrix in (tuple(shape), tuple(shape)[::-1])
        }
        self.leaves: dict[Tensor, Node] = {}
        self._uses: dict[Node, list[Use]] = defaultdict(list)
        # It also keeps the nodes alive: Python's wrappers of them would be made anew, as other objects.
        self._names: dict[Node, str] = {}
        if loss.grad_fn is not None:
            self._collect(loss.grad_fn)
        self.has_data_leaves = not all(map(self._is_parameter, self.leaves))
        self.is_second_order = any("BackwardBackward" in node.name() for node in self._names)
        self._made: dict[Node, Made] = {}
        for node in self._names:
            self._made[node] = self._made_of(node)
        self._makes_weight: dict[Node, bool] = {}
        for node in reversed(self._names):
            self._makes_weight[node] = any(self._is_weight(node, use) for use in self._uses[node])

    def _collect(self, root: Node) -> None:
        """Name all nodes, each after all that it is made of."""
        seen = set()
        to_do = [(root, False)]
        while to_do:
            node, sources_done = to_do.pop()
            if sources_done:
                self._names[node] = _name(node)
                continue
            if node in seen:
                continue
            seen.add(node)
            to_do.append((node, True))
            if _is_leaf(node):
                self.leaves[node.variable] = node
            for operand, (source, output) in enumerate(node.next_functions):
                if source is not None:
                    self._uses[source].append(Use(node, operand, output))
                    to_do.append((source, False))

    def __len__(self) -> int:
        """How many nodes it has."""
        return len(self._names)

    def name(self, node: Node) -> str:
        """Autograd's name of the operation, without what is the same for all."""
        return self._names[node]

    def uses(self, node: Node, output: int) -> list[Use]:
        """What is made of one output of a node."""
        return [use for use in self._uses[node] if use.output == output]

    def made(self, source: Node | None) -> Made:
        """What a node's output is made of; None stands in the graph for what has no gradient."""
        return Made.CONSTANT if source is None else self._made[source]

    def makes_weight(self, node: Node) -> bool:
        """Whether a weight is made of it: it reaches, with no product between, where nothing but weights stand."""
        return self._makes_weight[node]

    def others(self, user: Node, operand: int) -> list[Made]:
        """What the other operands are made of."""
        return [self.made(source) for i, (source, _) in enumerate(user.next_functions) if i != operand]

    def other_factor(self, product: Node, operand: int) -> Made:
        """What the other factor of a product is made of."""
        (other,) = PRODUCTS[self.name(product)].summed.keys() - {operand}
        return self.made(product.next_functions[other][0])

    def _is_parameter(self, leaf: Tensor) -> bool:
        # Also one of another module, where a part of a model is asked for.
        return leaf in self._parameters or isinstance(leaf, nn.Parameter)

    def _made_of(self, node: Node) -> Made:
        if _is_leaf(node):
            return Made.OF_PARAMETERS if self._is_parameter(node.variable) else Made.OF_DATA
        name, sources = self._names[node], node.next_functions
        made = [self.made(source) for source, _ in sources]
        if Made.OF_DATA in made or name in EMBEDDINGS:
            return Made.OF_DATA
        if Made.UNCLEAR in made:
            return Made.UNCLEAR
        try:
            return _combined(name, node, made)
        except Unreadable:
            return Made.UNCLEAR

    def _is_weight(self, node: Node, use: Use) -> bool:
        name = self._names[use.user]
        if name in PRODUCTS:
            return PRODUCTS[name].only_weights and PRODUCTS[name].weight == use.operand
        if name in CONVOLUTIONS or name == BILINEAR:
            return use.operand == 1
        return self._makes_weight[use.user]


def _combined(name: str, node: Node, made: list[Made]) -> Made:
    """What an operation on parameters and constants gives."""
    if name in PRODUCTS:
        if all(made[i] is not Made.CONSTANT for i in PRODUCTS[name].summed):
            return Made.OF_PARAMETERS
        # A constant that is multiplied with a parameter is taken for data: that is how the data come in. A vector has no
        # batch, and may be one by which a weight's spectrum is normed.
        return Made.OF_DATA if len(shape_of(node)) > 1 else Made.UNCLEAR
    if name == BILINEAR:
        return Made.OF_DATA if Made.CONSTANT in (made[0], made[2]) else Made.OF_PARAMETERS
    if name in CONVOLUTIONS:
        return Made.OF_DATA if made[0] is Made.CONSTANT else Made.OF_PARAMETERS
    if name in LOOK_UPS:
        # Indices of several dims are a batch; a single row of them may as well be a permutation.
        return Made.OF_DATA if len(shape_of(node)) > len(source_shape(node, 0)) else Made.UNCLEAR
    if name in VIEWS or name in SUMS or name in OTHER_REDUCTIONS:
        return Made.OF_PARAMETERS
    if name in ELEMENTWISE or name in JOINS:
        # A mask, a constant or noise has the shape of what it is applied to; data bring a batch along.
        if Made.CONSTANT in made and _has_grown(node):
            return Made.UNCLEAR if name in JOINS else Made.OF_DATA
        return Made.OF_PARAMETERS
    return Made.UNCLEAR


def _has_grown(node: Node) -> bool:
    shape = shape_of(node)
    for i, (source, _) in enumerate(node.next_functions):
        if source is not None:
            before = source_shape(node, i)
            if len(before) >= len(shape) and math.prod(before) >= math.prod(shape):
                return False
    return True


def shape_of(node: Node, output: int = 0) -> tuple[int, ...]:
    """The shape of what a node gives.

    Raises:
        Unreadable: This torch does not tell.
    """
    if _is_leaf(node):
        return tuple(node.variable.shape)
    try:
        return tuple(int(n) for n in node._input_metadata[output].shape)
    except (AttributeError, IndexError, RuntimeError) as error:
        raise Unreadable(f"the shape of {node.name()}") from error


def source_shape(node: Node, operand: int) -> tuple[int, ...]:
    """The shape of an operand that has a gradient."""
    source, output = node.next_functions[operand]
    return shape_of(source, output)


def outputs(node: Node) -> int:
    """How many tensors a node gives."""
    return len(getattr(node, "_input_metadata", ()))


def saved(node: Node, name: str) -> Any:
    """What an operation was called with.

    Raises:
        Unreadable: This torch does not tell, or the backward has freed it.
    """
    try:
        return getattr(node, f"_saved_{name}")
    except (AttributeError, RuntimeError) as error:
        raise Unreadable(f"{name} of {node.name()}") from error


def saved_dims(node: Node, name: str, rank: int) -> tuple[int, ...]:
    """The dims that an operation was called with, counted from the front; autograd saves -1 as 2^64 - 1.

    Raises:
        Unreadable: This torch does not tell.
    """
    given = saved(node, name)
    dims = (given,) if isinstance(given, int) else tuple(given)
    return tuple((dim - (1 << 64) if dim >= 1 << 63 else dim) % rank for dim in dims)


def _is_leaf(node: Node) -> bool:
    # Not whether it has a variable: a custom function may keep anything under that name.
    return str(node.name()) == "torch::autograd::AccumulateGrad"


def _name(node: Node) -> str:
    """``Mm`` for ``MmBackward0``; the names of custom functions end in no digit, and stay as they are."""
    name: str = node.name()
    stem = name.rstrip("0123456789")
    return stem.removesuffix("Backward").removeprefix("_") if stem != name else name
