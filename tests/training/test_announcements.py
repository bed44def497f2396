"""The line when fit starts, what it says of later, and the line when the selection grows."""

from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from lightning_gc import GradientCentralization, select
from tests.gan import GAN, gan_batches
from tests.models import Classifier, fit, image_batches


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    return lambda: [r.getMessage() for r in caplog.records if "GradientCentralization" in r.getMessage()]


class Finetuned(Classifier):
    """A backbone that BackboneFinetuning freezes, and a head."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten())
        self.backbone = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(64, 64), nn.ReLU())))
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.backbone(self.net(x)))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
@pytest.mark.parametrize("first", [True, False])
def test_a_backbone_that_is_unfrozen_later(lines, target, first):
    callbacks = [
        GradientCentralization(target=target),
        BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01, verbose=False),
    ]
    fit(Finetuned(), *(callbacks if first else callbacks[::-1]), max_epochs=3)
    start, more = lines()
    assert "1 of 12 parameters are centralized now, 5 more once they are unfrozen: 3 weight vectors" in start
    assert more == (
        f"{callbacks[0]!r}: 5 more parameters are centralized from now on (backbone.0.weight, backbone.2.weight, "
        "backbone.4.weight, ...). 6 of 12 parameters are centralized: 323 weight vectors, 20,672 of 20,995 elements "
        "(98.5%)"
    )


@pytest.mark.parametrize("where", ["callback", "module"])
def test_unfrozen_in_an_optimizer_that_had_it_all_along(lines, where):
    class Unfreezes(Classifier):
        def on_train_epoch_start(self):
            if where == "module" and self.current_epoch == 1:
                self.net[0].weight.requires_grad_(True)

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if where == "callback" and trainer.current_epoch == 1:
                pl_module.net[0].weight.requires_grad_(True)

        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(gc.selection[0].centralized)

    seen = []
    module, gc = Unfreezes(), GradientCentralization()
    module.net[0].weight.requires_grad_(False)
    fit(module, gc, Look(), max_epochs=3)
    start, more = lines()
    assert "2 of 8 parameters are centralized now, 1 more once they are unfrozen" in start
    assert "1 more parameter is centralized from now on (net.0.weight)." in more
    assert seen == [False, True, True]


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_parameters(lines):
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3))
    fit(Classifier(net), GradientCentralization(), max_steps=2)
    start, more = lines()
    assert "1 of 4 parameters are centralized now, up to 2 more once their shapes are known: 3 weight vectors" in start
    assert "1 more parameter is centralized from now on (net.1.weight). 2 of 4 parameters are" in more


@pytest.mark.parametrize("max_epochs", [1, 2])
def test_no_second_line_where_nothing_grows(lines, max_epochs):
    fit(Classifier(), GradientCentralization(), max_epochs=max_epochs)
    assert len(lines()) == 1


def test_a_gan_that_toggles_its_optimizers(lines):
    """What is toggled off in a step is not frozen: it is no growth, and is not left so in what is kept."""

    class Toggling(GAN):
        def training_step(self, batch, batch_idx):
            for optimizer, loss in zip(
                self.optimizers(),
                (lambda: self.generator_loss(batch[1]), lambda: self.discriminator_loss(*batch)),
                strict=True,
            ):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(loss())
                optimizer.step()
                self.untoggle_optimizer(optimizer)

    gc = GradientCentralization()
    fit(Toggling(), gc, data=gan_batches(), max_epochs=2)
    assert len(lines()) == 1
    assert len(gc.selection.centralized) == 4


def test_a_new_fit_says_it_anew(lines):
    gc = GradientCentralization()
    fit(Classifier(), gc, data=image_batches(1))
    fit(Classifier(), gc, data=image_batches(1))
    assert len(lines()) == 2
    assert lines()[0] == lines()[1]


def test_select_says_what_comes_later():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False))
    assert (
        select(module).summary().startswith("1 of 4 parameters are centralized now, 1 more once they are unfrozen: 2 w")
    )
