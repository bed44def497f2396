"""One product of a parameter with data, drawn as an einsum equation: the fan-in dims follow from the equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gc.selection.graph import Graph, Reading, leaves, read


@dataclass(frozen=True)
class Equation:
    """``data, weight -> out``, and how the weight is made of a parameter.

    Attributes:
        sizes: The size of each index.
        data: The indices of the data.
        weight: Those of the weight.
        out: Those of the result.
        stored: Those of each dim of the parameter: a dim of several is split before the product.
    """

    sizes: dict[str, int]
    data: str
    weight: str
    out: str
    stored: tuple[str, ...]

    @property
    def shape(self) -> list[int]:
        return [math.prod(self.sizes[i] for i in dim) for dim in self.stored]

    def operand(self, parameter: torch.Tensor) -> torch.Tensor:
        order = "".join(self.stored)
        split = parameter.reshape([self.sizes[i] for i in order])
        return split.permute([order.index(i) for i in self.weight])

    def expected(self) -> tuple[tuple[int, ...], int] | None:
        """The dims that are summed over, and in how many groups; None if no weight vector fills such dims."""
        dims, groups = [], 1
        for dim, indices in enumerate(self.stored):
            # An index of size 1 is no part of anything.
            there = [i for i in indices if self.sizes[i] > 1]
            kept = [i for i in there if i in self.out]
            if len(kept) == len(there):
                continue
            if kept and (dim > 0 or there[: len(kept)] != kept):
                return None
            dims.append(dim)
            groups *= math.prod(self.sizes[i] for i in kept)
        return (tuple(dims), groups) if dims else None


@st.composite
def equations(draw: st.DrawFn, smallest: int = 1) -> Equation:
    batch, shared = "ab"[: draw(st.integers(1, 2))], "gh"[: draw(st.integers(0, 2))]
    summed, outputs = "ijk"[: draw(st.integers(1, 3))], "op"[: draw(st.integers(0, 2))]
    sizes = {i: draw(st.integers(smallest, 3)) for i in batch + shared + summed + outputs}
    data, weight, out, order = (
        "".join(draw(st.permutations(some)))
        for some in (
            batch + shared + summed,
            shared + summed + outputs,
            batch + shared + outputs,
            shared + summed + outputs,
        )
    )
    inner = draw(st.sets(st.integers(1, len(order) - 1))) if len(order) > 1 else set()
    cuts = [0, *sorted(inner), len(order)]
    stored = tuple(order[a:b] for a, b in pairwise(cuts))
    return Equation(sizes, data, weight, out, stored)


def reading_of(equation: Equation, *, raw: bool) -> Reading:
    parameter = torch.nn.Parameter(torch.randn(equation.shape))
    x = torch.randn([equation.sizes[i] for i in equation.data])
    before = torch.nn.Parameter(torch.randn(x.shape[-1], x.shape[-1]))
    data = x if raw else torch.tanh(x @ before)
    out = torch.einsum(f"{equation.data},{equation.weight}->{equation.out}", data, equation.operand(parameter))
    graph = Graph(out.tanh().square().mean(), [parameter, before])
    return read(graph, leaves(graph, [parameter]))[parameter]


def agrees(reading: Reading, expected: tuple[tuple[int, ...], int] | None) -> bool:
    return reading.kind == "summed" and (reading.dims, reading.groups) == expected


@settings(max_examples=300, deadline=None)
@given(equations(smallest=2))
def test_reads_the_dims_that_the_equation_sums_over(equation: Equation) -> None:
    reading = reading_of(equation, raw=False)

    if equation.expected() is None:
        assert reading.kind == "unread"
    else:
        assert agrees(reading, equation.expected()), reading


@settings(max_examples=300, deadline=None)
@given(equations(), st.booleans())
def test_reads_no_other_dims_whatever_the_sizes(equation: Equation, raw: bool) -> None:
    reading = reading_of(equation, raw=raw)

    # With a fan-in of 1 it only scales the data, and is left alone either way.
    scales = reading.kind == "apart" and all(equation.sizes[i] == 1 for i in equation.weight if i not in equation.out)
    assert reading.kind == "unread" or scales or agrees(reading, equation.expected()), reading
