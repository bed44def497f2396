"""The targets are optax's chains: both run on the same 100 gradients, in float64, to 1e-12."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gc import GradientCentralization
from tests.models import fit

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

STEPS = 100
MAX_NORM, MAX_VALUE = 8.0, 0.9
SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "linear.weight": (5, 7), "linear.bias": (5,)}


def gradients() -> list[dict[str, Tensor]]:
    """Some of small and some of large norm, so that clipping acts in some steps and not in others; mean not zero."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(STEPS, generator=generator) + 0.2
    return [
        {name: s * (0.5 + torch.randn(shape, generator=generator).double()) for name, shape in SHAPES.items()}
        for s in scales.double()
    ]


class Given(LightningModule):
    """Its gradients are its batches: the loss is their inner product with the parameters."""

    def __init__(self, optimizer: Any, **arguments: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(7, 5)
        self.double()
        self._make = lambda: optimizer(self.parameters(), **arguments)

    def training_step(self, batch, batch_idx):
        return sum((p * batch[name]).sum() for name, p in self.named_parameters())

    def configure_optimizers(self):
        return self._make()


class ClipsAsOptax(Given):
    """Scales by c / ‖g‖, as optax does. torch.nn.utils.clip_grad_norm_ scales by c / (‖g‖ + 1e-6)."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        found = [p.grad for p in self.parameters()]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in found]))
        if norm >= MAX_NORM:
            for g in found:
                g.mul_(MAX_NORM / norm)


def run_torch(module: Given, target: str, **trainer_arguments: Any) -> dict[str, np.ndarray]:
    fit(
        module,
        GradientCentralization(target=target, log_means="off"),
        data=DataLoader(gradients(), batch_size=None),
        precision="64-true",
        **trainer_arguments,
    )
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def run_optax(chain: Any) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        start = Given(torch.optim.SGD)
        weights = {name: jax.numpy.asarray(p.detach().numpy()) for name, p in start.named_parameters()}
        state = chain.init(weights)

        @jax.jit
        def step(weights, state, gradient):
            updates, state = chain.update(gradient, state, weights)
            return optax.apply_updates(weights, updates), state

        for gradient in gradients():
            weights, state = step(weights, state, {name: g.numpy() for name, g in gradient.items()})
        assert all(w.dtype == np.float64 for w in weights.values())
        return {name: np.asarray(w) for name, w in weights.items()}


def largest_relative_difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    return max(float(np.linalg.norm(first[n] - second[n]) / np.linalg.norm(second[n])) for n in SHAPES)


def clip_as_torch() -> Any:
    """optax.clip_by_global_norm with torch's 1e-6 in the denominator."""

    def update(updates, params=None):
        factor = jax.numpy.minimum(1.0, MAX_NORM / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda u: u * factor, updates)

    return optax.stateless(update)


SGD = {"lr": 0.05, "momentum": 0.9}
ADAM = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8}
BY_NORM = {"gradient_clip_val": MAX_NORM}
BY_VALUE = {"gradient_clip_val": MAX_VALUE, "gradient_clip_algorithm": "value"}


def cases() -> dict[str, tuple]:
    sgd = optax.sgd(0.05, momentum=0.9)
    adam = optax.adam(0.01, b1=0.9, b2=0.99, eps=1e-8)  # eps beside the root, as torch has it
    adamw = optax.adamw(0.01, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
    # optax puts eps into the root by default, torch beside it.
    rmsprop = optax.rmsprop(0.01, decay=0.95, eps=1e-8, eps_in_sqrt=False, momentum=0.9)
    gc, norm = optax.centralize(), optax.clip_by_global_norm(MAX_NORM)
    torch_rmsprop = {"lr": 0.01, "alpha": 0.95, "eps": 1e-8, "momentum": 0.9}
    return {
        "centralize, clip_by_global_norm, sgd": (
            optax.chain(gc, norm, sgd), ClipsAsOptax(torch.optim.SGD, **SGD), "gradient", {}),
        "clip_by_global_norm, centralize, sgd": (
            optax.chain(norm, gc, sgd), ClipsAsOptax(torch.optim.SGD, **SGD), "clipped_gradient", {}),
        "centralize, clip with torch's 1e-6, sgd": (
            optax.chain(gc, clip_as_torch(), sgd), Given(torch.optim.SGD, **SGD), "gradient", BY_NORM),
        "clip with torch's 1e-6, centralize, sgd": (
            optax.chain(clip_as_torch(), gc, sgd), Given(torch.optim.SGD, **SGD), "clipped_gradient", BY_NORM),
        "clip, centralize, adam": (
            optax.chain(optax.clip(MAX_VALUE), gc, adam), Given(torch.optim.Adam, **ADAM), "clipped_gradient", BY_VALUE),
        "centralize, rmsprop": (
            optax.chain(gc, rmsprop), Given(torch.optim.RMSprop, **torch_rmsprop), "gradient", {}),
        "adam, centralize": (
            optax.chain(adam, gc), Given(torch.optim.Adam, **ADAM), "update", {}),
        "adamw, centralize": (
            optax.chain(adamw, gc), Given(torch.optim.AdamW, **ADAM, weight_decay=0.1), "update", {}),
    }  # fmt: skip


@pytest.mark.parametrize("case", cases())
def test_parity(case: str):
    chain, module, target, trainer_arguments = cases()[case]
    assert largest_relative_difference(run_torch(module, target, **trainer_arguments), run_optax(chain)) <= 1e-12


def test_clipping_acts_in_some_steps_only():
    norms = [sum(float(g.square().sum()) for g in each.values()) ** 0.5 for each in gradients()]
    assert 10 < sum(norm > MAX_NORM for norm in norms) < 90


def test_parity_would_notice_the_wrong_order():
    chain, module, _, _ = cases()["clip_by_global_norm, centralize, sgd"]
    assert largest_relative_difference(run_torch(module, "gradient"), run_optax(chain)) > 1e-3


def test_lightnings_own_clipping_is_optax_up_to_torchs_constant():
    """c / (‖g‖ + 1e-6) against c / ‖g‖: the clipped steps are smaller by at most 1e-6 / c."""
    chain, _, _, _ = cases()["centralize, clip_by_global_norm, sgd"]
    ours = run_torch(Given(torch.optim.SGD, **SGD), "gradient", **BY_NORM)
    assert 1e-12 < largest_relative_difference(ours, run_optax(chain)) < 1e-6
