"""target="clipped_gradient": the gradient that the optimizer uses has zero mean, and respects the clip."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.nn import functional as F  # noqa: N812

from lightning_gc import GradientCentralization
from tests import oracle
from tests.models import Classifier, fit
from tests.recorder import Recorder, Tensors, largest_drift, largest_mean, selected_dims

LR = 0.1
CLIP = {"norm": 0.05, "value": 0.004}


class ManualClassifier(Classifier):
    """Clips and steps by hand."""

    def __init__(self, algorithm: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.algorithm = algorithm

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, CLIP[self.algorithm], self.algorithm)
        optimizer.step()


class OwnClippingClassifier(Classifier):
    """Clips in `configure_gradient_clipping`, and counts how often that is called."""

    def __init__(self, algorithm: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.algorithm = algorithm
        self.calls = 0

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.calls += 1
        self.clip_gradients(optimizer, CLIP[self.algorithm], self.algorithm)


def clipped(raw: Tensors, algorithm: str) -> Tensors:
    """The formulas of torch.nn.utils.clip_grad_norm_ (with its 1e-6) and clip_grad_value_."""
    bound = CLIP[algorithm]
    if algorithm == "value":
        return {name: g.clamp(-bound, bound) for name, g in raw.items()}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in raw.values()))
    return {name: g * min(1.0, bound / (norm + 1e-6)) for name, g in raw.items()}


def way(kind: str, algorithm: str) -> tuple[Classifier, dict]:
    """A module and the Trainer's arguments for one way of clipping."""
    trainers = {"gradient_clip_val": CLIP[algorithm], "gradient_clip_algorithm": algorithm}
    if kind == "manual":
        return ManualClassifier(algorithm, lr=LR), {}
    if kind == "own":
        return OwnClippingClassifier(algorithm, lr=LR), {}
    if kind == "accumulated":
        return Classifier(lr=LR), {**trainers, "accumulate_grad_batches": 3}
    return Classifier(lr=LR), trainers


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("kind", ["automatic", "manual", "own", "accumulated"])
def test_used_gradient_is_the_centralized_clipped_one(kind: str, algorithm: str):
    module, trainer_arguments = way(kind, algorithm)
    recorder = Recorder()
    fit(
        module,
        recorder,
        GradientCentralization(target="clipped_gradient"),
        precision="64-true",
        max_steps=4,
        **trainer_arguments,
    )
    assert len(recorder.used) == (3 if kind == "accumulated" else 4)
    dims_of = selected_dims(module)
    for step, (raw, used) in enumerate(zip(recorder.raw, recorder.used, strict=True)):
        # Manual optimization announces the step after the user clipped; `raw` is clipped already then.
        expected = raw if kind == "manual" else clipped(raw, algorithm)
        assert kind == "manual" or any(not torch.equal(raw[name], expected[name]) for name in raw), "nothing clipped"
        for name in raw:
            recovered = (recorder.weights[step][name] - recorder.weights[step + 1][name]) / LR
            want = oracle.centralized(expected[name], *dims_of[name]) if name in dims_of else expected[name].numpy()
            torch.testing.assert_close(recovered, torch.from_numpy(want), rtol=1e-10, atol=1e-13)
            assert used[name].norm() <= expected[name].norm() * (1 + 1e-12)
        if algorithm == "norm":
            norm = math.sqrt(sum(float(g.square().sum()) for g in used.values()))
            assert norm <= CLIP["norm"]
        assert largest_mean(used, module) < 1e-15


def test_users_own_clipping_runs_once_a_step():
    module = OwnClippingClassifier("norm", lr=LR)
    fit(module, GradientCentralization(target="clipped_gradient"), max_steps=4)
    assert module.calls == 4


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_with_a_gradient_scaler(algorithm: str):
    module = Classifier(lr=LR)
    recorder = Recorder()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fit(
        module,
        recorder,
        GradientCentralization(target="clipped_gradient"),
        max_steps=4,
        gradient_clip_val=CLIP[algorithm],
        gradient_clip_algorithm=algorithm,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
    )
    dims_of = selected_dims(module)
    assert len(recorder.used) == 4
    for raw, used in zip(recorder.raw, recorder.used, strict=True):
        expected = clipped(raw, algorithm)
        for name in raw:
            want = oracle.centralized(expected[name], *dims_of[name]) if name in dims_of else expected[name].numpy()
            torch.testing.assert_close(used[name].double(), torch.from_numpy(want).double(), rtol=1e-4, atol=1e-9)
        assert largest_mean(used, module) < 1e-8


class Quadratic(Classifier):
    """Smooth, so that LBFGS gets somewhere."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), F.one_hot(y, 3).to(x.dtype))


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_lbfgs_moves_no_mean(target: str):
    """Its update is a combination of all the gradients it saw, at each of several closures a step."""
    module = Quadratic(optimizer=torch.optim.LBFGS, lr=0.1, max_iter=4)
    recorder = Recorder()
    trainer = fit(
        module, recorder, GradientCentralization(target=target), precision="64-true", gradient_clip_val=0.5, max_steps=3
    )
    assert trainer.global_step == 3
    assert len(recorder.raw) > 3, "LBFGS was meant to evaluate its closure several times a step"
    assert largest_drift(recorder.weights[0], recorder.weights[-1], module) < 1e-13
    assert not torch.equal(recorder.weights[0]["net.0.weight"], recorder.weights[-1]["net.0.weight"])


def test_lbfgs_without_the_callback_moves_means():
    module, recorder = Quadratic(optimizer=torch.optim.LBFGS, lr=0.1, max_iter=4), Recorder()
    fit(module, recorder, precision="64-true", gradient_clip_val=0.5, max_steps=3)
    assert largest_drift(recorder.weights[0], recorder.weights[-1], module) > 1e-6


class Skipping(Classifier):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*training_step.* returned `None`:UserWarning")
@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_a_step_without_a_loss_changes_nothing(target: str):
    module, recorder = Skipping(lr=LR), Recorder()
    fit(module, recorder, GradientCentralization(target=target), precision="64-true", max_steps=3)
    weights = recorder.weights
    assert len(weights) == 4
    for name in weights[0]:
        assert torch.equal(weights[1][name], weights[2][name])
    assert any(not torch.equal(weights[2][name], weights[3][name]) for name in weights[0])
    assert largest_drift(weights[0], weights[3], module) < 1e-13


def test_gradient_and_value_clipping_leaves_means_and_warns_with_the_remedy():
    module, recorder = Classifier(lr=LR), Recorder()
    with pytest.warns(UserWarning, match="target='clipped_gradient'"):
        fit(
            module,
            recorder,
            GradientCentralization(target="gradient"),
            precision="64-true",
            max_steps=2,
            gradient_clip_val=CLIP["value"],
            gradient_clip_algorithm="value",
        )
    assert largest_mean(recorder.used[0], module) > 1e-5


@pytest.mark.parametrize("target", ["clipped_gradient", "update"])
def test_no_warning_where_the_remedy_is_taken(target: str):
    """Warnings are errors in this test suite."""
    fit(
        Classifier(),
        GradientCentralization(target=target),
        max_steps=1,
        gradient_clip_val=0.1,
        gradient_clip_algorithm="value",
    )


def test_value_clipping_bound_on_elements():
    """Centralized after clipping, an element may exceed the bound, but never twice the bound."""
    module, recorder = Classifier(lr=LR), Recorder()
    fit(
        module,
        recorder,
        GradientCentralization(target="clipped_gradient"),
        max_steps=2,
        gradient_clip_val=CLIP["value"],
        gradient_clip_algorithm="value",
    )
    largest = max(float(g.abs().max()) for g in recorder.used[0].values())
    assert largest < 2 * CLIP["value"]
