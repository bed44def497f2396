"""Cutting flattened parameters into boxes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gc.engines.boxes import cut, in_memory_order
from tests.oracle import weight_vector_indices

shapes = st.lists(st.integers(1, 4), min_size=0, max_size=4).map(tuple)


@given(shapes, st.data())
def test_boxes_hold_each_element_of_the_piece_once_and_in_order(shape, data):
    numel = math.prod(shape)
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    numbers = np.arange(numel).reshape(shape)
    found, offset = [], 0
    for box in cut(shape, start, stop):
        assert box.offset == offset
        region = numbers[tuple(slice(s, s + n) for s, n in zip(box.starts, box.lengths, strict=True))]
        assert region.shape == box.lengths
        found.extend(np.asarray(region).flatten())
        offset += box.numel
    assert found == list(range(start, stop))


@given(shapes, st.data())
def test_boxes_are_few(shape, data):
    numel = math.prod(shape)
    start = data.draw(st.integers(0, numel))
    assert len(cut(shape, start, data.draw(st.integers(start, numel)))) <= max(1, 2 * len(shape) - 1)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), st.data())
def test_sums_over_boxes_of_all_pieces_are_the_sums_of_the_weight_vectors(shape, data):
    dims = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    numel = math.prod(shape)
    cuts = sorted(data.draw(st.lists(st.integers(0, numel), max_size=3)))
    tensor = torch.randn(shape, dtype=torch.float64)
    total = torch.zeros([1 if d in dims else n for d, n in enumerate(shape)], dtype=torch.float64)
    for start, stop in zip([0, *cuts], [*cuts, numel], strict=True):
        piece = tensor.flatten()[start:stop]
        for box in cut(shape, start, stop):
            part = piece.narrow(0, box.offset, box.numel).view(box.lengths)
            total[box.among_means(dims)] += part.sum(dims, keepdim=True)
    torch.testing.assert_close(total, tensor.sum(dims, keepdim=True))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_order_holds_the_same_weight_vectors(groups, memory_format):
    tensor = torch.arange(4 * 3 * 2 * 5.0).view(4, 3, 2, 5).contiguous(memory_format=memory_format)
    dims = (0, 2, 3)
    shape, ordered_dims = in_memory_order(tensor.shape, dims, groups, tensor.stride())
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(shape)
    found = {frozenset(flat.numpy()[i] for i in v) for v in weight_vector_indices(shape, ordered_dims)}
    wanted = {frozenset(tensor.numpy()[i] for i in v) for v in weight_vector_indices(tensor.shape, dims, groups)}
    assert found == wanted


def test_the_order_of_a_contiguous_tensor_is_its_own():
    assert in_memory_order((3, 1, 4), (1, 2)) == ((3, 1, 4), (1, 2))
    assert in_memory_order((4, 3, 2), (0, 2), groups=2) == ((2, 2, 3, 2), (1, 3))
