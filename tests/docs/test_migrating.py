"""What docs/migrating.md says is the same as another implementation is the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gc import GradientCentralization, centralize, select
from tests.models import Classifier, fit


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.filterwarnings("ignore")
def test_pytorch_optimizer_lion(clip):
    optimizers = pytest.importorskip("pytorch_optimizer")
    theirs = Classifier(optimizer=optimizers.Lion, lr=1e-3, use_gc=True)
    fit(theirs, gradient_clip_val=clip)
    ours = Classifier(optimizer=optimizers.Lion, lr=1e-3)
    fit(ours, GradientCentralization(target="clipped_gradient", log_means="off"), gradient_clip_val=clip)
    without = Classifier(optimizer=optimizers.Lion, lr=1e-3)
    fit(without, gradient_clip_val=clip)
    for a, b in zip(weights_of(theirs), weights_of(ours), strict=True):
        torch.testing.assert_close(a, b)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(weights_of(ours), weights_of(without), strict=True))


def test_optax_on_a_dense_kernel_of_flax():
    """optax takes all dims but the first of `(in, out)`: dim 0 of torch's transposed weight."""
    jnp, optax = pytest.importorskip("jax.numpy"), pytest.importorskip("optax")
    torch.manual_seed(0)
    weight = torch.randn(4, 6)  # torch: (out, in)
    transform = optax.centralize()
    theirs, _ = transform.update(jnp.asarray(weight.T.numpy()), transform.init(None))
    (entry,) = select(nn.Linear(6, 4, bias=False), fan_in_dims={"weight": 0}).centralized
    torch.testing.assert_close(centralize(weight, entry.layout.dims), torch.tensor(theirs.tolist()).T)


def test_keras_kernels_have_the_same_weight_vectors():
    """gctf averages over all dims but the last, where Keras has the output units of dense layers and convolutions."""
    torch.manual_seed(0)
    kernel = torch.randn(3, 3, 5, 7)  # Keras: (height, width, in, out)
    theirs = kernel - kernel.mean((0, 1, 2), keepdim=True)
    (entry,) = select(nn.Conv2d(5, 7, 3, bias=False)).centralized
    ours = centralize(kernel.permute(3, 2, 0, 1), entry.layout.dims)
    torch.testing.assert_close(ours.permute(2, 3, 1, 0), theirs)
