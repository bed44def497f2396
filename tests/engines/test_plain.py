"""The equation in two calls, and what is measured on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_gc.engines import plain
from lightning_gc.engines.plain import centralize_, centralize_measured_, is_not_plain, is_plain, plan
from tests import oracle

LAYOUTS = [
    ((6, 4), (1,)),
    ((6, 4), (0,)),
    ((6, 2, 3), (1, 2)),
    ((6, 4, 3), (0, 2)),
    ((2, 6, 4), (1,)),
    ((6, 4), (0, 1)),
]


def one_of(shape, dims, dtype=torch.float32):
    (one,) = plan([0], [(torch.zeros(shape, dtype=dtype), dims, 1)])
    return one


@pytest.fixture(params=["whole", "by rows"])
def by_rows(request, monkeypatch):
    """Whether rows go through the cache block by block, as those of large gradients do on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(plain, "rows_per_block", lambda *_: 2 if request.param == "by rows" else 0)
    yield request.param == "by rows"
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("shape", "dims"), LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_the_oracle(shape, dims, dtype, by_rows):
    gradient = torch.randn(shape, dtype=dtype) + 1
    expected = oracle.centralized(gradient, dims)
    one = one_of(shape, dims, dtype)
    for act in (centralize_, centralize_measured_):
        copy = gradient.clone()
        act(one, copy)
        np.testing.assert_allclose(oracle.to_numpy(copy), expected, atol=1e-6)


@pytest.mark.parametrize(("shape", "dims"), LAYOUTS)
def test_what_is_measured(shape, dims, by_rows):
    gradient = torch.randn(shape, dtype=torch.float64) + 1
    sums = gradient.sum(dims, keepdim=True)
    before, after = torch.empty_like(sums), torch.empty_like(sums)
    found = centralize_measured_(one_of(shape, dims, torch.float64), gradient, before, after)
    torch.testing.assert_close(found[0], sums)
    torch.testing.assert_close(found[1], torch.zeros_like(sums), atol=1e-12, rtol=0)
    torch.testing.assert_close(found[2], gradient.norm())
    assert torch.equal(before, found[0])
    assert torch.equal(after, found[1])


def test_sums_are_left_where_they_are_wanted():
    gradient, sums = torch.ones(6, 4), torch.empty(6, 1)
    assert centralize_(one_of((6, 4), (1,)), gradient, sums) is gradient
    assert sums.tolist() == [[4.0]] * 6


def test_columns_do_not_go_by_rows(monkeypatch):
    monkeypatch.setattr(plain, "rows_per_block", lambda *_: 2)
    assert [one_of(shape, dims).rows_per_block for shape, dims in LAYOUTS] == [0 if 0 in d else 2 for _, d in LAYOUTS]


def test_what_is_plain():
    assert is_plain(torch.zeros(2, 3), 1)
    assert not is_plain(torch.zeros(2, 3), 2)
    assert not is_plain(torch.zeros(2, 3, dtype=torch.bfloat16), 1)


def test_what_is_not():
    assert is_not_plain(torch.eye(3).to_sparse())
    assert is_not_plain(torch.ones(3, 1).expand(3, 4))
    assert not is_not_plain(torch.ones(3, 4).t())


@pytest.mark.parametrize("gradient", [torch.ones(6, 4).to_sparse(), torch.ones(6, 1).expand(6, 4)])
@pytest.mark.parametrize("act", [centralize_, centralize_measured_])
def test_what_is_not_plain_is_not_changed(gradient, act, by_rows):
    with pytest.raises(RuntimeError):
        act(one_of((6, 4), (1,)), gradient)
    assert torch.equal(gradient.to_dense() if gradient.is_sparse else gradient, torch.ones(6, 4))
