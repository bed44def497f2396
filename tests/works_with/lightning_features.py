"""Rows: Lightning's own features, and ways of training."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from torch import nn

from lightning_gc import GradientCentralization, select
from tests.models import fit
from tests.recorder import Recorder
from tests.works_with.models import mlp
from tests.works_with.running import Regression, assert_centralized, assert_trained, check, pairs, seeded, train
from tests.works_with.table import row, row_elsewhere

SECTION = "Lightning's features and ways of training"
PRECISION = "Precision"

for precision in ("32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"):
    row_elsewhere(
        PRECISION,
        f"precision_{precision}",
        f'`precision="{precision}"`' + (" with a gradient scaler" if precision == "16-mixed" else ""),
        "tests/training/test_precision.py::test_update_keeps_the_means_of_the_weights",
    )
row_elsewhere(
    PRECISION,
    "bound",
    "16-bit gradients: the residual mean is at most one rounding of the elements, fan-in 64 to 28,672",
    "tests/training/test_precision.py::test_residual_mean_is_at_most_one_rounding",
    targets=("gradient", "clipped_gradient"),
)
row_elsewhere(
    PRECISION,
    "overflow",
    "Inf and NaN reach the scaler, which skips the step; the next step and the logged values are right; also "
    "`fused=True`",
    "tests/training/test_precision.py::test_overflow_skips_one_step_and_poisons_nothing",
)
row_elsewhere(
    PRECISION,
    "unscaled",
    "Logged values are of the unscaled gradient, also where a fused optimizer unscales inside its step",
    "tests/training/test_precision.py::test_logged_values_do_not_depend_on_the_scale",
)
row_elsewhere(
    SECTION,
    "optimizers",
    "All optimizers of `torch.optim`, with weight decay",
    "tests/steps/test_targets_update.py::test_means_stay_for_the_whole_run",
    targets=("update",),
)
row_elsewhere(
    SECTION,
    "lbfgs",
    "LBFGS, which runs its closure several times a step",
    "tests/steps/test_targets_clipped_gradient.py::test_lbfgs_moves_no_mean",
)
row_elsewhere(
    SECTION,
    "clipping",
    "Clipping by norm and value: automatic, by hand, and a module's own `configure_gradient_clipping`, run once",
    "tests/steps/test_targets_clipped_gradient.py::test_used_gradient_is_the_centralized_clipped_one",
    targets=("clipped_gradient",),
)
row_elsewhere(
    SECTION,
    "skipped",
    "Steps that are skipped because `training_step` returns None",
    "tests/steps/test_targets_clipped_gradient.py::test_a_step_without_a_loss_changes_nothing",
)


class Gan(Regression):
    """Two optimizers by hand, one of them stepping twice as often."""

    def __init__(self) -> None:
        super().__init__(seeded(lambda: nn.ModuleDict({"g": nn.Linear(6, 3), "d": nn.Linear(3, 3)})))
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.net["g"].parameters(), lr=0.01),
            torch.optim.SGD(self.net["d"].parameters(), lr=0.05),
        ]

    def training_step(self, batch, batch_idx):
        x, y = batch
        g, d = self.optimizers()
        for _ in range(2):
            self.toggle_optimizer(d)
            d.zero_grad()
            fake = self.net["g"](x).detach()
            self.manual_backward((self.net["d"](fake) - self.net["d"](y)).square().mean() + self.net["d"](y).mean())
            d.step()
            self.untoggle_optimizer(d)
        self.toggle_optimizer(g)
        g.zero_grad()
        self.manual_backward(self.net["d"](self.net["g"](x)).square().mean())
        g.step()
        self.untoggle_optimizer(g)


@row(SECTION, "Manual optimization with two optimizers (a GAN)", targets=("gradient", "clipped_gradient", "update"))
def gan(target: str) -> None:
    module = Gan()
    recorder = train(module, target, data=pairs(6))
    for entry in select(module).centralized:
        moved = recorder.weights[-1][entry.name] - recorder.weights[0][entry.name]
        assert moved.abs().max() > 1e-3
        # Adam moves the mean again after the gradient was centralized; SGD and "update" do not.
        assert (target != "update" and entry.name == "net.g.weight") or moved.mean(1).abs().max() < 1e-13


@row(SECTION, "`GradientAccumulationScheduler`: centralized once for each step of the optimizer")
def accumulation_schedule(target: str) -> None:
    module = Regression(mlp())
    scheduler = GradientAccumulationScheduler({0: 1, 1: 3})
    recorder = check(module, target, scheduler, data=pairs(6, count=6), max_epochs=2)
    assert len(recorder.used) == 6 + 2


class Finetuned(Regression):
    def __init__(self) -> None:
        super().__init__(seeded(lambda: nn.Linear(5, 3)))
        self.backbone = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh()))

    def loss(self, x, y):
        return (self.net(self.backbone(x)) - y).square().mean()


@row(SECTION, "`BackboneFinetuning`: the backbone is centralized from the step in which it is unfrozen")
def backbone_finetuning(target: str) -> None:
    module = Finetuned()
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.1)
    recorder = check(module, target, finetuning, data=pairs(6, count=2), max_epochs=3)
    name = "backbone.0.weight"
    assert torch.equal(recorder.weights[0][name], recorder.weights[2][name])
    assert_trained(recorder, name)


@row(SECTION, "`WeightAveraging` and `EMAWeightAveraging`: the average is of the centralized run's weights")
def weight_averaging(target: str) -> None:
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        import pytest

        pytest.skip("this Lightning has no EMAWeightAveraging")
    module, decay = Regression(mlp()), 0.5
    recorder = check(module, target, callbacks.EMAWeightAveraging(decay=decay), data=pairs(6))
    # The average starts as a copy at the first update.
    average = dict(recorder.weights[1])
    for weights in recorder.weights[2:]:
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    for name, parameter in module.named_parameters():
        # Lightning makes the average before it turns the module to float64.
        torch.testing.assert_close(parameter.detach(), average[name], rtol=1e-5, atol=1e-6)


@row(SECTION, "`StochasticWeightAveraging`: the average is of weights that are centralized in every step")
def stochastic_weight_averaging(target: str) -> None:
    module = Regression(mlp())
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    recorder = check(module, target, swa, data=pairs(6), max_epochs=3)
    # The average (in float32) of weights whose means did not move has the same means.
    moved = module.net[0].weight.detach() - recorder.weights[0]["net.0.weight"]
    assert moved.abs().max() > 1e-3
    assert moved.mean(1).abs().max() < 1e-6


@row(
    SECTION,
    "`LearningRateFinder`: Lightning turns all callbacks off in its trial steps, so that these are not centralized; the "
    "training after it is",
)
def learning_rate_finder(target: str) -> None:
    module = Regression(mlp())
    module.lr = 0.1
    finder = LearningRateFinder(min_lr=1e-3, max_lr=0.1, num_training_steps=5, early_stop_threshold=None)
    recorder, gc = Recorder(), GradientCentralization(target=target)
    fit(module, recorder, gc, finder, data=pairs(6), precision="64-true", enable_progress_bar=True)
    assert finder.optimal_lr.results["lr"], "no trial step was taken"
    assert len(recorder.used) == 4
    assert_centralized(target, module, recorder)


@row(SECTION, "`Trainer(barebones=True)` and `fast_dev_run`")
def barebones(target: str) -> None:
    for flags in ({"barebones": True, "logger": None, "enable_checkpointing": None}, {"fast_dev_run": True}):
        flags |= {"enable_progress_bar": None, "enable_model_summary": None} if "barebones" in flags else {}
        module = Regression(mlp())
        recorder = check(module, target, data=pairs(6), **flags)
        assert len(recorder.used) == (4 if "barebones" in flags else 1)


@row(SECTION, "Checkpoint and resume: the resumed run is the uninterrupted one")
def resume(target: str) -> None:
    import tempfile

    from lightning.pytorch import Trainer

    from tests.models import trainer_kwargs

    def trainer(epochs: int) -> Trainer:
        gc = GradientCentralization(target=target)
        return Trainer(**trainer_kwargs(callbacks=[gc], max_epochs=epochs))

    def module() -> Regression:
        return Regression(mlp(), torch.optim.AdamW)

    whole, first, second = module(), module(), module()
    data = pairs(6, dtype=torch.float32)
    trainer(2).fit(whole, data)
    with tempfile.TemporaryDirectory() as folder:
        interrupted = trainer(1)
        interrupted.fit(first, data)
        interrupted.save_checkpoint(f"{folder}/last.ckpt")
        trainer(2).fit(second, data, ckpt_path=f"{folder}/last.ckpt", weights_only=False)
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@row(
    SECTION,
    '`strategy="ddp_spawn"`: the same weights as on one device; `"ddp"` is tested elsewhere',
    distributed=True,
)
def ddp_spawn(target: str) -> None:
    one, two, data = Regression(mlp()), Regression(mlp()), pairs(6, dtype=torch.float32)
    train(one, target, data=data, precision="32-true")
    # Both processes see all the batches, so that the mean of their gradients is the gradient of one.
    arguments: dict[str, Any] = {"strategy": "ddp_spawn", "devices": 2, "use_distributed_sampler": False}
    fit(two, GradientCentralization(target=target), data=data, **arguments)
    for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@row(SECTION, "A Trainer of the `pytorch_lightning` package", packages=("pytorch_lightning",))
def other_namespace(target: str) -> None:
    import pytorch_lightning

    from tests.models import trainer_kwargs

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch, batch_idx):
            return (self.net(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    before = module.net[0].weight.detach().double().clone()
    gc = GradientCentralization(target=target)
    pytorch_lightning.Trainer(**trainer_kwargs(callbacks=[gc], precision="64-true")).fit(module, pairs(6))
    moved = module.net[0].weight.detach() - before
    assert moved.abs().max() > 1e-3
    assert moved.mean(1).abs().max() < 1e-13
