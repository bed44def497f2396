"""torch's optimizers with the callback are the authors' optimizers: 100 steps in float64, to 1e-12."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gc import GradientCentralization
from tests.models import Classifier, fit, image_batches
from tests.parity.formulas import AuthorsAdam, AuthorsAdamW, AuthorsSGD

STEPS = 100


def smooth_cnn() -> nn.Module:
    """Every selected parameter spans all dims but the first.

    Without kinks, which would blow rounding up, and without a bias before a BatchNorm, whose gradient is zero: Adam
    makes steps of its rounding.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)
        return nn.Sequential(*layers)


class Plain(Classifier):
    def __init__(self, optimizer: Any, **kwargs: Any) -> None:
        super().__init__(smooth_cnn(), optimizer, **kwargs)


class WithL2InTheLoss(Plain):
    """λ/2 ‖w‖² in the loss: its gradient is λw, which the callback sees."""

    def training_step(self, batch, batch_idx):
        l2 = sum(p.square().sum() for p in self.parameters())
        return super().training_step(batch, batch_idx) + 0.01 / 2 * l2


class WithTheAuthorsDecay(Plain):
    """Sets torch's decay before each step to λ / (1 - β₁ᵗ), which the authors' AdamW uses."""

    def on_before_optimizer_step(self, optimizer):
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.1 / (1 - 0.9 ** (self.trainer.global_step + 1))


def train(module: Classifier, *callbacks: Any) -> dict[str, torch.Tensor]:
    trainer = fit(module, *callbacks, data=image_batches(20), precision="64-true", max_epochs=-1, max_steps=STEPS)
    assert trainer.global_step == STEPS
    return {name: p.detach() for name, p in module.named_parameters()}


def largest_relative_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).norm() / second[name].norm()) for name in second)


SGD = {"lr": 0.05, "weight_decay": 0.01}
ADAM = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8}
CASES = {
    "SGD with weight decay": (AuthorsSGD, SGD, Plain, torch.optim.SGD, SGD, "update"),
    "SGD with momentum": (
        AuthorsSGD, SGD | {"momentum": 0.9},
        Plain, torch.optim.SGD, SGD | {"momentum": 0.9}, "update",
    ),
    "SGD with dampening": (
        AuthorsSGD, SGD | {"momentum": 0.9, "dampening": 0.3},
        Plain, torch.optim.SGD, SGD | {"momentum": 0.9, "dampening": 0.3}, "update",
    ),
    "SGD with Nesterov": (
        AuthorsSGD, SGD | {"momentum": 0.9, "nesterov": True},
        Plain, torch.optim.SGD, SGD | {"momentum": 0.9, "nesterov": True}, "update",
    ),
    "SGD without weight decay": (
        AuthorsSGD, {"lr": 0.05, "momentum": 0.9},
        Plain, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, "gradient",
    ),
    "Adam, gc_loc=False, L2": (
        AuthorsAdam, ADAM | {"gc_loc": False, "weight_decay": 0.01},
        Plain, torch.optim.Adam, ADAM | {"weight_decay": 0.01}, "update",
    ),
    "Adam, gc_loc=True, no decay": (AuthorsAdam, ADAM | {"gc_loc": True}, Plain, torch.optim.Adam, ADAM, "gradient"),
    "Adam, gc_loc=True, L2 in the loss": (
        AuthorsAdam, ADAM | {"gc_loc": True, "weight_decay": 0.01},
        WithL2InTheLoss, torch.optim.Adam, ADAM, "gradient",
    ),
    "AdamW, gc_loc=False": (
        AuthorsAdamW, ADAM | {"gc_loc": False, "weight_decay": 0.1},
        Plain, torch.optim.AdamW, ADAM | {"weight_decay": 0.1}, "update",
    ),
    "AdamW, gc_loc=True": (
        AuthorsAdamW, ADAM | {"gc_loc": True, "weight_decay": 0.1},
        Plain, torch.optim.AdamW, ADAM | {"weight_decay": 0.1}, "gradient",
    ),
    "AdamW, gc_loc=False, the authors' corrected decay": (
        AuthorsAdamW, ADAM | {"gc_loc": False, "weight_decay": 0.1, "decay_is_corrected": True},
        WithTheAuthorsDecay, torch.optim.AdamW, ADAM, "update",
    ),
    "AdamW, gc_loc=True, the authors' corrected decay": (
        AuthorsAdamW, ADAM | {"gc_loc": True, "weight_decay": 0.1, "decay_is_corrected": True},
        WithTheAuthorsDecay, torch.optim.AdamW, ADAM, "gradient",
    ),
}  # fmt: skip


# What the others show in part: all of them run in CI.
QUICK = {"SGD with Nesterov", "Adam, gc_loc=False, L2", "AdamW, gc_loc=False", "AdamW, gc_loc=True"}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in CASES])
def test_parity(case: str):
    authors, constants, module, optimizer, arguments, target = CASES[case]
    theirs = train(Plain(authors, **constants))
    ours = train(module(optimizer, **arguments), GradientCentralization(target=target, log_means="off"))
    assert largest_relative_difference(ours, theirs) <= 1e-12


def test_parity_would_notice_the_wrong_target():
    """The comparison is not blind: with weight decay, centralizing the gradient is not the authors' SGD."""
    theirs = train(Plain(AuthorsSGD, **SGD))
    ours = train(Plain(torch.optim.SGD, **SGD), GradientCentralization(target="gradient"))
    assert largest_relative_difference(ours, theirs) > 1e-3
