"""Measuring parameters together: the same numbers as one by one, and the same gradients as without."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gc import select
from lightning_gc.engines import TensorStore, chunks
from lightning_gc.engines.chunks import _MANY, _SMALL_BYTES, plan_chunks
from lightning_gc.equation.projection import squared_norm, vector_means
from lightning_gc.measuring.measurement import Measurement


class Weights(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


FAN_IN_DIMS = {"*experts": 1, "one_vector": (0, 1)}


def network(seed: int = 0) -> nn.ModuleDict:
    """Many small gradients of two shapes, some of others, a large one, and those that are not plain."""
    torch.manual_seed(seed)
    module = nn.ModuleDict(
        {
            **{f"small{i}": nn.Linear(8, 5) for i in range(40)},
            **{f"small_up{i}": nn.ConvTranspose1d(6, 4, 3) for i in range(10)},
            "conv": nn.Conv2d(3, 8, 3),
            "other_conv": nn.Conv2d(2, 5, 3),
            "transposed": nn.ConvTranspose2d(3, 7, 2),
            "experts": Weights(torch.zeros(4, 6, 5)),
            "other_experts": Weights(torch.zeros(3, 6, 5)),
            "one_vector": Weights(torch.zeros(4, 6)),
            "complex": nn.Linear(8, 5, dtype=torch.complex64),
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
    fan_in_dims = FAN_IN_DIMS if "experts" in dict(module.named_children()) else {}
    return TensorStore([entry for entry in select(module, fan_in_dims=fan_in_dims) if entry.layout is not None])


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
    return logged(store, Measurement.joined(ones).placed(places, len(store.entries)))


def logged(store: TensorStore, measurement: Measurement) -> dict[str, torch.Tensor]:
    return measurement.values([entry.name for entry in store.entries])


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_each_is_measured_as_by_itself():
    expected = one_by_one(store_of(network()))
    store = store_of(network())
    assert_same(logged(store, store.recentre_measured_("gradient")), expected)


@pytest.mark.parametrize("vectors", [1, 30, 1 << 16])
@pytest.mark.parametrize("copy_bytes", [1, 1000, 1 << 20])
def test_all_are_measured_as_one(vectors, copy_bytes, monkeypatch):
    """However many are reduced together."""
    expected = {name: value for name, value in one_by_one(store_of(network())).items() if "/" not in name}
    monkeypatch.setattr(chunks, "_CHUNK_VECTORS", vectors)
    monkeypatch.setattr(chunks, "_COPY_BYTES", copy_bytes)
    measurement = store_of(network()).recentre_measured_("gradient", each=False)
    assert [sums.shape for sums in measurement] == [(1,)] * 5
    assert_same(measurement.values(), expected)


def test_updates_are_measured_as_one():
    stores = [store_of(network()) for _ in range(2)]
    found = []
    for store, each in zip(stores, (True, False), strict=True):
        means = store.means("weight")
        with torch.no_grad():
            for entry in store.entries:
                entry.parameter.add_(0.25)
        found.append(store.recentre_measured_("weight", means, each=each))
    assert found[1].squared_norm is None
    torch.testing.assert_close(found[1].values()["mean_pre"], torch.tensor(0.25))
    assert_same(found[1].values(), found[0].values())


@pytest.mark.parametrize("each", [True, False])
def test_gradients_are_the_same_to_the_bit_measured_or_not(each):
    plain, with_measurement = network(), network()
    store_of(plain).recentre_("gradient")
    store_of(with_measurement).recentre_measured_("gradient", each=each)
    for (name, one), other in zip(plain.named_parameters(), with_measurement.parameters(), strict=True):
        if one.grad is not None:
            one_grad, other_grad = (g.to_dense() if g.is_sparse else g for g in (one.grad, other.grad))
            assert torch.equal(one_grad, other_grad), name


@pytest.mark.parametrize("each", [True, False])
def test_other_gradients_may_be_there_in_each_step(each):
    module = network()
    store = store_of(module)
    store.recentre_measured_("gradient", each=each)
    for parameter in module.parameters():
        parameter.grad = None
    module["idle"].weight.grad = torch.ones(5, 8) * 3
    module["conv"].weight.grad = torch.ones(8, 3, 3, 3)
    measurement = store.recentre_measured_("gradient", each=each)
    torch.testing.assert_close(measurement.values()["mean_pre"], torch.tensor((5 * 3 + 8 * 1) / 13))
    torch.testing.assert_close(measurement.values()["removed_norm"], torch.tensor(1.0))
    if each:
        values = logged(store, measurement)
        assert values["mean_pre/small3.weight"] == 0
        torch.testing.assert_close(values["mean_pre/idle.weight"], torch.tensor(3.0))


@pytest.mark.parametrize(
    ("layers", "kwargs"),
    [
        pytest.param(3, {"in_features": 9}, id="sums"),
        pytest.param(_MANY, {"in_features": 9}, id="sums, measured from a copy"),
        pytest.param(3, {"in_features": 9, "dtype": torch.bfloat16}, id="means"),
    ],
)
@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_gradient_that_is_not_there_any_more_counts_for_nothing(layers, kwargs, absent):
    stores = []
    for _ in range(2):
        torch.manual_seed(0)
        module = nn.ModuleList([nn.Linear(out_features=5, bias=False, **kwargs) for _ in range(layers)])
        store = store_of(module)
        for step in range(2):
            for i, layer in enumerate(module):
                layer.weight.grad = None if step and i == absent else torch.randn(5, 9).to(layer.weight.dtype) + 1
            if not step:
                store.recentre_measured_("gradient", each=False)
        stores.append(store)
    each, one = (store.recentre_measured_("gradient", each=e) for store, e in zip(stores, (True, False), strict=True))
    assert one.vectors.tolist() == [5 * (layers - 1)]
    assert_same(one.values(), each.values())


def test_chunks_are_planned_once_and_anew_when_a_gradient_is_not_what_was_planned_for():
    module = network()
    store = store_of(module)
    store.recentre_measured_("gradient", each=False)  # finds out which gradient is sparse
    assert not store._chunks
    store.recentre_measured_("gradient", each=False)
    planned = store._chunks[True]
    module["conv"].weight.grad = None
    store.recentre_measured_("gradient", each=False)
    assert store._chunks[True] is planned


def planned(shapes_and_dims, **kwargs):
    module = nn.ModuleList([Weights(torch.empty(shape, **kwargs)) for shape, _ in shapes_and_dims])
    dims = {f"{i}.weight": d for i, (_, d) in enumerate(shapes_and_dims)}
    entries = select(module, fan_in_dims=dims).centralized
    assert len(entries) == len(shapes_and_dims)
    return plan_chunks(entries, range(len(entries)))


def sizes(found):
    return [len(chunk.slots) for chunk in found]


def test_what_is_on_one_device_and_of_one_dtype_is_one_chunk():
    layers = [((8, 3, 3, 3), (1, 2, 3)), ((8, 3), (1,)), ((8, 3), (0,)), ((8, 3, 4), (1,)), ((8, 3), (0, 1))]
    (chunk,) = planned(layers)
    assert [slot.before.shape for slot in chunk.slots] == [(8, 1, 1, 1), (8, 1), (1, 3), (8, 1, 4), (1, 1)]
    assert not chunk.copied


def test_devices_and_dtypes_are_apart():
    module = nn.ModuleList(
        [Weights(torch.empty(8, 3, dtype=t, device=d)) for t in (torch.float32, torch.float64) for d in ("cpu", "meta")]
    )
    assert sizes(plan_chunks(select(module).centralized, range(4))) == [1] * 4


def test_a_chunk_has_so_many_weight_vectors_at_most_or_one_parameter(monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK_VECTORS", 20)
    assert sizes(planned([((n, 2), (1,)) for n in (10, 10, 1, 30, 5, 15)])) == [2, 1, 1, 2]


def test_chunks_share_their_memory(monkeypatch):
    monkeypatch.setattr(chunks, "_CHUNK_VECTORS", 20)
    one, other = planned([((20, 2), (1,)), ((10, 2), (1,))])
    assert one.slots[0].before.data_ptr() == other.slots[0].before.data_ptr()


def test_many_small_ones_of_one_shape_are_copied(monkeypatch):
    alike = [((8, 3), (1,))] * _MANY
    assert [chunk.copied for chunk in planned([*alike, ((8, 4), (1,))])] == [True, False]
    assert [chunk.copied for chunk in planned(alike[1:])] == [False]
    assert [chunk.copied for chunk in planned([*alike[1:], ((8, 3), (0,))])] == [False]  # cannot be summed as one
    monkeypatch.setattr(chunks, "_COPY_BYTES", 2 * 8 * 3 * 4)
    assert sizes(planned(alike)) == [2] * (_MANY // 2)


def test_large_ones_are_not_copied():
    rows = _SMALL_BYTES // 4 // 8
    assert [chunk.copied for chunk in planned([((rows, 8), (1,))] * _MANY)] == [True]
    assert [chunk.copied for chunk in planned([((rows + 1, 8), (1,))] * _MANY)] == [False]


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
@pytest.mark.parametrize("how", ["not measured", "each", "all"])
def test_extra_memory_does_not_grow_with_the_gradient(dtype, how):
    """One number for each weight vector, and copies of a mebibyte."""
    module = nn.Linear(1 << 11, 1 << 10, bias=False, dtype=dtype)
    module.weight.grad = torch.randn(module.weight.shape).to(dtype)
    store = store_of(module)
    with LargestAllocation() as seen:
        if how == "not measured":
            store.recentre_("gradient")
        else:
            store.recentre_measured_("gradient", each=how == "each")
    assert seen.elements <= (1 << 20) // 4


def test_nothing_is_read_on_the_host():
    """`aten::_local_scalar_dense` is what `.item()`, `bool()` and the like come to; `nonzero` waits, too."""
    store = store_of(network())
    store.recentre_measured_("gradient", each=False)  # plans, which may look at what it likes
    with LargestAllocation() as seen:
        store.recentre_("gradient")
        store.recentre_measured_("gradient")
        store.recentre_measured_("gradient", each=False)
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


def test_a_step_that_logs_is_two_calls_a_parameter_more():
    """The sum and the norm after: what is made of them is not done for each."""

    def calls(layers: int) -> int:
        module = nn.ModuleList([nn.Linear(9 + i, 5, bias=False) for i in range(layers)])
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        store = store_of(module)
        store.recentre_measured_("gradient", each=False)
        with LargestAllocation() as seen:
            store.recentre_measured_("gradient", each=False)
        return sum("view" not in call and "unsqueeze" not in call for call in seen.calls)

    assert calls(30) - calls(10) == 4 * 20
