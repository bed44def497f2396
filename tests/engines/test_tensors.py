"""Weight vectors in tensors of their own: reading their means, moving them, measuring what was removed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gc import select
from lightning_gc.engines import TensorStore
from tests import oracle

ROLES = ["gradient", "weight"]
HOWS = ["centralized", "measured"]


def do(store: TensorStore, how: str):
    if how == "centralized":
        return store.recentre_("gradient")
    return store.recentre_measured_("gradient")


def network(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    """Plain, grouped, sparse and frozen parameters, and one without a gradient."""
    torch.manual_seed(0)
    module = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 3),
            "conv": nn.Conv2d(2, 3, 2),
            "up": nn.ConvTranspose1d(4, 6, 3, groups=2),
            "idle": nn.Linear(3, 2),
            "frozen": nn.Linear(3, 2).requires_grad_(False),
        }
    ).to(dtype)
    for name, parameter in module.named_parameters():
        if "idle" not in name and "frozen" not in name:
            parameter.grad = torch.randn(parameter.shape, dtype=dtype) + 1
    return module


def store_of(module: nn.Module) -> TensorStore:
    return TensorStore([entry for entry in select(module) if entry.layout is not None])


def held(store: TensorStore, role: str) -> list[torch.Tensor | None]:
    return [
        e.parameter.grad if role == "gradient" else e.parameter.detach() if e.parameter.requires_grad else None
        for e in store.entries
    ]


def expected_means(store: TensorStore, role: str) -> list[list[float] | None]:
    return [
        None if t is None else oracle.means_of(oracle.to_numpy(t), e.layout.dims, e.layout.groups)
        for e, t in zip(store.entries, held(store, role), strict=True)
    ]


def assert_means(store: TensorStore, role: str, expected: list, atol: float) -> None:
    for actual, wanted in zip(expected_means(store, role), expected, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None:
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=atol)


DTYPES = [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 2e-2), (torch.complex64, 1e-6)]


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("dtype", "atol"), DTYPES, ids=lambda v: str(v))
class TestBothRoles:
    def test_means(self, role, dtype, atol):
        store = store_of(network(dtype))
        expected = expected_means(store, role)
        for mean, wanted in zip(store.means(role), expected, strict=True):
            assert (mean is None) == (wanted is None)
            if mean is not None:
                np.testing.assert_allclose(mean.flatten().numpy(), wanted, rtol=0, atol=1e-6)

    def test_recentre_to_zero(self, role, dtype, atol):
        module = network(dtype)
        store = store_of(module)
        biases = [module[name].bias.detach().clone() for name in module]
        assert store.recentre_(role)
        assert_means(store, role, [m and [0.0] * len(m) for m in expected_means(store, role)], atol)
        assert all(torch.equal(module[n].bias, b) for n, b in zip(module, biases, strict=True))

    def test_recentre_to_the_means_of_before(self, role, dtype, atol):
        store = store_of(network(dtype))
        expected, means = expected_means(store, role), store.means(role)
        for tensor in held(store, role):
            if tensor is not None:
                tensor.add_(torch.randn_like(tensor))
        assert store.recentre_(role, means)
        assert_means(store, role, expected, atol)

    @pytest.mark.parametrize("moved", [False, True])
    def test_measured_does_the_same(self, role, dtype, atol, moved):
        silent, measured = store_of(network(dtype)), store_of(network(dtype))
        to = [None if m is None else m / 2 for m in silent.means(role)] if moved else None
        assert silent.recentre_(role, to)
        assert measured.recentre_measured_(role, to) is not None
        for one, other in zip(held(silent, role), held(measured, role), strict=True):
            assert one is None or torch.allclose(one, other, atol=atol)

    def test_measurement(self, role, dtype, atol):
        store = store_of(network(dtype))
        means = [np.abs(m or []) for m in expected_means(store, role)]
        norms = [0.0 if t is None else np.square(np.abs(oracle.to_numpy(t))).sum() for t in held(store, role)]
        measurement = store.recentre_measured_(role)
        assert measurement.vectors.tolist() == [len(m) for m in means]
        np.testing.assert_allclose(measurement.before, [m.sum() for m in means], rtol=1e-4)
        np.testing.assert_allclose(measurement.after, 0, atol=10 * atol)
        removed = [e.fan_in * np.square(m).sum() for e, m in zip(store.entries, means, strict=True)]
        np.testing.assert_allclose(measurement.squared_removed, removed, rtol=1e-4)
        if role == "gradient":
            np.testing.assert_allclose(measurement.squared_norm, norms, rtol=1e-5)
        else:
            assert measurement.squared_norm is None


class TestUpdates:
    def test_what_is_measured_is_the_update(self):
        """With remembered means: the means of what was added, before and after."""
        store = store_of(network())
        means = store.means("weight")
        with torch.no_grad():
            for entry in store.entries:
                entry.parameter.add_(0.25)
        measurement = store.recentre_measured_("weight", means)
        np.testing.assert_allclose(measurement.before / measurement.vectors.clamp(1), [0.25] * 4 + [0], rtol=1e-5)
        np.testing.assert_allclose(measurement.after, 0, atol=1e-5)

    def test_frozen_weights_stay(self):
        module = network()
        before = module["frozen"].weight.clone()
        store_of(module).recentre_("weight")
        assert torch.equal(module["frozen"].weight, before)

    def test_weights_stay_leaves(self):
        module = network()
        store_of(module).recentre_("weight")
        assert all(p.is_leaf for p in module.parameters())


class TestNothingToMove:
    def test_without_entries(self):
        store = TensorStore([])
        for how in HOWS:
            assert not do(store, how)
        assert store.means("weight") == []

    def test_without_gradients(self):
        module = network()
        module.zero_grad()
        store = store_of(module)
        for how in HOWS:
            assert not do(store, how)
        assert store.means("gradient") == [None] * 5


def one(gradient: torch.Tensor, shape: tuple[int, ...] | None = None, layer=nn.Linear) -> tuple[TensorStore, nn.Module]:
    rows, columns = shape or gradient.shape
    module = layer(columns, rows, bias=False) if layer is nn.Linear else layer(rows, columns)
    module.to(gradient.dtype).weight.grad = gradient
    return store_of(module), module


@pytest.mark.parametrize("how", HOWS)
class TestOddGradients:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_expanded(self, how, dtype):
        gradient = torch.arange(4.0).to(dtype).expand(3, 4)
        store, module = one(gradient)
        expected = oracle.centralized(gradient, (1,))
        assert do(store, how)
        np.testing.assert_allclose(oracle.to_numpy(module.weight.grad), expected)
        assert torch.equal(gradient[0], torch.arange(4.0).to(dtype))  # what shared its memory is left alone

    def test_non_contiguous(self, how):
        gradient = torch.randn(4, 3).t()
        expected = oracle.centralized(gradient, (1,))
        store, module = one(gradient)
        do(store, how)
        assert module.weight.grad is gradient
        np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-6)

    def test_channels_last(self, how):
        module = nn.Conv2d(3, 4, 3, bias=False)
        module.weight.grad = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
        expected = oracle.centralized(module.weight.grad, (1, 2, 3))
        do(store_of(module), how)
        np.testing.assert_allclose(module.weight.grad.numpy(), expected, atol=1e-6)
        assert module.weight.grad.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("coalesced", [True, False])
    def test_sparse(self, how, coalesced, dtype):
        values = torch.randn(3, 4).to(dtype)
        gradient = torch.sparse_coo_tensor([[2, 0, 2]], values, (5, 4), check_invariants=True)
        gradient = gradient.coalesce() if coalesced else gradient
        store, module = one(gradient, layer=nn.Embedding)
        expected = oracle.centralized(gradient.to(torch.float32), (1,))
        before = oracle.means_of(oracle.to_numpy(gradient.to(torch.float32)), (1,))
        norm = oracle.to_numpy(gradient.to(torch.float32))
        measurement = do(store, how)
        atol = 1e-6 if dtype == torch.float32 else 3e-2
        assert module.weight.grad.is_sparse
        np.testing.assert_allclose(oracle.to_numpy(module.weight.grad.to(torch.float32)), expected, atol=atol)
        if how != "centralized":
            assert measurement.vectors.tolist() == [5]
            np.testing.assert_allclose(measurement.before, [np.abs(before).sum()], atol=atol)
            np.testing.assert_allclose(measurement.after, 0, atol=atol)
            np.testing.assert_allclose(measurement.squared_norm, np.square(norm).sum(), rtol=1e-2)

    @pytest.mark.filterwarnings("ignore:Using backward")
    def test_a_gradient_with_a_graph(self, how):
        module = nn.Linear(4, 3, bias=False)
        module(torch.randn(2, 4)).pow(2).sum().backward(create_graph=True)
        expected = oracle.centralized(module.weight.grad, (1,))
        assert do(store_of(module), how)
        np.testing.assert_allclose(module.weight.grad.detach().numpy(), expected, atol=1e-5)
        module.weight.grad = None  # breaks the cycle that create_graph makes

    def test_a_gradient_in_16_bits_of_a_parameter_in_32(self, how):
        """Where `grad_dtype` lets a gradient have a type of its own, its mean is accumulated in float32."""
        module = nn.Linear(4096, 2, bias=False)
        if not hasattr(module.weight, "grad_dtype"):
            pytest.skip("this torch gives gradients the type of their parameter")
        module.weight.grad_dtype = torch.bfloat16
        module.weight.grad = (torch.randn(2, 4096, generator=torch.Generator().manual_seed(0)) + 30).bfloat16()
        wide = module.weight.grad.double()
        expected = (wide - wide.mean(1, keepdim=True)).bfloat16()
        do(store_of(module), how)
        torch.testing.assert_close(module.weight.grad, expected, rtol=2**-8, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_inf_and_nan_are_left_for_the_scaler(self, how, dtype):
        gradient = torch.randn(3, 4).to(dtype)
        gradient[1, 2] = float("inf")
        store, module = one(gradient)
        do(store, how)
        assert not module.weight.grad[1].isfinite().any()
        assert module.weight.grad[[0, 2]].isfinite().all()

    def test_other_errors_are_not_hidden(self, how):
        store, module = one(torch.zeros(3, 4))
        with torch.inference_mode():
            module.weight.grad = torch.zeros(3, 4)  # cannot be changed in place outside of that mode
        with pytest.raises(RuntimeError, match=r"[Ii]nference"):
            do(store, how)


@pytest.mark.parametrize("how", HOWS)
def test_what_fails_for_no_fault_of_the_gradient_is_not_tried_in_another_way(how, monkeypatch):
    act = torch.Tensor.sub_
    failures = ["out of memory"]

    def fail_once(*args, **kwargs):
        if failures:
            raise RuntimeError(failures.pop())
        return act(*args, **kwargs)

    store, _ = one(torch.ones(4, 3))
    monkeypatch.setattr(torch.Tensor, "sub_", fail_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        do(store, how)


def test_an_expanded_weight_is_refused_by_torch_and_its_gradient_left_alone():
    """No optimizer can step on it either."""
    module = nn.Linear(4, 3, bias=False)
    module.weight = nn.Parameter(torch.ones(1, 4).expand(3, 4))
    with pytest.raises(RuntimeError, match="single memory location"):
        store_of(module).recentre_("weight", [torch.zeros(3, 1)])
    assert module.weight.grad is None


def test_a_gradient_that_turns_sparse_and_back():
    module = nn.Embedding(5, 4)
    store = store_of(module)
    dense = torch.randn(5, 4)
    for gradient in (dense.clone(), dense.to_sparse(1), dense.clone(), dense.to_sparse(1)):
        module.weight.grad = gradient
        assert store.recentre_("gradient")
        np.testing.assert_allclose(oracle.to_numpy(gradient), oracle.centralized(dense, (1,)), atol=1e-6)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "hold",
    [
        pytest.param(lambda g: g, id="rows"),
        pytest.param(lambda g: g.t().contiguous().t(), id="columns"),
        pytest.param(lambda g: torch.stack([g, g], 1)[:, 0], id="rows with gaps"),
        pytest.param(lambda g: g.to_sparse(1), id="sparse"),
        pytest.param(lambda g: g[:1].expand(40, 8), id="expanded"),
        pytest.param(lambda g: g[:, :1].expand(40, 8), id="expanded columns"),
    ],
)
def test_however_a_gradient_is_held(how, hold):
    gradient = hold(torch.randn(40, 8))
    store, module = one(gradient, layer=nn.Embedding)
    expected = oracle.centralized(gradient, (1,))
    assert do(store, how)
    np.testing.assert_allclose(oracle.to_numpy(module.weight.grad), expected, atol=1e-6)
