"""What makes it a projection, over dtypes, shapes, strides, fan-in dims and groups.

P = I - e eᵀ for each weight vector: linear, idempotent, self-adjoint, never longer than what it was
given; what it removes is constant along each weight vector and orthogonal to what it leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_gc import centralize, centralize_
from lightning_gc.equation.projection import norm_of, recentre_, vector_means
from tests import oracle

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
STRIDES = ["contiguous", "permuted", "sliced", "offset", "channels_last"]

# The same examples each time: a failure is a failure for everyone.
settings.register_profile("lightning-gc", deadline=None, derandomize=True, max_examples=100, database=None)
properties = settings(settings.get_profile("lightning-gc"))


@dataclass(frozen=True)
class Case:
    """A tensor that can be made again and again, its fan-in dims and groups."""

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    groups: int
    dtype: torch.dtype
    strides: str
    offset: float
    seed: int

    def tensor(self, another: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + another)
        values = torch.randn(self.shape, dtype=wide(self.dtype), generator=generator) + self.offset
        return restride(values.to(self.dtype), self.strides)

    def project(self, tensor: Tensor) -> Tensor:
        return centralize(tensor, self.dims, groups=self.groups)

    def means(self, tensor: Tensor) -> Tensor:
        """In float64 and by torch alone."""
        array = oracle.to_numpy(tensor)
        return torch.tensor(oracle.means_of(array, self.dims, self.groups), dtype=wide(self.dtype))

    @property
    def tolerance(self) -> float:
        """What rounding may do to one element: once in the element type, and n times where means accumulate."""
        eps = torch.finfo(self.dtype).eps
        accumulation = min(eps, torch.finfo(torch.float32).eps)
        largest = 8 + abs(self.offset)  # of a few hundred normal numbers
        return largest * (2 * eps + math.prod(self.shape) * accumulation)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def restride(values: Tensor, strides: str) -> Tensor:
    """The same values in another order of memory, or as part of a larger tensor."""
    rank = values.dim()
    if strides == "permuted":
        return values.permute(*reversed(range(rank))).contiguous().permute(*reversed(range(rank)))
    if strides == "sliced":
        room = values.new_full([2 * size + 1 for size in values.shape], 77.0)
        view = room[tuple(slice(1, None, 2) for _ in values.shape)]
        return view.copy_(values)
    if strides == "offset":
        room = values.new_full((values.numel() + 3,), 77.0)
        return room[3:].view(values.shape).copy_(values)
    if strides == "channels_last" and rank in (4, 5):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return values.to(memory_format=formats[rank])
    return values.contiguous()


@st.composite
def cases(draw: st.DrawFn, min_size: int = 1, dtypes: list[torch.dtype] = DTYPES) -> Case:
    shape = tuple(draw(st.lists(st.integers(min_size, 5), min_size=1, max_size=5)))
    dims = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    groups = draw(st.sampled_from([g for g in range(1, shape[0] + 1) if shape[0] % g == 0] or [1]))
    return Case(
        shape,
        dims,
        groups,
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(STRIDES)),
        draw(st.sampled_from([0.0, 1.0, -20.0])),
        draw(st.integers(0, 2**16)),
    )


def double(tensor: Tensor) -> Tensor:
    return tensor.to(wide(tensor.dtype))


def inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.vdot(double(a).flatten(), double(b).flatten())


@properties
@given(cases(min_size=0))
def test_equals_the_oracle(case: Case):
    tensor = case.tensor()
    expected = oracle.centralized(tensor, case.dims, case.groups)
    np.testing.assert_allclose(oracle.to_numpy(case.project(tensor)), expected, rtol=0, atol=case.tolerance)


@properties
@given(cases(min_size=0))
def test_in_place_equals_out_of_place_and_touches_nothing_else(case: Case):
    tensor = case.tensor()
    expected = double(case.project(tensor))
    assert centralize_(tensor, case.dims, groups=case.groups) is tensor
    torch.testing.assert_close(double(tensor), expected, rtol=0, atol=case.tolerance)
    if tensor._base is not None and case.strides in ("sliced", "offset"):
        tensor.fill_(77.0)
        assert (tensor._base == 77.0).all()


@properties
@given(cases())
def test_means_are_zero(case: Case):
    assert (case.means(case.project(case.tensor())).abs() <= case.tolerance).all()


@properties
@given(cases())
def test_idempotent(case: Case):
    once = case.project(case.tensor())
    torch.testing.assert_close(double(case.project(once)), double(once), rtol=0, atol=case.tolerance)


@properties
@given(cases(), st.floats(-2, 2), st.floats(-2, 2))
def test_linear(case: Case, a: float, b: float):
    x, y = double(case.tensor()), double(case.tensor(another=1))
    combined = case.project((a * x + b * y).to(case.dtype))
    separate = a * double(case.project(x.to(case.dtype))) + b * double(case.project(y.to(case.dtype)))
    torch.testing.assert_close(double(combined), separate, rtol=0, atol=8 * case.tolerance)


@properties
@given(cases())
def test_self_adjoint(case: Case):
    a, b = case.tensor(), case.tensor(another=1)
    error = inner(case.project(a), b) - inner(a, case.project(b))
    scale = math.prod(case.shape) * (8 + abs(case.offset))
    assert error.abs() <= 2 * scale * case.tolerance


@properties
@given(cases())
def test_what_is_removed_is_orthogonal_to_what_is_left(case: Case):
    tensor = case.tensor()
    left = double(case.project(tensor))
    removed = double(tensor) - left
    scale = math.prod(case.shape) * (8 + abs(case.offset))
    assert inner(left, removed).abs() <= 2 * scale * case.tolerance


@properties
@given(cases())
def test_the_norm_never_grows(case: Case):
    tensor = case.tensor()
    before, after = double(tensor).norm(), double(case.project(tensor)).norm()
    # Each element is rounded once, which may add one rounding to the norm.
    assert after <= before * (1 + torch.finfo(case.dtype).eps) + math.sqrt(math.prod(case.shape)) * case.tolerance / 8


@properties
@given(cases())
def test_constants_along_the_weight_vector_go_and_only_they(case: Case):
    """What is constant along each weight vector is mapped to zero; what has mean zero is kept."""
    tensor = case.tensor()
    of_vectors = vector_means(tensor, case.dims, case.groups)
    grouped = case.groups > 1 and 0 in case.dims
    shape = (case.groups, case.shape[0] // case.groups, *case.shape[1:]) if grouped else case.shape
    constant = of_vectors.to(case.dtype).expand(shape).reshape(case.shape)
    assert (double(case.project(constant)).abs() <= case.tolerance).all()


@properties
@given(cases())
def test_pythagoras_for_the_logged_quantities(case: Case):
    """‖g‖² = ‖P g‖² + Σ n μ²: what `removed_norm` is made of."""
    tensor = double(case.tensor())
    case = replace(case, dtype=tensor.dtype)
    means = vector_means(tensor, case.dims, case.groups)
    fan_in = tensor.numel() // means.numel()
    total = norm_of(case.project(tensor)).square() + fan_in * means.abs().square().sum()
    torch.testing.assert_close(total, norm_of(tensor).square())


@properties
@given(cases(), st.sampled_from([math.inf, -math.inf, math.nan]), st.integers(0, 10**6), st.booleans())
def test_inf_and_nan_are_passed_on_within_their_weight_vector(case: Case, bad: float, where: int, in_place: bool):
    tensor = case.tensor()
    vectors = oracle.weight_vector_indices(case.shape, case.dims, case.groups)
    vector = vectors[where % len(vectors)]
    expected = oracle.centralized(tensor, case.dims, case.groups)
    tensor[vector[where % len(vector)]] = bad
    out = centralize_(tensor, case.dims, groups=case.groups) if in_place else case.project(tensor)
    for index in vector:
        assert not out[index].isfinite()
        expected[index] = out[index].item()
    np.testing.assert_allclose(oracle.to_numpy(out), expected, rtol=0, atol=case.tolerance, equal_nan=True)


@properties
@given(cases(dtypes=[torch.float32, torch.bfloat16, torch.float64]), st.integers(0, 3))
def test_recentre_restores_any_means(case: Case, another: int):
    """What ``target="update"`` does: whatever was added, the means are those of before."""
    before = case.tensor()
    means = vector_means(before, case.dims, case.groups)
    after = before + case.tensor(another)
    recentre_(after, case.dims, case.groups, means)
    torch.testing.assert_close(case.means(after), case.means(before), rtol=0, atol=4 * case.tolerance)


@st.composite
def sparse_cases(draw: st.DrawFn) -> tuple[Tensor, tuple[int, ...]]:
    """Sparse COO tensors with one to three sparse dims, duplicates included, and fan-in dims among the dense."""
    sparse = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    dense = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    count = draw(st.integers(0, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    indices = torch.stack([torch.randint(0, size, (count,), generator=generator) for size in sparse])
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.randn(count, *dense, dtype=wide(dtype), generator=generator).to(dtype)
    rank = len(sparse) + len(dense)
    dims = draw(st.sets(st.integers(len(sparse), rank - 1), min_size=1))
    tensor = torch.sparse_coo_tensor(indices, values, (*sparse, *dense), check_invariants=True)
    return (tensor.coalesce() if draw(st.booleans()) else tensor), tuple(sorted(dims))


def dense_double(tensor: Tensor) -> Tensor:
    """Duplicates added up in float64."""
    values = double(tensor._values())
    return torch.sparse_coo_tensor(tensor._indices(), values, tensor.shape, check_invariants=True).to_dense()


def sparse_tolerance(tensor: Tensor) -> float:
    """Duplicates add up after each was rounded."""
    return 200 * torch.finfo(tensor.dtype).eps


@properties
@given(sparse_cases(), st.booleans())
def test_sparse_equals_dense(sparse_case: tuple[Tensor, tuple[int, ...]], in_place: bool):
    tensor, dims = sparse_case
    dense = dense_double(tensor)
    stored = tensor._indices().clone()
    out = centralize_(tensor, dims) if in_place else centralize(tensor, dims)
    assert out.is_coalesced() == tensor.is_coalesced()
    assert torch.equal(out._indices(), stored)
    np.testing.assert_allclose(
        dense_double(out), oracle.centralized(dense, dims), rtol=0, atol=sparse_tolerance(tensor)
    )


@properties
@given(sparse_cases())
def test_sparse_means_and_norms_equal_dense(sparse_case: tuple[Tensor, tuple[int, ...]]):
    tensor, dims = sparse_case
    dense = dense_double(tensor)
    means = vector_means(tensor, dims)
    tolerance = sparse_tolerance(tensor)
    np.testing.assert_allclose(means.flatten(), oracle.means_of(dense.numpy(), dims), rtol=0, atol=tolerance)
    np.testing.assert_allclose(norm_of(tensor), norm_of(dense), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_strategies_reach_every_dtype(dtype):
    """`centralize` keeps the dtype of each of them."""
    assert centralize(torch.ones(2, 3, dtype=dtype)).dtype == dtype
