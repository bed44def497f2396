"""Going through a tensor block by block: the same numbers, and next to no memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.timing import peak_extra_memory
from lightning_gc import centralize_
from lightning_gc.equation import blocks
from lightning_gc.equation.projection import recentre_, recentre_measured_, squared_norm, vector_means
from tests import oracle
from tests.cases import LAYOUTS

CPU = torch.device("cpu")


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("shape", "dims", "groups"), LAYOUTS)
def test_blocks_change_nothing(shape, dims, groups, moved, dtype, monkeypatch):
    """However small the blocks are cut."""
    tensor = torch.randn(shape, dtype=dtype)
    whole, cut, measured = tensor.clone(), tensor.clone(), tensor.clone()
    target = vector_means(tensor, dims, groups) / 2 if moved else None
    removed = recentre_(whole, dims, groups, target)
    means, norm, norm_before = vector_means(whole, dims, groups), squared_norm(whole), squared_norm(tensor)
    monkeypatch.setattr(blocks, "NARROW_BLOCK_BYTES", 1)
    monkeypatch.setattr(blocks, "WIDE_BLOCK_BYTES", 1)
    monkeypatch.setattr(blocks, "LARGE_BYTES", 1)
    torch.testing.assert_close(recentre_(cut, dims, groups, target), removed)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(vector_means(cut, dims, groups), means)
    torch.testing.assert_close(squared_norm(cut), norm)
    before, after, measured_norm = recentre_measured_(measured, dims, groups, target)
    assert torch.equal(measured, cut)
    torch.testing.assert_close(before, removed)
    torch.testing.assert_close(after, means)
    torch.testing.assert_close(measured_norm, norm_before)


def test_what_is_one_block_is_not_joined(monkeypatch):
    def join(*_, **__):
        raise AssertionError("there is nothing to join")

    gradient = torch.randn(6, 4).to(torch.bfloat16)
    monkeypatch.setattr(torch, "cat", join)
    monkeypatch.setattr(torch, "stack", join)
    recentre_(gradient, (1,))
    recentre_measured_(gradient, (1,))
    vector_means(gradient, (1,))
    squared_norm(gradient)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_large_gradient_against_the_oracle(memory_format, monkeypatch):
    monkeypatch.setattr(blocks, "WIDE_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(blocks, "LARGE_BYTES", 1 << 11)
    gradient = torch.randn(50, 4, 3, 3).to(memory_format=memory_format)
    assert blocks.goes_in_blocks(gradient, (1, 2, 3))
    expected = oracle.centralized(gradient, (1, 2, 3))
    centralize_(gradient)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-6)
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("rows", [1, 3, 50, 64])
def test_rows_at_a_time(rows):
    gradient = torch.randn(50, 4, 3)
    measured, expected = gradient.clone(), oracle.centralized(gradient, (1, 2))
    sums = gradient.sum((1, 2), True)
    torch.testing.assert_close(blocks.centralize_rows_(gradient, (1, 2), 1 / 12, rows), sums)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-6)
    before, after, norm = blocks.centralize_rows_measured_(measured, (1, 2), 1 / 12, rows)
    assert torch.equal(measured, gradient)
    torch.testing.assert_close(before, sums)
    np.testing.assert_allclose(after, torch.zeros(50, 1, 1), atol=1e-5)
    torch.testing.assert_close(norm, gradient.norm())


@pytest.mark.parametrize(
    ("shape", "total", "rows"),
    [
        pytest.param((1 << 10, 1 << 13), 1 << 25, 0, id="not large"),
        pytest.param((1 << 10, (1 << 13) + 4), 0, 63, id="large"),
        pytest.param((3072, 768), 9 << 20, 0, id="large only among many"),
        pytest.param((3072, 768), 1 << 27, 682, id="large among many"),
        pytest.param((3072, 768), 1 << 26, 0, id="not quite many"),
        pytest.param((3072, 768), (1 << 26) + 4, 682, id="just many"),
        pytest.param((768, 768), 1 << 27, 0, id="not large among many"),
        pytest.param((2, 1 << 24), 0, 1, id="rows larger than a block"),
    ],
)
def test_rows_per_block(shape, total, rows):
    assert blocks.rows_per_block(torch.empty(shape), total) == rows
    assert blocks.rows_per_block(torch.empty(shape, device="meta"), total) == 0


LARGE = (1 << 11, (1 << 12) + 1)


@pytest.mark.usefixtures("one_thread")
class TestWhatGoesInBlocks:
    def test_16_bits_do(self):
        """A CPU kernel would widen the whole tensor; those of other devices widen as they read."""
        assert blocks.goes_in_blocks(torch.zeros(2, 3, dtype=torch.bfloat16), (1,))
        assert not blocks.goes_in_blocks(torch.zeros(2, 3, dtype=torch.bfloat16, device="meta"), (1,))

    def test_large_tensors_do(self):
        assert blocks.goes_in_blocks(torch.zeros(LARGE), (1,))
        assert not blocks.goes_in_blocks(torch.zeros(1 << 11, 1 << 12), (1,))
        assert blocks.goes_in_blocks(torch.zeros(1 << 11, 1 << 12, dtype=torch.float64), (1,))
        assert not blocks.goes_in_blocks(torch.zeros(LARGE, device="meta"), (1,))

    def test_interleaved_weight_vectors_do_not(self):
        """Columns, for one: they are read where they are, thousands of stretches to a block."""
        assert not blocks.goes_in_blocks(torch.zeros(LARGE), (0,))
        assert not blocks.goes_in_blocks(torch.zeros(1024, 1024, 3, 3), (0, 2, 3))
        assert not blocks.goes_in_blocks(torch.zeros(*LARGE, 2), (1,))
        assert blocks.goes_in_blocks(torch.zeros(*LARGE, 1), (1,))
        assert blocks.goes_in_blocks(torch.zeros(LARGE[0], 1, LARGE[1]), (1, 2))
        assert blocks.goes_in_blocks(torch.zeros(LARGE[::-1]).t(), (0,))

    def test_nothing_large_does_with_several_threads(self):
        """Each operation would wait for all of them."""
        torch.set_num_threads(2)
        assert not blocks.goes_in_blocks(torch.zeros(LARGE), (1,))
        assert blocks.goes_in_blocks(torch.zeros(2, 3, dtype=torch.float16), (1,))


@pytest.mark.parametrize(
    ("shape", "dtype", "sizes"),
    [
        ((1000, 1024), torch.bfloat16, [256, 256, 256, 232]),
        ((3, 1 << 19), torch.bfloat16, [1, 1, 1]),
        ((0, 8), torch.bfloat16, [0]),
        ((1000, 1024), torch.float32, [512, 488]),
        ((1000, 1024), torch.float64, [256, 256, 256, 232]),
    ],
)
def test_blocks_are_as_large_as_they_may_be(shape, dtype, sizes):
    """A mebibyte in float32 of what is widened, else two, or a single row that is larger."""
    dim, found = blocks._blocks(torch.zeros(shape, dtype=dtype), (1,))
    assert dim == 0
    assert [len(block) for block in found] == sizes


class TestMemory:
    @pytest.mark.parametrize(
        ("shape", "dims", "groups"),
        [
            pytest.param((11000, 4096), (1,), 1, id="linear"),
            pytest.param((4096, 11000), (0,), 1, id="transposed linear"),
            pytest.param((2048, 2444, 3, 3), (0, 2, 3), 1, id="transposed conv"),
            pytest.param((2048, 2444, 3, 3), (0, 2, 3), 32, id="grouped transposed conv"),
            pytest.param((8, 5632, 1000), (1,), 1, id="experts"),
        ],
    )
    def test_a_large_gradient(self, shape, dims, groups):
        """At most 8 MB for a gradient of 90 MB, where a float32 copy would need 180 MB."""
        gradient = torch.ones(shape, dtype=torch.bfloat16)
        assert gradient.nbytes >= 90e6 * 0.98
        for action in (recentre_, recentre_measured_, vector_means):
            assert peak_extra_memory(lambda action=action: action(gradient, dims, groups), CPU) <= 8e6, action
        assert peak_extra_memory(lambda: squared_norm(gradient), CPU) <= 8e6

    def test_a_small_one(self):
        gradient = torch.ones(4096, 1024, dtype=torch.bfloat16)
        wide_copy = 2 * gradient.nbytes
        assert peak_extra_memory(lambda: centralize_(gradient), CPU) <= 4 * blocks.NARROW_BLOCK_BYTES < wide_copy / 2
        # The measure works:
        assert peak_extra_memory(lambda: gradient.mean(1, dtype=torch.float32), CPU) >= wide_copy
