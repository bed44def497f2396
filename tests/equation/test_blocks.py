"""Going through a tensor block by block: the same numbers, and next to no memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.timing import peak_extra_memory
from lightning_gc import centralize_
from lightning_gc.equation import blocks
from lightning_gc.equation.projection import norm_of, recentre_, vector_means, vector_sums
from tests import oracle
from tests.cases import LAYOUTS

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("shape", "dims", "groups"), LAYOUTS)
def test_blocks_change_nothing(shape, dims, groups, moved, dtype, monkeypatch):
    """However small the blocks are cut."""
    tensor = torch.randn(shape, dtype=dtype)
    whole, cut = tensor.clone(), tensor.clone()
    target = vector_means(tensor, dims, groups) / 2 if moved else None
    removed = recentre_(whole, dims, groups, target)
    means, sums, norm = vector_means(whole, dims, groups), vector_sums(whole, dims, groups), norm_of(whole)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    torch.testing.assert_close(recentre_(cut, dims, groups, target), removed)
    # Where a kernel sums a block in another order, a value may be rounded the other way.
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(vector_means(cut, dims, groups), means)
    torch.testing.assert_close(vector_sums(cut, dims, groups), sums)
    torch.testing.assert_close(norm_of(cut), norm)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_large_gradient_against_the_oracle(memory_format, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 10)
    gradient = torch.randn(50, 4, 3, 3).to(torch.float16).to(memory_format=memory_format)
    expected = oracle.centralized(gradient, (1, 2, 3))
    centralize_(gradient)
    np.testing.assert_allclose(oracle.to_numpy(gradient), expected, atol=2e-3)
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    ("shape", "dims", "sizes"),
    [
        ((1000, 1024), (1,), [256, 256, 256, 232]),
        ((1000, 1024), (0,), [262, 262, 262, 238]),
        ((3, 1 << 19), (1,), [1, 1, 1]),
        ((0, 8), (1,), [0]),
        ((256, 1024), (1,), [256]),
        ((1000, 1024), (0, 1), [1000]),
        ((1 << 16, 8), (0, 1), [1 << 16]),
    ],
)
def test_blocks_are_as_large_as_they_may_be(shape, dims, sizes):
    """A mebibyte in float32, or a single weight vector that is larger; cut where no weight vector is."""
    found = [block for block, _ in blocks.blocks(torch.zeros(shape, dtype=torch.bfloat16), dims)]
    assert [block.shape[0 if dims != (0,) else 1] for block in found] == sizes


def test_other_devices_need_no_blocks():
    gradient = torch.zeros(1000, 4096, dtype=torch.bfloat16, device="meta")
    assert len(list(blocks.blocks(gradient, (1,)))) == 1


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
        for action in (recentre_, vector_sums, vector_means):
            assert peak_extra_memory(lambda action=action: action(gradient, dims, groups), CPU) <= 8e6, action
        assert peak_extra_memory(lambda: norm_of(gradient), CPU) <= 8e6

    def test_a_small_one(self):
        gradient = torch.ones(4096, 1024, dtype=torch.bfloat16)
        wide_copy = 2 * gradient.nbytes
        assert peak_extra_memory(lambda: centralize_(gradient), CPU) <= 3 * blocks.BLOCK_BYTES < wide_copy / 2
        # The measure works:
        assert peak_extra_memory(lambda: gradient.mean(1, dtype=torch.float32), CPU) >= wide_copy
