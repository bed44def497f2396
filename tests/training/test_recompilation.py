"""What a lazy or compiling backend such as XLA needs: the same operations on the same shapes at every step.

What runs on XLA is in `tests/xla`. This is what can be seen without: which operations the callback runs, and on the `meta`
device, where there are no values to read, that it needs none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import lightning_gc.steps.steps
from lightning_gc import GradientCentralization, select
from lightning_gc.engines import TensorStore
from lightning_gc.steps.hooks import after_closure, around_step
from tests.models import Classifier, fit, image_batches

READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero", "equal.default")
"""Operations that give the host a value, or that have a shape which depends on values."""


class Operations(TorchDispatchMode):
    """Every operation by name, with the shapes of its tensors and all its other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        described = tree_map(describe, (args, kwargs or {}))
        self.seen.append(f"{function} {described}")
        return function(*args, **(kwargs or {}))


def describe(leaf: Any) -> Any:
    return f"{leaf.dtype}{tuple(leaf.shape)}" if isinstance(leaf, Tensor) else leaf


class Recorded(GradientCentralization):
    """The callback, with the operations of each step that it works in."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps: list[list[str]] = []

    def recorded(self, act: Any) -> Any:
        def recorded(*args: Any) -> None:
            with Operations() as operations:
                act(*args)
            self.steps[-1] += operations.seen

        return recorded

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append([])
        self.recorded(super().on_before_optimizer_step)(trainer, pl_module, optimizer)


def train(monkeypatch: pytest.MonkeyPatch, target: str, **kwargs: Any) -> list[list[str]]:
    callback = Recorded(target=target, log_means="per_parameter")
    record = callback.recorded
    monkeypatch.setattr(
        lightning_gc.steps.steps, "after_closure", lambda o, *acts: after_closure(o, *map(record, acts))
    )
    monkeypatch.setattr(lightning_gc.steps.steps, "around_step", lambda o, *acts: around_step(o, *map(record, acts)))
    fit(Classifier(**kwargs), callback, data=image_batches(count=9), log_every_n_steps=3)
    return callback.steps


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_every_step_is_the_same_and_reads_nothing(monkeypatch, target):
    steps = train(monkeypatch, target)
    assert len(steps) == 9
    plain, logged = [s for i, s in enumerate(steps) if i % 3 != 2], steps[2::3]
    # What the first step, and the first logged one, prepare is kept.
    assert all(step == plain[1] for step in plain[1:])
    assert logged[1] == logged[2]
    assert len(logged[1]) > len(plain[1]) > 0
    reads = [operation for step in steps for operation in step if any(read in operation for read in READS)]
    assert not reads


def test_a_gradient_takes_two_operations(monkeypatch):
    steps = train(monkeypatch, "gradient")
    assert [operation.split()[0] for operation in steps[1]] == ["aten.sum.dim_IntList", "aten.sub_.Tensor"] * 3


def on_meta() -> TensorStore:
    """A store of parameters without values: reading one, or a shape that depends on one, is an error."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Linear(6, 4), nn.Linear(6, 4))
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    return TensorStore([entry for entry in select(net) if entry.layout is not None])


@pytest.mark.parametrize("role", ["gradient", "weight"])
def test_no_value_is_needed(role):
    store = on_meta()
    means = store.means(role)
    assert [m.device.type for m in means] == ["meta"] * 4
    assert store.recentre_(role)
    assert store.recentre_(role, means)


@pytest.mark.parametrize("names", [[], ["a", "b", "c", "d"]])
def test_no_value_is_needed_to_log(names):
    store = on_meta()
    for _ in range(2):
        of_gradients = store.recentre_measured_("gradient").values(names)
        of_weights = store.recentre_measured_("weight", store.means("weight")).values(names)
        assert {value.device.type for value in [*of_gradients.values(), *of_weights.values()]} == {"meta"}


def test_a_read_would_show():
    with Operations() as operations:
        torch.ones(()).item()
        torch.ones(3).nonzero()
    assert all(any(read in operation for operation in operations.seen) for read in READS[:2])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty((), device="meta").item()
