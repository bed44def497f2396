"""Training on XLA gives the weights and the logged means of the same training on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch_xla
from torch import Tensor, nn

from lightning_gc import centralize_
from tests.distributed.checks import (
    Check,
    Outcome,
    Recorder,
    Training,
    Weights,
    compare_logged,
    compare_weights,
    gc,
    max_difference,
    plain_weights,
)
from tests.distributed.models import Model
from tests.xla.trainings import TRAININGS


def weights_on_cpu(trainer, model: Model) -> Weights:
    return {name: weight.cpu() for name, weight in plain_weights(trainer, model).items()}


def train(training: Training, accelerator: str, net=None) -> Outcome:
    model, recorder = training.model() if net is None else Model(net), Recorder(weights_on_cpu)
    training.fit(model, recorder, accelerator=accelerator)
    return Outcome(recorder.before, recorder.after, model.logged)


@pytest.mark.parametrize("target", TRAININGS)
def test_training_equals_that_on_the_cpu(record_property, target):
    training = TRAININGS[target]
    expected = Check(training, lambda: "auto").reference()
    found = train(training, "tpu")
    record_property("largest difference from the weights of the CPU", max_difference(found.after, expected.after))
    compare_weights(found.after, expected.after, "after")
    compare_logged(found.logged, expected.logged)


class Odd(nn.Module):
    """A layer, and parameters of no elements, of none in a weight vector, of no dims, unused, and with expanded gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.no_rows = nn.Parameter(torch.empty(0, 3))
        self.no_columns = nn.Parameter(torch.empty(3, 0))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.unused = nn.Parameter(torch.ones(3, 2))
        self.expanded = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.beside = nn.Parameter(torch.arange(6.0).view(2, 3))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        nothing = self.no_rows.sum() + self.no_columns.sum()
        # Of what is beside other values, the gradient is expanded from a part of a larger one, which its storage hides.
        factor = (torch.cat([self.beside.sum(1), images.flatten()]) / 16).square().mean()
        return self.layer(images.flatten(1)) * self.scalar * (factor + self.expanded.sum() / 16) + nothing


def test_odd_parameters_are_treated_as_on_the_cpu():
    training = Training(gc(fan_in_dims={"net.expanded": 1, "net.beside": 1}))
    expected, found = (train(training, accelerator, Odd) for accelerator in ("cpu", "tpu"))
    compare_weights(found.after, expected.after, "after")
    compare_logged(found.logged, expected.logged)


@pytest.mark.parametrize("dim", [0, 1, (0, 1)])
def test_an_expanded_tensor_is_refused_although_its_strides_do_not_show_it(dim):
    weight = nn.Parameter(torch.ones(2, 3, device=torch_xla.device()))
    weight.sum(dim).square().sum().backward()
    with pytest.raises(ValueError, match="several of its elements share one place in memory"):
        centralize_(weight.grad)
