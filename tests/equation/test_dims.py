"""Fan-in dims: checked, counted, viewed in groups."""

from __future__ import annotations

import pytest
import torch

from lightning_gc.equation.dims import fan_in_of, grouped, means_shape, resolve_dims


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        ((), None, ()),
        ((3,), None, ()),
        ((3, 4), None, (1,)),
        ((3, 4, 5, 6), None, (1, 2, 3)),
        ((3, 4), 0, (0,)),
        ((3, 4), -1, (1,)),
        ((3, 4, 5), (2, 0), (0, 2)),
        ((3, 4, 5), [-1, -3], (0, 2)),
        ((3, 4), (), ()),
        ((), (), ()),
        ((3, 4, 5), (d for d in (1, 2)), (1, 2)),
        ((3, 4, 5), {2, 1}, (1, 2)),
        (torch.Size((3, 4)), range(2), (0, 1)),
    ],
)
def test_resolved(shape, dims, expected):
    assert resolve_dims(shape, dims) == expected


@pytest.mark.parametrize("dims", ["1", "01", 1.0, (1.0,), True, (True,), (None,), [[1]], b"1"])
def test_types(dims):
    with pytest.raises(TypeError, match="dims must be an integer or a sequence of integers, got"):
        resolve_dims((3, 4), dims)


@pytest.mark.parametrize("dims", [2, -3, (0, 2), (5,)])
def test_out_of_range(dims):
    with pytest.raises(ValueError, match=r"out of range for shape \(3, 4\): allowed are -2 to 1\."):
        resolve_dims((3, 4), dims)


def test_a_scalar_has_no_dims():
    with pytest.raises(ValueError, match="a scalar has no dims"):
        resolve_dims((), 0)


@pytest.mark.parametrize("dims", [(1, 1), (0, -2), (-1, 0, 1)])
def test_repeated(dims):
    with pytest.raises(ValueError, match="twice"):
        resolve_dims((3, 4), dims)


@pytest.mark.parametrize(("shape", "groups"), [((3, 4), 2), ((), 2), ((4,), 0), ((4,), -2)])
def test_groups(shape, groups):
    with pytest.raises(ValueError, match=f"groups={groups} does not divide dim 0"):
        resolve_dims(shape, None, groups)


@pytest.mark.parametrize(
    ("shape", "dims", "groups", "expected"),
    [((8, 3, 3, 3), (1, 2, 3), 1, 27), ((6, 2, 5), (0, 2), 3, 10), ((6, 2), (1,), 3, 2), ((4,), (), 1, 1)],
)
def test_fan_in(shape, dims, groups, expected):
    assert fan_in_of(shape, dims, groups) == expected


@pytest.mark.parametrize("dims", [(1, 2, 3), (0, 2), (1,), (), (0, 1, 2, 3)])
def test_means_shape(dims):
    tensor = torch.zeros(8, 3, 2, 5)
    assert means_shape(tensor.shape, dims) == (tensor.sum(dims, keepdim=True).shape if dims else tensor.shape)


def test_grouped_is_a_view():
    tensor = torch.zeros(6, 2, 5).transpose(0, 2).contiguous().transpose(0, 2)
    view, dims = grouped(tensor, (0, 2), 3)
    assert view.shape == (3, 2, 2, 5)
    assert dims == (1, 3)
    view.fill_(1.0)
    assert tensor.sum() == 60


@pytest.mark.parametrize(("dims", "groups"), [((1,), 3), ((0, 1), 1)])
def test_not_grouped(dims, groups):
    tensor = torch.zeros(6, 2)
    assert grouped(tensor, dims, groups) == (tensor, dims)
