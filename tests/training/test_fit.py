"""Training with the callback in a real Trainer equals a hand-written loop with the oracle's projection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateFinder, ModelCheckpoint
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_gc import GradientCentralization
from tests import loops
from tests.gan import DISCRIMINATOR, GAN, GENERATOR, gan_batches
from tests.loops import assert_other_weights, assert_same_weights
from tests.models import Classifier, fit, image_batches, trainer_kwargs


def fit64(module: Any, *callbacks: Any, **kwargs: Any) -> Trainer:
    return fit(module, *callbacks, precision="64-true", **kwargs)


@pytest.mark.parametrize(
    ("optimizer", "kwargs"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        # The bias before BatchNorm has no gradient but rounding: a small `eps` would make steps of it.
        (torch.optim.AdamW, {"lr": 0.01, "eps": 1e-3}),
        (torch.optim.RMSprop, {"lr": 0.01, "eps": 1e-3}),
    ],
)
def test_automatic_optimization_equals_a_loop_with_the_oracle(optimizer, kwargs):
    trained, by_hand, without = (Classifier(optimizer=optimizer, **kwargs) for _ in range(3))
    fit64(trained, GradientCentralization())
    fit64(without)
    loops.train(by_hand.double(), by_hand.configure_optimizers(), image_batches())
    assert_same_weights(trained, by_hand)
    assert_other_weights(trained, without)


@pytest.mark.parametrize("accumulate", [2, 3, 20])
def test_accumulated_gradients_are_centralized_once_they_are_whole(accumulate):
    trained, by_hand = Classifier(), Classifier()
    trainer = fit64(trained, GradientCentralization(), accumulate_grad_batches=accumulate)
    loops.train(by_hand.double(), by_hand.configure_optimizers(), image_batches(), accumulate=accumulate)
    assert trainer.global_step == -(-8 // accumulate)
    assert_same_weights(trained, by_hand)


def test_clipping_comes_after():
    trained, by_hand = Classifier(), Classifier().double()
    fit64(trained, GradientCentralization(), gradient_clip_val=0.05)
    optimizer = by_hand.configure_optimizers()
    for x, y in image_batches():
        F.cross_entropy(by_hand(x.double()), y).backward()
        loops.project_(by_hand, loops.SMALL_CNN)
        assert torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05) > 0.05
        optimizer.step()
        optimizer.zero_grad()
    assert_same_weights(trained, by_hand)


def test_two_optimizers_by_hand():
    trained, by_hand, without = GAN(), GAN(), GAN()
    fit64(trained, GradientCentralization(), data=gan_batches())
    fit64(without, data=gan_batches())
    of_generator, of_discriminator = by_hand.configure_optimizers()
    for images, noise in gan_batches():
        by_hand.discriminator_loss(images, noise).backward()
        loops.project_(by_hand, DISCRIMINATOR)
        of_discriminator.step()
        by_hand.zero_grad()
        by_hand.generator_loss(noise).backward()
        loops.project_(by_hand, GENERATOR)
        of_generator.step()
        by_hand.zero_grad()
    assert_same_weights(trained, by_hand)
    assert_other_weights(trained, without, than=1e-3)


def test_only_the_parameters_of_the_optimizer_that_steps_are_touched():
    class Stale(GAN):
        checked = 0

        def training_step(self, batch, batch_idx):
            images, noise = batch
            of_generator, of_discriminator = self.optimizers()
            self.manual_backward(self.generator_loss(noise))  # its gradients stay, of both networks
            of_discriminator.zero_grad()
            self.manual_backward(self.discriminator_loss(images, noise))
            stale = [p.grad.clone() for p in self.generator.parameters()]
            assert any(g.flatten(1).mean(1).abs().max() > 1e-4 for g in stale if g.dim() > 1)
            of_discriminator.step()
            assert all(torch.equal(p.grad, g) for p, g in zip(self.generator.parameters(), stale, strict=True))
            assert self.discriminator[2].weight.grad.mean().abs() < 1e-15
            of_generator.step()
            assert self.generator[0].weight.grad.mean(1).abs().max() < 1e-15
            self.zero_grad()
            self.checked += 1

    module = Stale()
    fit64(module, GradientCentralization(), data=gan_batches())
    assert module.checked == 3


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, first, second = (Classifier(optimizer=torch.optim.Adam, lr=0.01).double() for _ in range(3))
    fit64(whole, GradientCentralization(), max_epochs=3)
    path = tmp_path / "at-epoch-end.ckpt"
    trainer = fit64(first, GradientCentralization(), max_epochs=1)
    trainer.save_checkpoint(path)
    assert "GradientCentralization" not in str(torch.load(path, weights_only=False)["callbacks"])
    resumed = Trainer(
        **trainer_kwargs(tmp_path, callbacks=[GradientCentralization()], precision="64-true", max_epochs=3)
    )
    resumed.fit(second, image_batches(), ckpt_path=path)
    assert resumed.global_step == 24
    assert_same_weights(second, whole, atol=0)


def test_a_checkpoint_from_a_run_without_the_callback_loads_and_the_other_way_round(tmp_path):
    for before, after in (([], [GradientCentralization()]), ([GradientCentralization()], [])):
        saved = fit64(Classifier(), *before, max_epochs=1)
        saved.save_checkpoint(tmp_path / "any.ckpt")
        trainer = Trainer(**trainer_kwargs(tmp_path, callbacks=after, precision="64-true", max_epochs=2))
        trainer.fit(Classifier(), image_batches(), ckpt_path=tmp_path / "any.ckpt")
        assert trainer.global_step == 16


def test_with_a_checkpoint_callback(tmp_path):
    module = Classifier()
    fit64(module, GradientCentralization(), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    assert list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize("mode", [{"fast_dev_run": True}, {"barebones": True}])
def test_special_modes_of_the_trainer(mode):
    trained, without = Classifier(), Classifier()
    kwargs = trainer_kwargs(max_steps=1, max_epochs=-1, log_every_n_steps=1, **mode)
    if "barebones" in mode:
        switched_off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        kwargs = {k: v for k, v in kwargs.items() if k not in (*switched_off, "log_every_n_steps")}
    trainer = Trainer(callbacks=[GradientCentralization()], **kwargs)
    trainer.fit(trained, image_batches())
    x, y = next(iter(image_batches()))
    F.cross_entropy(without(x), y).backward()
    for entry in ("net.0.weight", "net.3.weight", "net.6.weight"):
        change = dict(trained.named_parameters())[entry] - dict(without.named_parameters())[entry]
        assert change.abs().max() > 1e-4
        assert change.flatten(1).sum(1).abs().max() < 1e-6
    assert bool(trainer.callback_metrics) == ("barebones" not in mode)


def test_parameters_that_only_the_optimizer_holds_are_centralized_under_a_made_up_name():
    class WithOutsider(Classifier):
        def configure_optimizers(self):
            self.__dict__["outside"] = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))]
            return torch.optim.SGD([*self.parameters(), *self.outside], lr=0.1)

        def training_step(self, batch, batch_idx):
            matrix, vector = self.outside
            return super().training_step(batch, batch_idx) + (matrix * torch.arange(3.0)).sum() + vector.sum()

    seen = {}

    class Look(GradientCentralization):
        def on_train_end(self, trainer, pl_module):
            seen.update({entry.name: entry for entry in self.selection})

    module = WithOutsider()
    fit(module, Look(), max_steps=1)
    matrix, vector = module.outside
    torch.testing.assert_close(matrix.detach(), 1 - 0.1 * torch.tensor([[-1.0, 0, 1], [-1, 0, 1]]))
    torch.testing.assert_close(vector.detach(), torch.full((3,), 0.9))
    assert seen["SGD.param_8"].centralized
    assert seen["SGD.param_8"].layout.dims == (1,)
    assert "fewer than 2 dims" in seen["SGD.param_9"].reason

    fit(module := WithOutsider(), GradientCentralization(include="net.0"), max_steps=1)
    torch.testing.assert_close(module.outside[0].detach(), (1 - 0.1 * torch.arange(3.0)).expand(2, 3))


def test_several_groups_of_parameters():
    class Groups(Classifier):
        def configure_optimizers(self):
            groups = [{"params": self.net[:6].parameters(), "lr": 0.05}, {"params": self.net[6].parameters()}]
            return torch.optim.SGD(groups, lr=0.1, momentum=0.5)

    trained, by_hand = Groups(), Groups()
    fit64(trained, GradientCentralization())
    loops.train(by_hand.double(), by_hand.configure_optimizers(), image_batches())
    assert_same_weights(trained, by_hand)


def test_optimizers_that_are_replaced_between_epochs_are_hooked_and_unhooked():
    class Replace(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.strategy.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.1, momentum=0.9)]
            made.append(trainer.optimizers[0])

    made = []
    module = Classifier()
    fit(module, Replace(), GradientCentralization(target="clipped_gradient"), max_epochs=2, log_every_n_steps=1)
    assert len(set(made)) == 2
    assert module.net[0].weight.grad.mean((1, 2, 3)).abs().max() < 1e-7
    assert not any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in made)


def test_an_optimizer_that_appears_within_an_epoch_is_refused_where_it_needs_a_hook():
    class Replace(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                trainer.strategy.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.1)]

    module = Classifier()
    fit(module, Replace(), GradientCentralization())
    assert module.net[0].weight.grad.mean((1, 2, 3)).abs().max() < 1e-7
    with pytest.raises(MisconfigurationException, match="appeared in the middle of an epoch"):
        fit(Classifier(), Replace(), GradientCentralization(target="update"))


def test_backbone_finetuning_has_its_new_group_centralized_from_the_first_step():
    class Finetuned(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = self.net[:6], self.net[6]
            del self.net

        def forward(self, x):
            return self.head(self.backbone(x))

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

        def on_before_zero_grad(self, optimizer):
            gradient = self.backbone[0].weight.grad
            if gradient is not None:
                self.largest = max(getattr(self, "largest", 0.0), gradient.mean((1, 2, 3)).abs().max().item())

    module, callback = Finetuned(), GradientCentralization()
    summaries = []

    class Look(BackboneFinetuning):
        def on_train_epoch_end(self, trainer, pl_module):
            summaries.append({entry.name: entry.reason for entry in callback.selection})

    fit64(module, Look(unfreeze_backbone_at_epoch=1, verbose=False, backbone_initial_lr=0.01), callback, max_epochs=3)
    assert summaries[0]["backbone.0.weight"].startswith("frozen")
    assert summaries[0]["head.weight"] == ""
    assert summaries[1]["backbone.0.weight"] == ""
    assert 0 < module.largest < 1e-15


def test_lazy_parameters_are_centralized_once_they_have_a_shape():
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3))
    module, callback = Classifier(net), GradientCentralization(include="net.*")
    reasons = []

    class Look(Callback):
        def on_train_end(self, trainer, pl_module):
            reasons.extend(entry.reason for entry in callback.selection if entry.name.endswith("weight"))

    fit(module, callback, Look(), max_steps=2)
    assert reasons == ["", ""]
    assert module.net[1].weight.grad is not None
    assert module.net[1].weight.grad.mean(1).abs().max() < 1e-7


def test_learning_rate_trials_of_another_callback_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class EveryEpoch(LearningRateFinder):
        def on_fit_start(self, *args):
            pass

        def on_train_epoch_start(self, trainer, pl_module):
            self.lr_find(trainer, pl_module)

    class Tuned(Classifier):
        lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    trained, alone = Tuned(), Tuned()
    finder = EveryEpoch(num_training_steps=4, update_attr=False)
    acts = []

    class Watched(GradientCentralization):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            acts.append(trainer.global_step)
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    fit64(trained, finder, Watched(), default_root_dir=str(tmp_path))  # a warning would be an error
    assert finder.optimal_lr is not None
    assert len(acts) == 8
    fit64(alone, GradientCentralization())
    assert_same_weights(trained, alone)
