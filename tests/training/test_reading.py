"""The graph of the first losses settles what is only assumed of parameters: in a real Trainer, by what weights do."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import lightning_gc.training.reading
from lightning_gc import GradientCentralization, select
from tests import oracle
from tests.models import Classifier, fit, image_batches

READ = "read from the graph"
DIMS: dict[str, tuple[tuple[int, ...], int] | None] = {
    "net.up": ((0,), 1),
    "net.heads": ((0,), 1),
    "net.blocks": ((0,), 2),
    "net.down": ((1,), 1),
    "net.scale": None,
    "net.position": None,
    "net.asks": ((2,), 1),
}
"""What each parameter of `Raw` is, written down by hand."""


class Raw(nn.Module):
    """Parameters of no known layer, of which "all but the first dim" is right for one."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in {
            "up": (64, 8), "heads": (8, 2, 3), "blocks": (6, 4), "down": (3, 8), "scale": (2, 3), "position": (2, 6),
            "asks": (1, 2, 4),
        }.items():  # fmt: skip
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator) / 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x.flatten(1) @ self.up)
        x = torch.einsum("bi,ihk->bhk", x, self.heads) * self.scale
        x = torch.tanh(x.flatten(1)[:, None] + self.position).mean(1)
        x = torch.einsum("bgi,gio->bgo", x.unflatten(1, (2, 3)), self.blocks.view(2, 3, 4))
        x = torch.tanh(x) * (x * self.asks).sum(-1, keepdim=True)
        return F.linear(x.flatten(1), self.down)


class Once(torch.autograd.Function):
    """x @ w, as a custom function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad @ w.T, x.T @ grad


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x.flatten(1), self.weight)


class Right(nn.Module):
    """(in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


class Keep(Callback):
    """The sources and dims after each batch."""

    def __init__(self, callback: GradientCentralization) -> None:
        self.callback, self.seen = callback, []

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append(layouts(self.callback))


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    return lambda: [r.getMessage() for r in caplog.records if "GradientCentralization" in r.getMessage()]


def layouts(callback: GradientCentralization) -> dict[str, Any]:
    return {entry.name: entry.layout and (entry.layout.dims, entry.layout.source) for entry in callback.selection}


def moved(net: nn.Module, *callbacks: Callback, steps: int = 1, **kwargs: Any) -> dict[str, Tensor]:
    """By how much each weight has moved after so many steps."""
    module = Classifier(net)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(module, *callbacks, data=image_batches(count=steps), precision="64-true", **kwargs)
    return {name: p.detach() - before[name] for name, p in module.named_parameters()}


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_the_first_step_already_takes_the_mean_over_the_right_dims(target):
    callback = GradientCentralization(target=target)
    without, with_it = moved(Raw()), moved(Raw(), callback)

    for name, says in DIMS.items():
        wanted = without[name] if says is None else torch.from_numpy(oracle.centralized(without[name], *says))
        torch.testing.assert_close(with_it[name], wanted, rtol=1e-9, atol=1e-12)
        assert says is None or (with_it[name] - without[name]).abs().max() > 1e-5
    assert {e.name: e.layout and (e.layout.dims, e.layout.groups) for e in callback.selection} == DIMS
    assert {e.layout.source for e in callback.selection if e.layout} == {READ}


def test_reading_ahead_of_training_says_the_same():
    module = Classifier(Raw())
    x, y = next(iter(image_batches()))
    selection = select(module, loss=F.cross_entropy(module(x), y))
    assert {e.name: e.layout and (e.layout.dims, e.layout.groups) for e in selection} == DIMS
    callback = GradientCentralization()
    fit(module, callback)
    assert str(callback.selection) == str(selection)


def test_no_hook_is_lost_and_no_plan_is_made_twice():
    class Hooks(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            (optimizer,) = trainer.optimizers
            seen.append((len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)))

    seen: list[tuple[int, int]] = []
    fit(Classifier(Raw()), GradientCentralization(target="update"), Hooks())
    assert set(seen) == {(1, 1)}


def test_what_is_known_costs_nothing(monkeypatch):
    monkeypatch.setattr(lightning_gc.training.reading, "Graph", None)
    monkeypatch.setattr(lightning_gc.training.reading, "read", None)
    fit(Classifier(), GradientCentralization())
    with pytest.raises(TypeError):
        fit(Classifier(Right()), GradientCentralization())


def test_it_reads_until_all_is_settled_and_no_longer(monkeypatch):
    class Counted(lightning_gc.training.reading.Graph):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    made: list[Any] = []
    monkeypatch.setattr(lightning_gc.training.reading, "Graph", Counted)
    fit(Classifier(Raw()), GradientCentralization())
    assert len(made) == 1
    fit(Classifier(Custom()), GradientCentralization(), data=image_batches(count=70))
    assert len(made) == 1 + 7


def test_a_layer_that_is_used_later():
    class Late(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + (self.late(x) if self.global_step >= 2 else 0)

    module, callback = Late(), GradientCentralization()
    module.late = Right()
    keep = Keep(callback)
    fit(module, callback, keep)
    name = "late.weight"
    assert [seen[name] for seen in keep.seen] == [((1,), "assumed")] * 3 + [((0,), READ)] * 5


def test_a_layer_that_is_unfrozen_later(lines):
    class Backbone(Classifier):
        def __init__(self) -> None:
            super().__init__(nn.Flatten())
            self.backbone, self.head = nn.Sequential(Right(), nn.Linear(3, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    callback = GradientCentralization()
    unfreeze = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01, verbose=False)
    fit(Backbone(), callback, unfreeze, max_epochs=2)
    assert layouts(callback)["backbone.0.weight"] == ((0,), READ)
    # Nothing is waited for before it is unfrozen.
    assert "until the graph" not in lines()[0]


def test_manual_optimization_with_two_losses():
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__(Right())
            self.automatic_optimization = False
            self.other = nn.Parameter(torch.randn(64, 3, generator=torch.Generator().manual_seed(1)))

        def training_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(x), y))
            self.manual_backward(F.cross_entropy(x.flatten(1) @ self.other, y))
            optimizer.step()

    trained, plain = Manual().double(), Manual().double()
    callback = GradientCentralization()
    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    fit(trained, callback, data=image_batches(count=2), precision="64-true")
    fit(plain, data=image_batches(count=2), precision="64-true")
    assert layouts(callback)["net.weight"] == ((0,), READ)
    # The first loss does not lead to it: it is looked for at the second.
    assert layouts(callback)["other"] == ((0,), READ)
    for name, parameter in trained.named_parameters():
        torch.testing.assert_close(parameter.mean(0), before[name].mean(0))
    assert (plain.net.weight.mean(0) - before["net.weight"].mean(0)).abs().max() > 1e-6


@pytest.mark.parametrize("filters", [{"include": "net.scale"}, {"exclude": ["net.[!s]*"]}])
def test_filters_that_leave_nothing_are_an_error_once_that_is_read(filters):
    with pytest.raises(MisconfigurationException, match=r"leave nothing to centralize(.|\n)*scales the data"):
        fit(Classifier(Raw()), GradientCentralization(**filters))


def test_filters_that_leave_what_only_the_graph_tells_are_none():
    """Of (1, heads, c), which is left alone until it is read, the callback does not say at the start that it is nothing."""
    callback = GradientCentralization(include="net.asks")
    fit(Classifier(Raw()), callback, data=image_batches(count=1))
    assert [entry.name for entry in callback.selection.centralized] == ["net.asks"]


def test_your_own_dims_come_first():
    callback = GradientCentralization(fan_in_dims={"net.up": 1, "net.scale": (0, 1)})
    fit(Classifier(Raw()), callback)
    seen = layouts(callback)
    assert seen["net.up"] == ((1,), "fan_in_dims")
    assert seen["net.scale"] == ((0, 1), "fan_in_dims")
    assert seen["net.heads"] == ((0,), READ)


def test_the_lines_say_what_waits_and_what_was_read(lines):
    callback = GradientCentralization()
    fit(Classifier(Raw()), callback)
    start, found = lines()
    assert start.endswith("(until the graph of the first loss has been read)")
    assert f"{callback!r}: read from the graph of the loss: " in found
    assert "dims (0,): net.up, net.heads" in found
    assert "dims (0,) in 2 groups: net.blocks" in found
    assert "left alone: not a set of weight vectors: scales the data (read from the graph): net.scale" in found
    assert "assumed" not in callback.selection.summary()


def test_what_cannot_be_read_stands_as_assumed_and_is_named(lines):
    callback = GradientCentralization()
    fit(Classifier(Custom()), callback)
    assert layouts(callback) == {"net.weight": ((1,), "assumed")}
    _, end = lines()
    assert "what was assumed stood, since no graph showed: net.weight (OnceBackward is not known)" in end


def test_after_the_last_look_it_is_said_that_the_assumption_stands(lines):
    fit(Classifier(Custom()), GradientCentralization(), data=image_batches(count=64))
    _, last = lines()
    assert "as assumed before, since it shows nothing of them (OnceBackward is not known): net.weight" in last


def test_a_backward_past_lightning_is_said_to_show_nothing(lines):
    class Past(Classifier):
        def __init__(self) -> None:
            super().__init__(Right())
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            optimizer = self.optimizers()
            optimizer.zero_grad()
            F.cross_entropy(self.net(x), y).backward()
            optimizer.step()

    callback = GradientCentralization()
    fit(Past(), callback)
    assert layouts(callback) == {"net.weight": ((1,), "assumed")}
    assert "net.weight (no backward went through Lightning)" in lines()[-1]


class Conv1D(Right):
    """Has the name of transformers' class."""


Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"


class Turned(Conv1D):
    """Does not what the table knows of its base."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight)


def test_where_the_graph_contradicts_the_table_it_is_right_and_warns_once():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Turned(), Turned()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    callback = GradientCentralization()
    with pytest.warns(UserWarning, match="graph of the loss shows") as caught:
        fit(Classifier(Two()), callback)
    (warning,) = [w for w in caught if "graph of the loss shows" in str(w.message)]
    assert (
        "the graph of the loss shows net.a.weight dims (1,), while dims (0,) are known of Turned. The graph is taken to be "
        "right." in str(warning.message)
    )
    assert layouts(callback) == {f"net.{name}.weight": ((1,), READ) for name in "ab"}


def test_where_both_agree_the_class_is_named():
    callback = GradientCentralization()
    fit(Classifier(Conv1D()), callback)
    assert layouts(callback) == {"net.weight": ((0,), "Conv1D")}
    assert not callback.selection.open


@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_a_compiled_module_is_read_in_one_step_and_runs_compiled_in_the_next(how):
    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)

        def run(*args: Any) -> Any:
            ran.append(len(seen))
            return graph.forward(*args)

        return run

    class Batches(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(1)

    torch._dynamo.reset()
    compiled, ran, seen = [], [], []
    net: Any = Raw()
    if how == "torch.compile":
        net = torch.compile(net, backend=backend)
    else:
        net.compile(backend=backend)
    callback = GradientCentralization()
    with_it = moved(net, callback, Batches(), steps=4)
    assert ran == [1, 2, 3]
    assert len(compiled) == 1
    plain = moved(Raw(), GradientCentralization(), steps=4)
    for name, wanted in plain.items():
        torch.testing.assert_close(
            with_it[name.replace("net.", "net._orig_mod.") if name not in with_it else name], wanted
        )
    assert {e.layout.source for e in callback.selection if e.layout} == {READ}


def test_an_error_in_a_step_that_is_read_leaves_compiled_modules_compiled():
    class Fails(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise RuntimeError("fails")

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    compiled: list[Any] = []
    torch._dynamo.reset()
    function = torch.compile(torch.sin, backend=backend)
    with pytest.raises(RuntimeError, match="fails"):
        fit(Fails(Right()), GradientCentralization())
    function(torch.ones(2))
    assert len(compiled) == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_and_autocast(precision, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.right = nn.Flatten(), Right()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).requires_grad_(reentrant)
            return torch.utils.checkpoint.checkpoint(self.right, x, use_reentrant=reentrant)

    callback = GradientCentralization()
    fit(Classifier(Checkpointed()), callback, precision=precision)
    assert layouts(callback)["net.right.weight"] == (((1,), "assumed") if reentrant else ((0,), READ))
