"""What the callback warns of: once, and only when there is reason to."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_gc import GradientCentralization
from lightning_gc.engines import Store
from tests.gan import GAN, gan_batches
from tests.models import Classifier, fit
from tests.optimizers import SharpnessAware, wraps_another


def remarks(module, callback=None, **kwargs) -> list[str]:
    """What the callback warns of while `module` is trained."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, callback or GradientCentralization(), **kwargs)
    return [str(w.message) for w in caught if str(w.message).startswith("GradientCentralization")]


def test_none_in_an_ordinary_run():
    assert remarks(Classifier()) == []


def test_nothing_is_eligible():
    class NormAlone(Classifier):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.BatchNorm1d(64)))

    (said,) = remarks(NormAlone(), max_epochs=2)
    assert "no parameter has weight vectors to centralize" in said
    assert "normalisation layer" in said


def test_the_optimizer_holds_nothing_that_is_eligible():
    class BiasesAlone(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.dim() == 1], lr=0.1)

    (said,) = remarks(BiasesAlone(), max_epochs=2)
    assert "no optimizer holds any of the" in said
    assert ".weight" in said


@pytest.mark.parametrize("accumulate", [1, 4])
def test_selected_parameters_without_gradients(accumulate):
    class Unused(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))

    (said,) = remarks(Unused(), GradientCentralization(include="unused"), accumulate_grad_batches=accumulate)
    assert "none of the 4 selected parameters (unused.0.weight, unused.1.weight, unused.2.weight, ...)" in said
    assert remarks(Unused(), accumulate_grad_batches=accumulate) == []


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_none_when_training_step_returned_none(target, every):
    class SkipsFirst(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx % 3 == 1 else None

    assert remarks(SkipsFirst(), GradientCentralization(target=target), log_every_n_steps=every) == []


def test_none_for_frozen_parameters():
    module = Classifier()
    module.net[6].requires_grad_(False)
    assert remarks(module, GradientCentralization(include="net.6")) == []


class ByHand(GAN):
    """A GAN whose training step is replaced."""

    def __init__(self, step):
        super().__init__()
        self._step = step

    def training_step(self, batch, batch_idx):
        self._step(self, *batch)


def test_by_hand_an_optimizer_steps_after_a_backward_that_gave_it_nothing():
    def step(module, images, noise):
        of_generator, of_discriminator = module.optimizers()
        module.manual_backward(module.discriminator_loss(images, noise))
        of_discriminator.step()
        of_discriminator.zero_grad()
        of_generator.step()  # forgotten: its backward

    (said,) = remarks(ByHand(step), data=gan_batches())
    assert "(generator.0.weight, generator.2.weight) had a gradient" in said


def test_by_hand_gradients_that_lightning_did_not_see_come_about():
    def step(module, images, noise):
        _, of_discriminator = module.optimizers()
        bias = module.discriminator[2].bias
        bias.grad = torch.ones_like(bias)
        of_discriminator.step()

    (said,) = remarks(ByHand(step), data=gan_batches())
    assert "(discriminator.0.weight, discriminator.2.weight) had a gradient" in said


def test_none_when_a_step_by_hand_had_nothing_to_do():
    assert remarks(ByHand(lambda module, *_: module.optimizers()[0].step()), data=gan_batches()) == []


def test_a_raw_optimizer_is_stepped():
    def step(module, images, noise):
        _, of_discriminator = module.optimizers(use_pl_optimizer=False)
        module.manual_backward(module.discriminator_loss(images, noise))
        of_discriminator.step()
        of_discriminator.zero_grad()

    (said,) = remarks(ByHand(step), data=gan_batches())
    assert "Adam.step() ran without Lightning's `on_before_optimizer_step`" in said
    assert "use_pl_optimizer=False" in said
    assert "target='clipped_gradient'" in said
    # Which is good advice:
    module = ByHand(step)
    assert remarks(module, GradientCentralization(target="clipped_gradient"), data=gan_batches()) == []


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.Adam])
def test_none_for_several_closure_calls_in_a_step(optimizer):
    class Smooth(Classifier):
        def training_step(self, batch, batch_idx):
            return F.mse_loss(self(batch[0]), F.one_hot(batch[1], 3).float())

    assert remarks(Smooth(optimizer=optimizer, lr=0.01)) == []


@pytest.mark.parametrize(
    ("second", "warned"),
    [
        ({"include": "net.0"}, True),
        ({"target": "update"}, True),
        ({"log_prefix": "other"}, False),
        ({"log_means": "off"}, False),
    ],
)
def test_two_callbacks_that_log_under_one_prefix(second, warned):
    """Each would overwrite the values of the other."""
    first = GradientCentralization(exclude="net.0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Classifier(), first, GradientCentralization(**second))
    said = [str(w.message) for w in caught if "GradientCentralization" in str(w.message)]
    assert len(said) == warned
    if warned:
        assert "log_prefix='gc'" in said[0]
        assert repr(first) in said[0]


def test_clipping_by_value():
    clipping = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    (said,) = remarks(Classifier(), **clipping)
    assert "target='clipped_gradient'" in said
    assert remarks(Classifier(), GradientCentralization(target="clipped_gradient"), **clipping) == []
    assert remarks(Classifier(), gradient_clip_val=0.1) == []
    assert remarks(Classifier(), gradient_clip_algorithm="value") == []


class SteppedInHooks(Classifier):
    """Each parameter has an optimizer of its own, which is stepped as soon as its gradient is there."""

    def configure_optimizers(self):
        for parameter in self.parameters():
            optimizer = torch.optim.SGD([parameter], lr=0.1)
            parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_optimizers_that_are_stepped_in_gradient_hooks_past_the_trainer(target):
    module, before = SteppedInHooks(), Classifier()
    (said,) = remarks(module, GradientCentralization(target=target))
    assert not torch.equal(module.net[6].weight, before.net[6].weight)
    assert "3 parameters (net.0.weight, net.3.weight, net.6.weight) were trained by an optimizer" in said
    assert "`configure_optimizers`" in said


def test_none_for_parameters_of_no_optimizer_that_are_changed_beside_training():
    class WithTarget(Classifier):
        def __init__(self):
            super().__init__()
            self.target = nn.Linear(24, 3)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            self.target.load_state_dict(self.net[6].state_dict())
            return super().training_step(batch, batch_idx)

    assert remarks(WithTarget(), accumulate_grad_batches=4) == []


@pytest.fixture
def asked(monkeypatch):
    """What the callback asks of each step, and of other ranks, whether anything was centralized."""
    calls = []
    for name in ("holds_any", "on_any_rank"):
        real = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))
    return calls


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_it_is_asked_in_the_first_step_alone(asked, target):
    assert remarks(Classifier(), GradientCentralization(target=target), accumulate_grad_batches=2, max_epochs=2) == []
    assert asked == ["holds_any", "on_any_rank"]


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_no_rank_is_asked_while_an_exception_is_handled(asked, target):
    class Fails(Classifier):
        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            raise RuntimeError("after the step")

    with pytest.raises(RuntimeError, match="after the step"):
        remarks(Fails(), GradientCentralization(target=target))
    assert asked == ["holds_any"]


class SharpnessAwareByHand(Classifier):
    """Takes its steps by other names, as sharpness-aware minimisation is mostly used."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return SharpnessAware(self.parameters(), torch.optim.SGD, lr=0.1)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for step in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            step()


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_steps_by_other_names(target):
    module, before = SharpnessAwareByHand(), Classifier()
    (said,) = remarks(module, GradientCentralization(target=target), max_epochs=2)
    assert not torch.equal(module.net[6].weight, before.net[6].weight)
    assert "3 parameters (net.0.weight, net.3.weight, net.6.weight) changed in training, and no `step()`" in said
    assert "lightning_gc.attach() on that one" in said


def test_none_for_weights_that_are_changed_by_hand_between_steps():
    class Clamped(Classifier):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.net[6].weight.clamp_(-0.1, 0.1)
            return super().training_step(batch, batch_idx)

    assert remarks(Clamped(), accumulate_grad_batches=4) == []


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_a_wrapper_that_leaves_out_the_constructor_of_torch(target):
    """From its first step on, hooks run around its steps, and around those of Lightning's wrapper none."""

    class ByLookahead(Classifier):
        def configure_optimizers(self):
            return wraps_another(super().configure_optimizers())

    module, before = ByLookahead(), Classifier().double()
    assert remarks(module, GradientCentralization(target=target), max_steps=1, precision="64-true") == []
    drift = module.net[6].weight.mean(1) - before.net[6].weight.mean(1)
    assert drift.abs().max() < 1e-14
    assert not torch.equal(module.net[6].weight, before.net[6].weight)
