"""What a tensor is, as far as the equation has to know."""

from __future__ import annotations

import pytest
import torch

from lightning_gc.equation.traits import accumulation_dtype, is_dtensor, is_expanded, is_narrow


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float8_e4m3fn, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex32, torch.complex64),
        (torch.complex64, torch.complex64),
        (torch.complex128, torch.complex128),
    ],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_accumulation_dtype(dtype, expected):
    assert accumulation_dtype(dtype) == expected
    assert is_narrow(torch.zeros(1).to(dtype)) == (dtype != expected)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        pytest.param(torch.zeros(3, 4), False, id="contiguous"),
        pytest.param(torch.zeros(4, 3).t(), False, id="transposed"),
        pytest.param(torch.zeros(6, 8)[::2, ::2], False, id="with gaps"),
        pytest.param(torch.zeros(4).expand(3, 4), True, id="expanded"),
        pytest.param(torch.zeros(4).expand(1, 4), False, id="expanded to one"),
        pytest.param(torch.zeros(8).as_strided((3, 4), (2, 1)), True, id="overlapping"),
        pytest.param(torch.zeros(12).as_strided((3, 1, 4), (1, 2, 3)), False, id="a dim of one element"),
        pytest.param(torch.zeros(3, 4).to_sparse(1), False, id="sparse"),
        pytest.param(torch.zeros(()), False, id="scalar"),
    ],
)
def test_is_expanded(tensor, expected):
    assert is_expanded(tensor) is expected


def test_a_plain_tensor_is_no_dtensor():
    assert not is_dtensor(torch.zeros(2, 3))
