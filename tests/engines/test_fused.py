"""The store that uses the kernel, against the plain one: the same parameters, the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from lightning_gc import GradientCentralization, kernels, select
from lightning_gc.engines import TensorStore, tensor_store
from lightning_gc.engines.fused import FusedTensorStore
from lightning_gc.kernels.launch import INTERPRETED
from tests.models import Classifier, fit

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="neither a GPU nor Triton's interpreter"
)


def network() -> nn.ModuleDict:
    """What the kernel takes, and one of everything that it leaves to the plain path."""
    torch.manual_seed(0)
    module = nn.ModuleDict(
        {
            "linear": nn.Linear(12, 5),
            "conv": nn.Conv2d(3, 4, 3),
            "channels_last": nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
            "bf16": nn.Linear(16, 3, dtype=torch.bfloat16),
            "fp64": nn.Linear(6, 4, dtype=torch.float64),
            "transposed": nn.ConvTranspose1d(4, 6, 3, groups=2),
            "sparse": nn.Embedding(7, 6, sparse=True),
            "idle": nn.Linear(3, 2),
            "frozen": nn.Linear(3, 2).requires_grad_(False),
            "expanded": nn.Linear(4, 3),
        }
    ).to(DEVICE)
    for name, parameter in module.named_parameters():
        if name.split(".")[0] not in ("idle", "frozen", "sparse"):
            parameter.grad = torch.randn_like(parameter) + 1
    module["expanded"].weight.grad = torch.randn(3, 1, device=DEVICE).expand(3, 4)
    module["sparse"](torch.tensor([1, 4, 4], device=DEVICE)).square().sum().backward()
    return module


def stores() -> tuple[FusedTensorStore, TensorStore]:
    """The kernel's and the plain store of the same numbers."""
    one, other = network(), network()
    return tuple(
        kind([e for e in select(module) if e.layout is not None])
        for kind, module in ((FusedTensorStore, one), (TensorStore, other))
    )


def renew_gradients(store: FusedTensorStore | TensorStore, seed: int) -> None:
    """New numbers in the gradients that are dense and there."""
    torch.manual_seed(seed)
    for entry in store.entries:
        gradient = entry.parameter.grad
        if gradient is not None and not gradient.is_sparse and "expanded" not in entry.name:
            gradient.normal_(1)


def assert_same(one: torch.Tensor | None, other: torch.Tensor | None) -> None:
    assert (one is None) == (other is None)
    if one is None:
        return
    one, other = (t.to_dense() if t.is_sparse else t for t in (one.detach(), other.detach()))
    narrow = one.dtype == torch.bfloat16
    torch.testing.assert_close(one, other, rtol=2**-7 if narrow else 1e-6, atol=2e-6)


def assert_same_tensors(fused: FusedTensorStore, plain: TensorStore) -> None:
    for one, other in zip(fused.entries, plain.entries, strict=True):
        assert_same(one.parameter.grad, other.parameter.grad)
        assert_same(one.parameter, other.parameter)


def test_the_kernel_takes_what_it_was_shown_to_be_right_for_and_nothing_else():
    fused, _ = stores()
    assert fused.recentre_("gradient")
    plan = fused._plans["gradient"]
    taken = {fused.entries[i].name.split(".")[0] for _, indices in plan.batches for i in indices}
    assert taken == {"linear", "conv", "channels_last", "bf16"}
    assert len(plan.batches) == 2  # float32 and bfloat16


def test_gradients():
    fused, plain = stores()
    for seed in range(2):  # the second time with the plan of the first
        for store in (fused, plain):
            renew_gradients(store, seed)
        assert fused.recentre_("gradient") is plain.recentre_("gradient") is True
        assert_same_tensors(fused, plain)


@pytest.mark.parametrize("role", ["gradient", "weight"])
def test_means(role):
    fused, plain = stores()
    for one, other in zip(fused.means(role), plain.means(role), strict=True):
        assert_same(one, other)


def test_weights_move_back_to_the_means_they_had():
    fused, plain = stores()
    before = [store.means("weight") for store in (fused, plain)]
    for store, means in zip((fused, plain), before, strict=True):
        with torch.no_grad():
            for entry in store.entries:
                entry.parameter.add_(0.5)
        assert store.recentre_("weight", means)
    assert_same_tensors(fused, plain)


@pytest.mark.parametrize("role", ["gradient", "weight"])
def test_measurements(role):
    fused, plain = stores()
    results = []
    for store in (fused, plain):
        to = store.means("weight") if role == "weight" else None
        if role == "weight":
            with torch.no_grad():
                for i, entry in enumerate(store.entries):
                    entry.parameter.add_(0.1 * (i + 1))
        names = [entry.name for entry in store.entries]
        results.append(store.recentre_measured_(role, to).values(names))
    assert_same_tensors(fused, plain)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-3 if "bf16" in name else 1e-4)


def test_gradients_that_are_absent_or_held_otherwise_are_planned_anew():
    fused, plain = stores()
    for store in (fused, plain):
        store.recentre_("gradient")
        by_name = {entry.name: entry.parameter for entry in store.entries}
        renew_gradients(store, seed=1)
        by_name["linear.weight"].grad = None
        torch.manual_seed(1)
        conv = by_name["conv.weight"]
        conv.grad = torch.randn(3, 4, 3, 3, device=DEVICE).transpose(0, 1)
        assert store.recentre_("gradient")
    assert_same_tensors(fused, plain)


def test_nothing_to_move():
    module = nn.Linear(3, 2).to(DEVICE)
    store = FusedTensorStore(select(module).centralized)
    assert store.recentre_("gradient") is False
    assert store.recentre_measured_("gradient") is None
    assert store.means("gradient") == [None]


@pytest.mark.parametrize("usable", [True, False])
def test_it_is_used_where_it_runs(monkeypatch, usable):
    monkeypatch.setattr(kernels, "usable", lambda device: usable)
    entries = [e for e in select(network()) if e.layout is not None]
    assert type(tensor_store(entries)) is (FusedTensorStore if usable else TensorStore)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_training_is_the_same_with_the_kernel(monkeypatch, tmp_path, target):
    weights = []
    for usable in (False, True):
        monkeypatch.setattr(kernels, "usable", lambda device, usable=usable: usable)
        module = Classifier(lr=0.1, momentum=0.9, weight_decay=1e-2)
        fit(
            module,
            GradientCentralization(target=target),
            default_root_dir=tmp_path,
            limit_train_batches=3,
            log_every_n_steps=2,
            gradient_clip_val=1.0,
            accelerator="gpu" if DEVICE.type == "cuda" else "cpu",
        )
        weights.append(copy.deepcopy(module.cpu().state_dict()))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
