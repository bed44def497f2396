"""What a step may take: two calls a parameter, no memory that grows with the gradient, and nothing read on the host."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import peak_extra_memory
from tests.engines.test_tensors import HOWS, do, network, store_of


class Watched(TorchDispatchMode):
    """All operations, and the most elements of a tensor that one made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        inputs = {t.untyped_storage().data_ptr() for t in tensors_in(args) if not t.is_sparse}
        for tensor in tensors_in((result,)):
            if not tensor.is_sparse and tensor.untyped_storage().data_ptr() not in inputs:
                self.elements = max(self.elements, tensor.numel())
        return result


def tensors_in(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", HOWS)
def test_extra_memory_does_not_grow_with_the_gradient(dtype, how):
    """One number for each weight vector of one parameter, and a mebibyte."""
    module = nn.Linear(1 << 11, 1 << 10, bias=False, dtype=dtype)
    module.weight.grad = torch.randn(module.weight.shape).to(dtype)
    store = store_of(module)
    with Watched() as seen:
        do(store, how)
    assert seen.elements <= (1 << 20) // 4


def test_nothing_is_read_on_the_host():
    """`aten::_local_scalar_dense` is what `.item()`, `bool()` and the like come to; `nonzero` waits, too."""
    store = store_of(network())
    with Watched() as seen:
        store.recentre_("gradient")
        store.recentre_measured_("gradient")
        store.recentre_("weight", store.means("weight"))
    assert len(seen.calls) > 50
    assert not [call for call in seen.calls if "_local_scalar_dense" in call or "nonzero" in call]


def test_a_step_is_two_calls_a_parameter():
    module = nn.ModuleList([nn.Linear(8, 5) for _ in range(10)])
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    store = store_of(module)
    with Watched() as seen:
        store.recentre_("gradient")
    assert len(seen.calls) == 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_to_the_bit_measured_or_not(dtype):
    plain, measured = network(dtype), network(dtype)
    store_of(plain).recentre_("gradient")
    store_of(measured).recentre_measured_("gradient")
    for (name, one), other in zip(plain.named_parameters(), measured.parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad), name


def test_other_gradients_may_be_there_in_each_step():
    module = network()
    store = store_of(module)
    store.recentre_measured_("gradient")
    module.zero_grad()
    module["idle"].weight.grad = torch.ones(2, 3) * 3
    module["linear"].weight.grad = torch.ones(3, 4)
    values = store.recentre_measured_("gradient").values([entry.name for entry in store.entries])
    torch.testing.assert_close(values["mean_pre"], torch.tensor((2 * 3 + 3 * 1) / 5))
    torch.testing.assert_close(values["removed_norm"], torch.tensor(1.0))
    assert values["mean_pre/conv.weight"] == 0
    torch.testing.assert_close(values["mean_pre/idle.weight"], torch.tensor(3.0))


@pytest.mark.parametrize("how", HOWS)
def test_what_is_kept_of_one_parameter_while_others_are_measured_does_not_grow(how):
    """Of 64 adapters with 4096 weight vectors each, never the sums of more than two at a time."""
    module = nn.ModuleList([nn.Linear(2, 4096, bias=False) for _ in range(64)])
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    store = store_of(module)
    assert peak_extra_memory(lambda: do(store, how), torch.device("cpu")) < 4 * 4 * 4096 + (1 << 14)
