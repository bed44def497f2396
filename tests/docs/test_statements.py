"""The mathematical statements of docs/*.md that no other test holds, each in a real training or on a real layer."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune

from lightning_gc import GradientCentralization, centralize, select
from tests.models import Classifier, fit

STEPS = 8  # that `fit` trains for by default


def means_of(module: nn.Module) -> dict[str, Tensor]:
    entries = select(module).centralized
    return {e.name: e.parameter.detach().double().mean(e.layout.dims) for e in entries}


def means_before_and_after(optimizer, target: str, **kwargs) -> list[tuple[Tensor, Tensor]]:
    module = Classifier(optimizer=optimizer, **kwargs).double()
    before = means_of(module)
    fit(module, GradientCentralization(target=target, log_means="off"), precision="64-true")
    after = means_of(module)
    return [(before[name], after[name]) for name in before]


SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_sgd_keeps_every_mean(kwargs):
    for before, after in means_before_and_after(SGD, "gradient", **kwargs):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-14)


def test_weight_decay_shrinks_the_means_and_nothing_else_moves_them():
    for before, after in means_before_and_after(SGD, "gradient", lr=0.1, weight_decay=0.3):
        torch.testing.assert_close(after, before * (1 - 0.1 * 0.3) ** STEPS, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("optimizer", "kwargs"),
    [(SGD, {"momentum": 0.9, "weight_decay": 0.3}), (ADAM, {"lr": 0.01}), (ADAMW, {"lr": 0.01, "weight_decay": 0.3})],
)
def test_update_keeps_every_mean(optimizer, kwargs):
    for before, after in means_before_and_after(optimizer, "update", **kwargs):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-14)


def test_adam_moves_the_means_of_weights_under_gradient():
    for before, after in means_before_and_after(ADAM, "gradient", lr=0.01):
        assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4, bias=False),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.ConvTranspose2d(3, 4, 3, bias=False),
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    ],
    ids=lambda layer: f"{type(layer).__name__}-{getattr(layer, 'groups', 1)}",
)
def test_a_weight_vector_is_what_one_output_unit_sees(layer):
    """The elements of the weight that the first output unit depends on are one whole weight vector, and no other."""
    features = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    inputs = torch.rand(2, features, *(() if isinstance(layer, nn.Linear) else (5, 5))) + 0.1
    (used,) = torch.autograd.grad(layer(inputs)[:, 0].sum(), layer.weight)
    (entry,) = select(layer).centralized
    assert int((used != 0).sum()) == entry.fan_in
    # Centralizing a gradient that is constant on that weight vector, and zero elsewhere, leaves nothing of it.
    constant = (used != 0).float()
    left = centralize(constant, entry.layout.dims, groups=entry.layout.groups)
    assert left.abs().max() < 1e-6


def layer_after(activation: nn.Module) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear layer, its inputs (of mean 0 and spread 1, through `activation`), and labels."""
    seed_everything(0, verbose=False)
    return nn.Linear(64, 10), activation(torch.randn(128, 64)), torch.randint(0, 10, (128,))


def removed_norm(gradient: Tensor) -> float:
    return float((gradient - centralize(gradient)).norm() / gradient.norm())


def weight_gradient(layer: nn.Linear, inputs: Tensor, labels: Tensor) -> Tensor:
    return torch.autograd.grad(F.cross_entropy(layer(inputs), labels), layer.weight)[0]


def test_centralizing_is_centring_the_inputs_in_backward():
    layer, inputs, labels = layer_after(nn.ReLU())
    outputs = layer(inputs)
    (deltas,) = torch.autograd.grad(F.cross_entropy(outputs, labels), outputs)
    centred = deltas.T @ (inputs - inputs.mean(1, keepdim=True))
    torch.testing.assert_close(centralize(weight_gradient(layer, inputs, labels)), centred)


def test_after_relu_much_is_removed():
    assert removed_norm(weight_gradient(*layer_after(nn.ReLU()))) > 0.3
    assert removed_norm(weight_gradient(*layer_after(nn.Identity()))) < 0.2


def test_after_layer_norm_nothing_is_left_to_remove():
    assert removed_norm(weight_gradient(*layer_after(nn.Sequential(nn.ReLU(), nn.LayerNorm(64))))) < 1e-5


def test_before_layer_norm_nothing_is_left_to_remove():
    seed_everything(0, verbose=False)
    embedding = nn.Embedding(20, 64)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
    words = torch.randint(0, 20, (8, 12))
    scores = nn.Linear(64, 5)(nn.LayerNorm(64)(layer(embedding(words))))
    (gradient,) = torch.autograd.grad(scores.square().mean(), embedding.weight)
    assert removed_norm(gradient) < 1e-4


def test_a_constant_shift_of_the_inputs_acts_as_it_did_before_training():
    seed_everything(0, verbose=False)
    head = nn.Linear(144, 3)

    def effect_of_a_shift() -> Tensor:
        inputs = torch.ones(1, 144, dtype=torch.double)
        with torch.no_grad():
            return head.double()(inputs + 0.7) - head.double()(inputs)

    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), head)
    before, weight = effect_of_a_shift(), head.weight.detach().clone()
    fit(Classifier(net).double(), GradientCentralization(log_means="off"), precision="64-true")
    torch.testing.assert_close(effect_of_a_shift(), before, rtol=0, atol=1e-12)
    assert (head.weight - weight).abs().max() > 1e-2, "it was trained"

    fit(Classifier(net).double(), precision="64-true")
    assert (effect_of_a_shift() - before).abs().max() > 1e-3, "without, the effect changes"


def test_a_random_gradient_has_one_over_root_n():
    seed_everything(0, verbose=False)
    for fan_in in (16, 256):
        assert removed_norm(torch.randn(2000, fan_in)) == pytest.approx(fan_in**-0.5, rel=0.05)


def test_centralizing_clipped_values_stays_below_twice_the_bound():
    seed_everything(0, verbose=False)
    clipped = (100 * torch.randn(1000, 3)).clamp(-0.5, 0.5)
    worst = centralize(clipped).abs().max()
    assert 0.5 < worst < 1.0


def test_of_what_a_pruning_mask_leaves_the_share_that_survives_of_the_mean_is_removed():
    """The weight vector is centralized as it is stored, masked elements included."""
    seed_everything(0, verbose=False)
    layer = prune.random_unstructured(nn.Linear(40, 6), "weight", 0.5)
    layer(torch.randn(8, 40) + 0.7).square().sum().backward()
    mask, (entry, *_) = layer.weight_mask, select(layer).centralized
    assert entry.name == "weight_orig"
    gradient = entry.parameter.grad
    survive = mask.sum(1)
    before = (gradient * mask).sum(1) / survive
    centralized = centralize(gradient, entry.layout.dims)
    after = (centralized * mask).sum(1) / survive
    torch.testing.assert_close(after, before * (1 - survive / 40))
    assert after.abs().max() > 0.1 * before.abs().max()


def test_where_pruning_takes_whole_weight_vectors_what_is_left_has_mean_zero():
    seed_everything(0, verbose=False)
    layer = prune.ln_structured(nn.Linear(40, 6), "weight", 0.5, n=2, dim=0)
    layer(torch.randn(8, 40) + 0.7).square().sum().backward()
    (entry,) = select(layer).centralized
    centralized = centralize(entry.parameter.grad, entry.layout.dims)
    assert (centralized * layer.weight_mask).mean(1).abs().max() < 1e-5
