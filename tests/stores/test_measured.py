"""Measuring gradients together: the same numbers as one by one, and the same gradients as without."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gc import select
from lightning_gc.functional import squared_norm, vector_means
from lightning_gc.measurement import Measurement
from lightning_gc.stores import TensorStore
from lightning_gc.stores.measured import _SMALL_BYTES


def network(seed: int = 0) -> nn.ModuleDict:
    """Many small gradients of one shape, some of others, a large one, and those that are not plain."""
    torch.manual_seed(seed)
    module = nn.ModuleDict(
        {
            **{f"small{i}": nn.Linear(8, 5) for i in range(40)},
            "conv": nn.Conv2d(3, 8, 3),
            "large": nn.Linear(300, _SMALL_BYTES // 300),
            "bf16": nn.Linear(16, 4, dtype=torch.bfloat16),
            "fp64": nn.Linear(8, 5, dtype=torch.float64),
            "up": nn.ConvTranspose1d(4, 6, 3, groups=2),
            "idle": nn.Linear(8, 5),
            "sparse": nn.Embedding(7, 6, sparse=True),
        }
    )
    for name, parameter in module.named_parameters():
        if name.split(".")[0] not in ("idle", "sparse"):
            parameter.grad = torch.randn_like(parameter) + 0.5
    module["sparse"](torch.tensor([1, 4, 4])).square().sum().backward()
    return module


def store_of(module: nn.Module) -> TensorStore:
    return TensorStore([entry for entry in select(module) if entry.layout is not None])


def one_by_one(store: TensorStore) -> dict[str, torch.Tensor]:
    """What is logged, from each gradient by itself."""
    present = [i for i, e in enumerate(store.entries) if e.parameter.grad is not None]

    def means() -> list[torch.Tensor]:
        entries = [store.entries[i] for i in present]
        return [vector_means(e.parameter.grad, e.layout.dims, e.layout.groups) for e in entries]

    norms = [squared_norm(store.entries[i].parameter.grad) for i in present]
    before = means()
    store.recentre_("gradient")
    ones = [
        Measurement.of_one(pre, post, store.entries[i].fan_in, norm)
        for i, pre, post, norm in zip(present, before, means(), norms, strict=True)
    ]
    places = torch.tensor(present)
    return logged(store, Measurement.joined(ones).placed(places, len(store.entries), torch.device("cpu")))


def logged(store: TensorStore, measurement: Measurement) -> dict[str, torch.Tensor]:
    return measurement.values([entry.name for entry in store.entries])


def test_the_same_is_measured_as_one_by_one():
    expected = one_by_one(store_of(network()))
    store = store_of(network())
    actual = logged(store, store.recentre_measured_("gradient"))
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_gradients_are_the_same_to_the_bit_measured_or_not():
    plain, measured = network(), network()
    store_of(plain).recentre_("gradient")
    store_of(measured).recentre_measured_("gradient")
    for (name, one), other in zip(plain.named_parameters(), measured.parameters(), strict=True):
        if one.grad is not None:
            one_grad, other_grad = (g.to_dense() if g.is_sparse else g for g in (one.grad, other.grad))
            assert torch.equal(one_grad, other_grad), name


def test_what_depends_on_shapes_is_planned_once_and_anew_when_other_gradients_are_there():
    module = network()
    store = store_of(module)
    store.recentre_measured_("gradient")
    measurer = store._measurer
    store.recentre_measured_("gradient")
    assert store._measurer is measurer
    module["small3"].weight.grad = None
    module["idle"].weight.grad = torch.ones(5, 8) * 3
    actual = logged(store, store.recentre_measured_("gradient"))
    assert store._measurer is not measurer
    assert actual["mean_pre/small3.weight"] == 0
    torch.testing.assert_close(actual["mean_pre/idle.weight"], torch.tensor(3.0))
    torch.testing.assert_close(actual["removed_norm/idle.weight"], torch.tensor(1.0))


class LargestAllocation(TorchDispatchMode):
    """The most elements of a tensor that an operation made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        inputs = {t.untyped_storage().data_ptr() for t in _tensors(args) if not t.is_sparse}
        for tensor in _tensors((result,)):
            if not tensor.is_sparse and tensor.untyped_storage().data_ptr() not in inputs:
                self.elements = max(self.elements, tensor.numel())
        return result


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("measured", [False, True])
def test_extra_memory_does_not_grow_with_the_gradient(dtype, measured):
    """One number for each weight vector, and copies of a mebibyte."""
    module = nn.Linear(1 << 11, 1 << 10, bias=False, dtype=dtype)
    module.weight.grad = torch.randn(module.weight.shape).to(dtype)
    store = store_of(module)
    with LargestAllocation() as seen:
        store.recentre_measured_("gradient") if measured else store.recentre_("gradient")
    assert seen.elements <= (1 << 20) // 4


def test_nothing_is_read_on_the_host():
    """`aten::_local_scalar_dense` is what `.item()`, `bool()` and the like come to; `nonzero` waits, too."""
    store = store_of(network())
    store.recentre_measured_("gradient")  # plans, which may look at what it likes
    with LargestAllocation() as seen:
        store.recentre_("gradient")
        store.recentre_measured_("gradient")
        store.recentre_("weight", store.means("weight"))
    assert len(seen.calls) > 100
    assert not [call for call in seen.calls if "_local_scalar_dense" in call or "nonzero" in call]


def test_a_step_is_two_calls_a_parameter():
    module = nn.ModuleList([nn.Linear(8, 5) for _ in range(10)])
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    store = store_of(module)
    with LargestAllocation() as seen:
        store.recentre_("gradient")
    assert len(seen.calls) == 20
