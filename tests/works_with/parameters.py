"""Rows: parameters of every kind."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gc import select
from tests.works_with.running import Regression, assert_trained, check, pairs, seeded
from tests.works_with.table import row

SECTION = "Parameters"


class Complex(Regression):
    def __init__(self) -> None:
        super().__init__(seeded(lambda: nn.Linear(6, 3, dtype=torch.complex128)), momentum=0.9)

    def loss(self, x, y):
        return super().loss(torch.complex(x, x.flip(0)), torch.complex(y, -y))


@row(SECTION, "Complex parameters: the real and the imaginary part of the mean become zero")
def complex_parameters(target: str) -> None:
    module = Complex()
    recorder = check(module, target, data=pairs(6))
    assert recorder.used[0]["net.weight"].is_complex()
    assert_trained(recorder, "net.weight", "net.bias")


class Odd(Regression):
    """A linear layer, and parameters that have no weight vectors or whose weight vectors have one element."""

    def __init__(self) -> None:
        super().__init__(seeded(lambda: nn.Linear(6, 3)))
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.one = nn.Parameter(torch.ones(1, 1))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.layer_scale = nn.Parameter(torch.ones(3, 1))

    def loss(self, x, y):
        out = self.net(x) * self.scalar * self.layer_scale.flatten() + self.one
        return (out - y).square().mean() + self.empty.sum()


@row(SECTION, "No dims, no elements, one element, fan-in 1 (LayerScale, rank-1 adapters): left alone, and train on")
def odd_shapes(target: str) -> None:
    module = Odd()
    recorder = check(module, target, data=pairs(6))
    assert [e.name for e in select(module).centralized] == ["net.weight"]
    assert_trained(recorder, "scalar", "one", "layer_scale")


class Quantized(Regression):
    """An int8 weight with a trained scale, and a trained head."""

    def __init__(self) -> None:
        super().__init__(seeded(lambda: nn.Linear(4, 3)))
        integers = (torch.arange(24) % 5 - 2).to(torch.int8).view(4, 6)
        self.integers = nn.Parameter(integers, requires_grad=False)
        self.scale = nn.Parameter(torch.full((4, 1), 0.01))

    def loss(self, x, y):
        return (self.net(x @ (self.integers * self.scale).t()) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@row(SECTION, "Integer (quantized) parameters: left alone, also when the optimizer holds them")
def integers(target: str) -> None:
    module = Quantized()
    recorder = check(module, target, data=pairs(6))
    assert torch.equal(module.integers, recorder.weights[0]["integers"])
    assert "int8" in next(e.reason for e in select(module) if e.name == "integers")
    assert_trained(recorder, "scale")


class Tied(Regression):
    """A language model in miniature: the head's weight is the embedding's."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__(seeded(lambda: nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": nn.Linear(4, 7)})))
        if tie:
            self.net["head"].weight = self.net["embed"].weight

    def loss(self, x, y):
        ids = x.abs().flatten().long() % 7
        return nn.functional.cross_entropy(self.net["head"](self.net["embed"](ids)), (ids + 1) % 7)


@row(SECTION, "Tied weights (embedding and head): one parameter, centralized once")
def tied(target: str) -> None:
    module = Tied()
    assert len(select(module).centralized) == 1
    check(module, target, data=pairs(6))


@row(SECTION, "Frozen layers: nothing happens to them, with or without the optimizer holding them")
def frozen(target: str) -> None:
    module = Regression(seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))), weight_decay=0.1)
    module.net[0].requires_grad_(False)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.1)
    before = module.net[0].weight.clone().double()
    check(module, target, data=pairs(6))
    assert torch.equal(before, module.net[0].weight)


@row(SECTION, "Parameters that only the optimizer holds: by the default rule, all dims but the first")
def outside(target: str) -> None:
    module = Regression(seeded(lambda: nn.Linear(6, 3)))
    outside = [torch.nn.Parameter(torch.ones(5, 6, dtype=torch.float64))]
    module.loss = lambda x, y: (module.net(torch.tanh(x * outside[0])) - y).square().mean()
    module.configure_optimizers = lambda: torch.optim.SGD([*module.parameters(), *outside], lr=0.1)
    check(module, target, data=pairs(6))
    moved = outside[0].detach() - 1
    assert moved.abs().max() > 1e-4
    assert moved.mean(1).abs().max() < 1e-14
