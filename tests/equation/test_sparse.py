"""Sparse COO tensors: without densifying, without coalescing, without reading anything on the host."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lightning_gc import centralize, centralize_
from lightning_gc.equation.projection import norm_of, recentre_, vector_means
from lightning_gc.equation.sparse import scatter, sum_duplicates, value_dims


def uncoalesced() -> torch.Tensor:
    """Rows 2, 0, 2 of 4: row 2 twice."""
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 7.0], [0.0, 0.0, 3.0]])
    return torch.sparse_coo_tensor([[2, 0, 2]], values, (4, 3), check_invariants=True)


def test_values_are_centralized_row_by_row():
    out = centralize_(uncoalesced())
    assert not out.is_coalesced()
    expected = torch.tensor([[-1.0, -1.0, 2.0], [0.0, 0.0, 0.0], [-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(out.to_dense(), expected)
    torch.testing.assert_close(centralize(uncoalesced()).to_dense(), expected)


@pytest.mark.slow
def test_no_warning_of_unchecked_invariants():
    """Torch gives it once in a process, so it takes a process of its own to see that it does not come."""
    code = (
        "import torch; from lightning_gc import centralize; torch._C._set_warnAlways(True);"
        "embedding = torch.nn.Embedding(3, 2, sparse=True);"
        "embedding(torch.tensor([1])).sum().backward(); centralize(embedding.weight.grad)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", "-c", code], capture_output=True, text=True
    )
    assert "invariant" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_out_of_place_leaves_the_tensor_alone():
    tensor = uncoalesced()
    centralize(tensor)
    assert torch.equal(tensor.to_dense(), uncoalesced().to_dense())


def test_the_gradient_of_an_embedding():
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    dense = torch.nn.Embedding(10, 4)
    dense.load_state_dict(embedding.state_dict())
    indices = torch.tensor([1, 1, 7, 3])
    direction = torch.randn(4, 4)
    for layer in (embedding, dense):
        (layer(indices) * direction).sum().backward()
        centralize_(layer.weight.grad)
    assert embedding.weight.grad.is_sparse
    torch.testing.assert_close(embedding.weight.grad.to_dense(), dense.weight.grad)


def test_recentre_returns_the_sums_of_the_stored_rows():
    torch.testing.assert_close(recentre_(uncoalesced(), (1,)), torch.tensor([[6.0], [15.0], [3.0]]))


def test_means_of_all_rows():
    torch.testing.assert_close(vector_means(uncoalesced(), (1,)), torch.tensor([[5.0], [0.0], [3.0], [0.0]]))


def test_norm_counts_a_duplicated_row_once():
    expected = uncoalesced().to_dense().norm()
    torch.testing.assert_close(norm_of(uncoalesced()), expected)
    torch.testing.assert_close(norm_of(uncoalesced().coalesce()), expected)


def test_sum_duplicates_fills_with_zero_rows():
    values = sum_duplicates(uncoalesced())
    assert torch.equal(values, torch.tensor([[4.0, 4.0, 7.0], [1.0, 2.0, 6.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("coalesced", [True, False])
def test_nothing_stored(coalesced):
    tensor = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 3), (4, 3), check_invariants=True
    )
    tensor = tensor.coalesce() if coalesced else tensor
    assert centralize(tensor)._nnz() == 0
    assert centralize_(tensor)._nnz() == 0
    assert torch.equal(vector_means(tensor, (1,)), torch.zeros(4, 1))
    assert norm_of(tensor) == 0


def test_several_sparse_dims():
    """A sparse tensor with two sparse dims and one dense: a weight vector for each pair of indices."""
    indices = [[0, 1, 1, 1], [2, 0, 0, 2]]
    values = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0], [5.0, 6.0]])
    tensor = torch.sparse_coo_tensor(indices, values, (2, 3, 2), check_invariants=True)
    torch.testing.assert_close(centralize(tensor, 2).to_dense(), centralize(tensor.to_dense(), 2))
    means = vector_means(tensor, (2,))
    torch.testing.assert_close(means.reshape(2, 3), tensor.to_dense().mean(2))
    torch.testing.assert_close(norm_of(tensor), tensor.to_dense().norm())


def test_fan_in_dims_must_be_dense():
    tensor = torch.eye(3).to_sparse()  # both dims are sparse
    for function in (centralize, centralize_):
        with pytest.raises(ValueError, match=r"\(1,\) of a sparse tensor with 2 sparse dimension\(s\) of 2"):
            function(tensor)
    with pytest.raises(ValueError, match=r"only its dense dimensions, \(1,\)"):
        value_dims(uncoalesced(), (0,))


def test_value_dims():
    tensor = torch.sparse_coo_tensor([[0], [1]], torch.zeros(1, 4, 5), (2, 3, 4, 5), check_invariants=True)
    assert value_dims(tensor, (2, 3)) == (1, 2)


def test_scatter_adds_up():
    means = scatter(uncoalesced(), torch.tensor([[1.0], [2.0], [4.0]]))
    assert torch.equal(means, torch.tensor([[2.0], [0.0], [5.0], [0.0]]))
