"""target="update": every weight vector keeps its mean for the whole run, whatever the optimizer does."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_gc import GradientCentralization, select
from tests import oracle
from tests.models import Classifier, fit, small_cnn
from tests.recorder import Recorder, largest_drift, selected_dims

# Every optimizer of torch.optim, with weight decay where it knows any.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adadelta": {"lr": 1.0, "weight_decay": 0.1},
    "Adafactor": {"lr": 0.05, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.05, "weight_decay": 0.1},
    "Adam": {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.02, "weight_decay": 0.5},
    "Adamax": {"lr": 0.02, "weight_decay": 0.1},
    "ASGD": {"lr": 0.1, "weight_decay": 0.1},
    "LBFGS": {"lr": 0.05, "max_iter": 3},
    "NAdam": {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "RAdam": {"lr": 0.1, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "centered": True},
    "Rprop": {"lr": 0.02},
    "SGD": {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True},
}
# Muon takes matrices alone (a model of its own below); SparseAdam takes sparse gradients (tests/test_works_with.py).
ELSEWHERE = {"Muon", "SparseAdam", "Optimizer"}


def test_every_optimizer_of_torch_is_here():
    there = {n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)}
    assert there == set(OPTIMIZERS) | ELSEWHERE


def drift(module: Classifier, *callbacks: Any, **trainer_arguments: Any) -> tuple[float, float]:
    """How far the means of the weight vectors moved in two epochs, and how far the weights did."""
    recorder = Recorder()
    fit(module, recorder, *callbacks, precision="64-true", max_epochs=2, **trainer_arguments)
    first, last = recorder.weights[0], recorder.weights[-1]
    assert len(recorder.weights) > 2
    return largest_drift(first, last, module), max(
        float((last[n] - first[n]).abs().max()) for n in selected_dims(module)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_means_stay_for_the_whole_run(name: str):
    arguments = {"optimizer": getattr(torch.optim, name), **OPTIMIZERS[name]}
    moved_without, _ = drift(Classifier(**arguments), limit_train_batches=3)
    assert moved_without > 1e-4
    moved, weights_moved = drift(
        Classifier(**arguments), GradientCentralization(target="update"), limit_train_batches=3
    )
    assert weights_moved > 1e-2
    assert moved < 1e-14


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
def test_means_stay_with_muon():
    def linear() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 3, bias=False))

    arguments = {"optimizer": torch.optim.Muon, "lr": 0.02, "weight_decay": 0.5}
    assert drift(Classifier(linear(), **arguments), limit_train_batches=3)[0] > 1e-6
    moved, weights_moved = drift(
        Classifier(linear(), **arguments), GradientCentralization(target="update"), limit_train_batches=3
    )
    assert weights_moved > 1e-2
    assert moved < 1e-14


def test_only_the_selected_weight_vectors_are_held():
    module, recorder = Classifier(weight_decay=0.5), Recorder()
    fit(module, recorder, GradientCentralization(exclude="net.6", target="update"), precision="64-true", max_steps=4)
    dims = (1, 2, 3)
    before, after = recorder.weights[0], recorder.weights[-1]
    assert (after["net.0.weight"] - before["net.0.weight"]).mean(dims).abs().max() < 1e-15
    assert (after["net.6.weight"] - before["net.6.weight"]).mean(1).abs().max() > 1e-4


class Skipped(Classifier):
    """Its second step overflows, so a gradient scaler skips it."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_changes_nothing(fused: bool):
    """Fused optimizers are called for a step that they skip inside: the step hooks do run."""
    module = Skipped(optimizer=torch.optim.Adam, lr=0.01, weight_decay=0.1, fused=fused)
    seen: list[dict[str, torch.Tensor]] = []

    class AtEachBatch(Recorder):
        def on_train_batch_end(self, trainer, pl_module, *_: Any) -> None:
            seen.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    recorder = AtEachBatch()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fit(
        module,
        recorder,
        GradientCentralization(target="update"),
        max_steps=3,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
    )
    assert scaler.get_scale() == 512.0, "the scaler was meant to skip one step"
    for name in seen[0]:
        assert torch.equal(seen[0][name], seen[1][name]), name
    assert any(not torch.equal(seen[1][name], seen[2][name]) for name in seen[0])
    assert largest_drift(recorder.weights[0], seen[2], module) < 1e-6


class MeasuringSGD(torch.optim.SGD):
    """Counts the elements of all tensors that are alive when its step runs."""

    alive = 0

    def step(self, closure=None):
        result = super().step(closure)
        gc.collect()
        storages = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) in (torch.Tensor, nn.Parameter) and t.layout == torch.strided
        }
        MeasuringSGD.alive = sum(storages.values()) // 4
        return result


def test_memory_is_one_number_per_weight_vector():
    def alive_in_step(*callbacks: Any) -> int:
        gc.collect()
        fit(Classifier(optimizer=MeasuringSGD), *callbacks, max_steps=1)
        return MeasuringSGD.alive

    alive_in_step()  # what is made once and kept
    without = alive_in_step()
    with_callback = alive_in_step(GradientCentralization(target="update", log_means="off"))
    vectors = sum(e.weight_vectors for e in select(Classifier()).centralized)
    # GradientMeans holds ten numbers, its states and their defaults.
    assert vectors <= with_callback - without <= vectors + 10


class Broken(Classifier):
    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("broken on purpose")
        return super().training_step(batch, batch_idx)


class BrokenSGD(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        raise RuntimeError("broken on purpose")


def hooks_left(module: Classifier) -> int:
    optimizer = module.made
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def remembering(cls: type[Classifier]) -> type[Classifier]:
    """The class, with the optimizer that it made in `made`: the Trainer drops it after fit."""

    class Remembering(cls):
        def configure_optimizers(self):
            self.made = super().configure_optimizers()
            return self.made

    return Remembering


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_hooks_are_gone_after_fit_and_after_an_exception(target: str):
    module = remembering(Classifier)()
    callback = GradientCentralization(target=target)
    fit(module, callback, max_steps=2)
    assert hooks_left(module) == 0

    for broken in (remembering(Broken)(), remembering(Classifier)(optimizer=BrokenSGD)):
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(broken, callback, max_steps=2)
        assert hooks_left(broken) == 0
        assert all(entry.parameter is None for entry in callback.selection)


def test_logged_are_the_means_of_the_update():
    """Under plain SGD with weight decay the update is -lr (g + λw), and so are its means."""
    lr, decay = 0.1, 0.5
    reference = Recorder()
    fit(Classifier(lr=lr, weight_decay=decay), reference, precision="64-true", max_steps=1)
    module = Classifier(lr=lr, weight_decay=decay)
    trainer = fit(
        module,
        GradientCentralization(target="update", log_means="per_parameter"),
        precision="64-true",
        max_steps=1,
        log_every_n_steps=1,
    )
    every = []
    for name, (dims, groups) in selected_dims(module).items():
        update = -lr * (reference.used[0][name] + decay * reference.weights[0][name])
        means = [abs(m) for m in oracle.means_of(update.numpy(), dims, groups)]
        every += means
        logged = trainer.callback_metrics[f"gc/mean_pre/{name}"]
        torch.testing.assert_close(float(logged), sum(means) / len(means), rtol=1e-6, atol=0)
        assert trainer.callback_metrics[f"gc/mean_post/{name}"] < 1e-16
    torch.testing.assert_close(
        float(trainer.callback_metrics["gc/mean_pre"]), sum(every) / len(every), rtol=1e-6, atol=0
    )
    assert trainer.callback_metrics["gc/mean_post"] < 1e-16
    assert not any("removed_norm" in name for name in trainer.callback_metrics)


# --- optimizers whose step is made of another's -------------------------------------------------------------------


class DecayFirst(torch.optim.AdamW):
    """A subclass that calls the step of its base: torch runs the hooks around both of them."""

    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.9)
        super().step()
        return loss


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_steps_within_steps(target: str):
    torch.optim.AdamW(nn.Linear(2, 2).parameters())  # from the first AdamW on, torch runs hooks around AdamW.step too
    module, recorder = Classifier(optimizer=DecayFirst, lr=0.01), Recorder()
    trainer = fit(
        module,
        recorder,
        GradientCentralization(target=target),
        precision="64-true",
        max_steps=3,
        log_every_n_steps=1,
    )
    assert trainer.callback_metrics["gc/mean_pre"] > 1e-5, "the means of the outer, empty change were logged"
    if target == "update":
        assert largest_drift(recorder.weights[0], recorder.weights[-1], module) < 1e-14


class GrowsInTraining(Classifier):
    """Gives its optimizer more parameters in the middle of a step, inside the closure."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[6].parameters(), lr=0.1, weight_decay=0.5)

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            group = {"params": list(self.net[:6].parameters())}
            optimizer = self.trainer.optimizers[0]
            optimizer.add_param_group(group)
            optimizer.param_groups.reverse()
        return super().training_step(batch, batch_idx)


def test_parameters_that_appear_in_the_middle_of_a_step():
    module, recorder = GrowsInTraining(small_cnn()), Recorder()
    fit(module, recorder, GradientCentralization(target="update"), precision="64-true", max_steps=4)
    weights = recorder.weights
    assert largest_drift(weights[2], weights[4], module) < 1e-14
    head = "net.6.weight"
    assert (weights[4][head] - weights[0][head]).mean(1).abs().max() < 1e-14
    conv = "net.0.weight"
    assert not torch.equal(weights[1][conv], weights[2][conv])
    assert weights[4][conv].abs().max() > 1e-2


class Unfreezes(Classifier):
    """Unfreezes a layer in the middle of a step, inside the closure."""

    def training_step(self, batch, batch_idx):
        self.net[0].requires_grad_(batch_idx > 0)
        return super().training_step(batch, batch_idx)


def test_parameters_that_are_unfrozen_in_the_middle_of_a_step():
    module, recorder = Unfreezes(), Recorder()
    module.net[0].requires_grad_(False)
    fit(module, recorder, GradientCentralization(target="update"), precision="64-true", max_steps=3)
    assert largest_drift(recorder.weights[0], recorder.weights[3], module) < 1e-14


class Clamping(Classifier):
    """Changes a weight by hand in its training step, as WGANs do: that is not the optimizer's update."""

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.net[6].weight.fill_(0.25)
        return super().training_step(batch, batch_idx)


def test_what_a_training_step_does_to_the_weights_stays():
    module, recorder = Clamping(weight_decay=0.5), Recorder()
    fit(module, recorder, GradientCentralization(target="update"), precision="64-true", max_steps=2)
    torch.testing.assert_close(recorder.weights[2]["net.6.weight"].mean(1), torch.full((3,), 0.25).double())


class IgnoresItsClosure(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter -= 0.1 * parameter.grad


class ManualWithClosure(Classifier):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = super(ManualWithClosure, self).training_step(batch, batch_idx)
            self.manual_backward(loss)
            return loss

        if isinstance(optimizer.optimizer, IgnoresItsClosure):
            closure()
        optimizer.step(closure=closure)


def test_a_closure_in_manual_optimization():
    module, recorder = ManualWithClosure(weight_decay=0.5), Recorder()
    fit(module, recorder, GradientCentralization(target="update"), precision="64-true", max_steps=3)
    assert largest_drift(recorder.weights[0], recorder.weights[-1], module) < 1e-14


def test_an_optimizer_that_ignores_its_closure_is_warned_of():
    with pytest.warns(UserWarning, match="did not call it"):
        fit(ManualWithClosure(optimizer=IgnoresItsClosure), GradientCentralization(target="update"), max_steps=2)
