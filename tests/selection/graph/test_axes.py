"""The parts that axes are made of, held to the indices themselves: torch moves these as the axes say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_gc.selection.graph.axes import (
    DATA,
    JOINED,
    Axes,
    Part,
    Unreadable,
    axes_of,
    broadcast,
    data_axis,
    is_mixed,
    own_parts,
    regrouped,
    resized,
    sizes,
)


def indices(axes: Axes, dim: int) -> Tensor:
    """Which index of a dim each element has, as the axes say."""
    found = torch.zeros(sizes(axes), dtype=torch.long)
    for i, axis in enumerate(axes):
        left = torch.arange(sizes(axes)[i])
        of_axis = torch.zeros_like(left)
        for part in reversed(axis):
            if part.dim == dim:
                of_axis += left % part.size * part.stride
            left = left // part.size
        found += of_axis.reshape([-1 if other == i else 1 for other in range(len(axes))])
    return found


@st.composite
def cut(draw: st.DrawFn, size: int) -> list[int]:
    """Factors of a size, in any order, ones among them."""
    factors = []
    for prime in (2, 3, 5):
        while size % prime == 0:
            factors.append(prime)
            size //= prime
    return draw(st.permutations([*factors, *[1] * draw(st.integers(0, 1))]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_views_move_the_parts_as_torch_moves_the_indices(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 10]), min_size=1, max_size=3))
    axes = axes_of(shape)
    moved = list(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
    for _ in range(data.draw(st.integers(0, 4))):
        now = sizes(axes)
        how = data.draw(st.sampled_from(["split", "merge", "permute", "repeat"]))
        if how == "split":
            new = [n for size in now for n in (data.draw(cut(size)) or [1])]
            try:
                axes = regrouped(axes, new)
            except Unreadable:  # across dims that were merged
                assert any(len(axis) > 1 for axis in axes)
                return
            moved = [m.reshape(new) for m in moved]
        elif how == "merge":
            where = data.draw(st.integers(0, len(now)))
            until = data.draw(st.integers(where, len(now)))
            new = [*now[:where], math.prod(now[where:until]), *now[until:]]
            axes, moved = regrouped(axes, new), [m.reshape(new) for m in moved]
        elif how == "permute":
            order = data.draw(st.permutations(range(len(now))))
            axes, moved = tuple(axes[i] for i in order), [m.permute(order) for m in moved]
        elif math.prod(now) < 1000:
            new = (data.draw(st.integers(1, 3)), *(2 if n == 1 else n for n in now))
            axes, moved = broadcast(axes, new), [m.expand(new) for m in moved]

    assert sizes(axes) == tuple(moved[0].shape)
    for dim, index in enumerate(moved):
        assert torch.equal(indices(axes, dim), index)
    assert all(part.size > 1 for axis in axes for part in axis)
    assert {part.dim for part in own_parts(axes)} == {dim for dim, n in enumerate(shape) if n > 1}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_was_split_and_merged_again_is_as_before(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 10]), min_size=1, max_size=3))
    pieces = [n for size in shape for n in (data.draw(cut(size)) or [1])]

    assert regrouped(regrouped(axes_of(shape), pieces), shape) == axes_of(shape)


def test_neighbours_of_the_data_are_one() -> None:
    repeated = broadcast(axes_of([5]), (2, 3, 5))

    assert regrouped(repeated, (6, 5)) == (data_axis(6), *axes_of([5]))
    assert regrouped(repeated, (30,)) == ((Part(DATA, 1, 6), Part(0, 1, 5)),)
    assert is_mixed(regrouped(repeated, (30,))[0])
    assert not any(map(is_mixed, repeated))


@pytest.mark.parametrize(
    ("shape", "new"), [((2, 3), (3, 2)), ((4, 6), (6, 4)), ((6,), (4,)), ((6,), (7,)), ((6,), (5, 2))]
)
def test_a_reshape_that_cuts_across_or_changes_the_size_is_no_verdict(shape, new) -> None:
    with pytest.raises(Unreadable, match="reshape"):
        regrouped(axes_of(shape), new)


def test_only_axes_of_size_one_are_stretched() -> None:
    assert broadcast(axes_of((1, 5)), (2, 3, 5)) == (data_axis(2), data_axis(3), *axes_of((1, 5))[1:])
    with pytest.raises(Unreadable, match="a repeated dim"):
        broadcast(axes_of((5,)), (10,))
    with pytest.raises(Unreadable, match="fewer axes"):
        broadcast(axes_of((1, 5)), (5,))


def test_a_slice_is_seen_by_its_size() -> None:
    assert resized(axes_of((6, 5)), (4, 5)) == ((Part(0, 1, 4),), (Part(1, 1, 5),))
    assert resized(axes_of((1, 5)), (3, 5)) == ((Part(JOINED, 1, 3),), (Part(1, 1, 5),))
    merged = regrouped(axes_of((2, 3)), (6,))
    assert resized(merged, (6,)) == merged
    with pytest.raises(Unreadable, match="merged"):
        resized(merged, (4,))
    with pytest.raises(Unreadable, match="number of axes"):
        resized(axes_of((6, 5)), (6,))
