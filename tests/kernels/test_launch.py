"""The kernel against the plain path, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from lightning_gc.equation.projection import norm_of, recentre_, vector_means
from lightning_gc.kernels.launch import INTERPRETED, Batch, Rows, as_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Every width of tile, the rows at its ends, those that are looped, and those of aligned bytes and not.
LENGTHS = [2, 3, 9, 15, 16, 17, 27, 64, 65, 128, 147, 256, 300, 512, 576, 1000, 1024, 2048, 4096, 4097, 4608, 8192]
LONG = [8193, 8200, 100_000]

needs_a_device = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="neither a GPU nor Triton's interpreter"
)
pytestmark = needs_a_device


def tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype, mean: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator) + mean).to(DEVICE, dtype) for shape in shapes]


def batch_for(given: list[Tensor]) -> Batch:
    rows = [as_rows(t.shape, t.stride(), range(1, t.dim())) for t in given]
    assert all(r is not None for r in rows)
    return Batch(DEVICE, given[0].dtype, rows)


def dims_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(range(1, tensor.dim()))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """To the rounding of float32; one unit in the last place of 16 bits (the interpreter truncates bfloat16)."""
    if actual.dtype == torch.float32:
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=2e-6)
    else:
        torch.testing.assert_close(actual, expected, rtol=torch.finfo(actual.dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["short", "long"])
def test_a_mixed_set_equals_the_plain_path(dtype, lengths):
    given = tensors([(2 if n > 1000 else 301 if n < 20 else 37, n) for n in lengths], dtype)
    expected = [t.clone() for t in given]
    means = [vector_means(t, (1,)).flatten() for t in expected]
    norms = [t.float().square().sum(1) for t in expected]
    batch = batch_for(given)
    outputs = batch(given, measure=True)
    for i, (actual, plain) in enumerate(zip(given, expected, strict=True)):
        recentre_(plain, (1,))
        assert_close(actual, plain)
        here = slice(batch.offsets[i], batch.offsets[i] + len(plain))
        torch.testing.assert_close(outputs.before[here], means[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outputs.squares[here], norms[i], rtol=1e-5, atol=0)
        torch.testing.assert_close(outputs.after[here], vector_means(actual, (1,)).flatten(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_move_to_given_means(dtype):
    given = tensors([(7, 9), (3, 64), (2, 9000), (300, 16)], dtype)
    expected = [t.clone() for t in given]
    to = [torch.linspace(-2, 2, len(t), device=DEVICE) for t in given]
    batch = batch_for(given)
    outputs = batch(given, to, measure=True)
    for i, (actual, plain, goal) in enumerate(zip(given, expected, to, strict=True)):
        removed = recentre_(plain, (1,), to=goal.view(-1, 1)) / plain.shape[1]
        assert_close(actual, plain)
        here = slice(batch.offsets[i], batch.offsets[i] + len(plain))
        torch.testing.assert_close(outputs.before[here], removed.flatten(), rtol=1e-5, atol=1e-6)
        left = vector_means(actual, (1,)).flatten() - goal
        torch.testing.assert_close(outputs.after[here], left, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("length", [16, 9000])
def test_means_alone_change_nothing(length):
    given = tensors([(3, length)], torch.float32)
    before = given[0].clone()
    outputs = batch_for(given)(given, write=False, means=True)
    assert torch.equal(given[0], before)
    torch.testing.assert_close(outputs.before, before.mean(1), rtol=1e-5, atol=1e-6)
    assert outputs.after is None


def test_nothing_is_returned_that_was_not_asked_for():
    given = tensors([(3, 16)], torch.float32)
    assert batch_for(given)(given) is None


def test_at_most_two_launches_whatever_the_number_of_tensors():
    given = tensors([(4, n) for n in range(2, 60)], torch.float32)
    batch = batch_for(given)
    batch(given)
    assert [aligned for aligned, _ in batch._programs] == [True, False]
    even = tensors([(4, 4 * n) for n in range(1, 60)], torch.float32)
    batch = batch_for(even)
    batch(even)
    assert [aligned for aligned, _ in batch._programs] == [True]


def test_a_tensor_that_is_not_aligned_any_more_takes_the_other_variant():
    storage = torch.randn(65, device=DEVICE)
    aligned, shifted = storage[:64].view(4, 16), storage[1:].view(4, 16)
    batch = batch_for([aligned])
    for tensor in (aligned, shifted):
        expected = tensor - tensor.mean(1, keepdim=True)
        batch([tensor])
        assert [variant for variant, _ in batch._programs] == [tensor is aligned]
        assert_close(tensor, expected)


def test_addresses_are_uploaded_again_only_when_they_moved():
    given = tensors([(4, 16), (4, 16)], torch.float32)
    batch = batch_for(given)
    batch(given)
    table = batch._addresses[1]
    batch(given)
    assert batch._addresses[1] is table
    batch(given[::-1])
    assert batch._addresses[1] is not table
    for tensor in given:
        torch.testing.assert_close(tensor.mean(1), torch.zeros(4, device=DEVICE), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("length", [20, 9000])
def test_what_is_not_finite_stays_so_in_its_row_alone(value, length):
    given = tensors([(3, length)], torch.float32)
    given[0][1, 2] = value
    expected = given[0] - given[0].mean(1, keepdim=True)
    batch_for(given)(given)
    torch.testing.assert_close(given[0], expected, rtol=1e-6, atol=2e-6, equal_nan=True)


def test_the_norm_of_a_whole_tensor_is_that_of_its_rows():
    given = tensors([(20, 9000)], torch.float32)
    expected = norm_of(given[0]).square()
    torch.testing.assert_close(batch_for(given)(given, measure=True).squares.sum(), expected, rtol=1e-5, atol=0)


def test_a_channels_last_gradient_is_dense_row_by_row():
    given = torch.randn(4, 3, 5, 5, device=DEVICE).to(memory_format=torch.channels_last)
    expected = given - given.mean((1, 2, 3), keepdim=True)
    assert given.stride() == (75, 1, 15, 3)
    batch_for([given])([given])
    assert_close(given, expected)


@pytest.mark.parametrize(
    ("tensor", "dims", "expected"),
    [
        (torch.empty(4, 6), (1,), Rows(4, 6)),
        (torch.empty(4, 3, 2, 2), (1, 2, 3), Rows(4, 12)),
        (torch.empty(2, 4, 6), (2,), Rows(8, 6)),
        (torch.empty(6, 1, 3), (1, 2), Rows(6, 3)),
        (torch.empty(1, 6), (1,), Rows(1, 6)),
        (torch.empty(4, 6), (0, 1), Rows(1, 24)),
        (torch.empty(4, 6), (0,), None),  # columns
        (torch.empty(6, 4).t(), (1,), None),
        (torch.empty(4, 12)[:, ::2], (1,), None),
        (torch.empty(4, 12)[:, :6], (1,), None),  # rows with gaps between them
        (torch.empty(8, 6)[::2], (1,), None),
        (torch.empty(4, 1).expand(4, 6), (1,), None),
        (torch.empty(4, 2, 6).transpose(0, 1), (2,), None),  # rows out of order
        (torch.empty(4, 1), (1,), None),
        (torch.empty(0, 6), (1,), None),
    ],
)
def test_as_rows(tensor, dims, expected):
    assert as_rows(tensor.shape, tensor.stride(), dims) == expected


@pytest.mark.slow
def test_the_kernel_compiles_for_a_gpu_and_reads_16_bytes_at_a_time(tmp_path):
    """Needs no GPU: Triton brings its assembler."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_for_gpu", "80"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=900)
    assert result.returncode == 0, result.stderr
    aligned, unaligned = (dict(pair.split("=") for pair in line.split()) for line in result.stdout.splitlines())
    assert int(aligned["v4"]) > 0
    assert aligned["spilled"] == unaligned["spilled"] == "0"
    assert int(aligned["registers"]) <= 128  # half of what a thread may have: four warps on every scheduler
