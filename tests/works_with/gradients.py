"""Rows: gradients of every kind."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gc import select
from tests.works_with.running import Regression, assert_trained, check, pairs, seeded, train
from tests.works_with.table import row

SECTION = "Gradients"
GRADIENTS = ("gradient", "clipped_gradient")


def tokens(count: int = 6) -> DataLoader:
    """Every batch has the tokens 1, 2, 3 and 5, some of them twice, and no others."""
    return DataLoader(
        [(torch.tensor([1, 3, 3, 5, 2, 1]), torch.arange(6.0).double() + k) for k in range(count)], batch_size=None
    )


class Bag(Regression):
    """An embedding of 8 tokens and a loss that is not symmetric in the embedding's elements."""

    def __init__(self, sparse: bool, optimizer: type, **arguments: float) -> None:
        super().__init__(seeded(lambda: nn.Embedding(8, 4, sparse=sparse)), optimizer, **arguments)

    def loss(self, x, y):
        return ((self.net(x) * torch.arange(1.0, 5.0)).sum(1) - y).square().mean()


@row(SECTION, "Sparse COO: `SparseAdam` trains an embedding, on the touched rows as `Adam` trains a dense one")
def sparse_adam(target: str) -> None:
    # torch's SparseAdam adds eps at another place than its Adam: without it, they are the same on these rows.
    arguments = {"lr": 0.05, "eps": 1e-30}
    sparse, dense = Bag(True, torch.optim.SparseAdam, **arguments), Bag(False, torch.optim.Adam, **arguments)
    recorder = check(sparse, target, data=tokens())
    assert recorder.used[0]["net.weight"].is_sparse
    check(dense, target, data=tokens())
    touched, untouched = [1, 2, 3, 5], [0, 4, 6, 7]
    torch.testing.assert_close(sparse.net.weight[touched], dense.net.weight[touched], rtol=1e-9, atol=1e-12)
    assert torch.equal(sparse.net.weight[untouched], recorder.weights[0]["net.weight"][untouched])


@row(
    SECTION, "Sparse COO with repeated indices (not coalesced): `SGD` takes the steps that it takes on dense gradients"
)
def sparse_uncoalesced(target: str) -> None:
    sparse, dense = Bag(True, torch.optim.SGD, lr=0.02), Bag(False, torch.optim.SGD, lr=0.02)
    recorder = check(sparse, target, data=tokens())
    assert not recorder.used[0]["net.weight"].is_coalesced()
    check(dense, target, data=tokens())
    torch.testing.assert_close(sparse.net.weight, dense.net.weight, rtol=1e-12, atol=1e-12)


@row(SECTION, "Gradients in `channels_last`, which a flattened view would silently copy")
def channels_last(target: str) -> None:
    net = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    )
    with torch.no_grad():
        net(torch.zeros(1, 3, 6, 6))
    module = Regression(net.to(memory_format=torch.channels_last))
    module.loss = lambda x, y: (net(x.to(memory_format=torch.channels_last)) - y).square().mean()
    recorder = check(module, target, data=pairs(3, 6, 6))
    assert not recorder.used[0]["net.2.weight"].is_contiguous()


class Replaces(Regression):
    """Replaces the gradient of its weight after backward."""

    def __init__(self, replacement) -> None:
        super().__init__(seeded(lambda: nn.Linear(6, 3)))
        self.replacement = replacement

    def on_after_backward(self):
        self.net.weight.grad = self.replacement(self.net.weight.grad)


@row(SECTION, "Expanded gradients, whose elements share memory and refuse changes in place")
def expanded(target: str) -> None:
    def expand(gradient):
        return gradient[:, :1].clone().expand(-1, 6)

    module = Replaces(expand)
    recorder = check(module, target, data=pairs(6))
    # All elements of a weight vector's gradient are equal: nothing is left of it.
    torch.testing.assert_close(recorder.weights[0]["net.weight"], module.net.weight.detach(), rtol=0, atol=1e-14)
    assert_trained(recorder, "net.bias")


@row(SECTION, "Transposed and otherwise strided gradients")
def strided(target: str) -> None:
    def stride(gradient):
        apart = torch.zeros(12, 3, dtype=gradient.dtype).t()[:, ::2]
        return apart.copy_(gradient)

    strided_module, plain = Replaces(stride), Replaces(lambda gradient: gradient)
    recorder = check(strided_module, target, data=pairs(6))
    assert not recorder.used[0]["net.weight"].is_contiguous() or target != "gradient"
    check(plain, target, data=pairs(6))
    torch.testing.assert_close(strided_module.net.weight, plain.net.weight, rtol=1e-13, atol=1e-14)


class DoubleBackward(Regression):
    """Penalises the norm of its gradients: two backward passes, the first with `create_graph=True`."""

    def __init__(self) -> None:
        super().__init__(seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
            self.manual_backward(self.loss(*batch), create_graph=True)
        self.manual_backward(sum(p.grad.square().sum() for p in self.parameters()))
        assert self.net[0].weight.grad.grad_fn is not None
        optimizer.step()
        optimizer.zero_grad()


@row(SECTION, "Gradients with a graph of their own (`create_graph=True`)")
def create_graph(target: str) -> None:
    check(DoubleBackward(), target, data=pairs(6))


@row(SECTION, "`None`: parameters that the loss does not reach keep no gradient")
def no_gradient(target: str) -> None:
    module = Regression(seeded(lambda: nn.ModuleDict({"used": nn.Linear(6, 3), "unused": nn.Linear(6, 3)})))
    module.loss = lambda x, y: (module.net["used"](x) - y).square().mean()
    recorder = check(module, target, data=pairs(6))
    assert "net.unused.weight" not in recorder.used[0]
    assert torch.equal(recorder.weights[0]["net.unused.weight"], module.net["unused"].weight)


class TwoOptimizers(Regression):
    """Accumulates gradients in `slow`, which steps in every second batch, while `fast` steps in each."""

    def __init__(self) -> None:
        super().__init__(seeded(lambda: nn.ModuleDict({"fast": nn.Linear(6, 3), "slow": nn.Linear(6, 3)})))
        self.automatic_optimization = False
        self.slow_was_touched: list[bool] = []

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[name].parameters(), lr=0.1) for name in ("fast", "slow")]

    def training_step(self, batch, batch_idx):
        x, y = batch
        fast, slow = self.optimizers()
        fast.zero_grad()
        self.manual_backward((self.net["fast"](x) + self.net["slow"](x) - y).square().mean())
        before = self.net["slow"].weight.grad.clone()
        fast.step()
        self.slow_was_touched.append(not torch.equal(before, self.net["slow"].weight.grad))
        if batch_idx % 2:
            slow.step()
            slow.zero_grad()


@row(SECTION, "Stale gradients of other optimizers: only the parameters of the optimizer that steps are touched")
def stale(target: str) -> None:
    module = TwoOptimizers()
    recorder = train(module, target, data=pairs(6))
    assert module.slow_was_touched == [False] * 4
    for entry in select(module).centralized:
        moved = recorder.weights[-1][entry.name] - recorder.weights[0][entry.name]
        assert moved.abs().max() > 1e-3
        assert moved.mean(1).abs().max() < 1e-14
