"""Training loops in plain PyTorch, with the oracle's projection, to hold the Trainer against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests import oracle

Layouts = Mapping[str, tuple[Sequence[int], int]]
"""Fan-in dims and groups by parameter name, written down by hand."""

SMALL_CNN: Layouts = {"net.0.weight": ((1, 2, 3), 1), "net.3.weight": ((1, 2, 3), 1), "net.6.weight": ((1,), 1)}


def project_(module: nn.Module, layouts: Layouts) -> None:
    """Centralize with the oracle the gradients that `layouts` names."""
    parameters = dict(module.named_parameters())
    for name, (dims, groups) in layouts.items():
        gradient = parameters[name].grad
        if gradient is not None:
            gradient.copy_(torch.from_numpy(oracle.centralized(gradient, dims, groups)))


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    layouts: Layouts = SMALL_CNN,
    accumulate: int = 1,
) -> None:
    """Classify in float64, as Lightning does: clipping aside, in the order of its hooks."""
    batches = list(batches)
    for index, (x, y) in enumerate(batches):
        loss = F.cross_entropy(module(x.double()), y) / accumulate
        loss.backward()
        if (index + 1) % accumulate == 0 or index + 1 == len(batches):
            project_(module, layouts)
            optimizer.step()
            optimizer.zero_grad()


def assert_same_weights(a: nn.Module, b: nn.Module, atol: float = 1e-12) -> None:
    """Every parameter and buffer is equal, up to float64's rounding."""
    theirs = dict(b.state_dict())
    assert a.state_dict().keys() == theirs.keys()
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def assert_other_weights(a: nn.Module, b: nn.Module, than: float = 1e-4) -> None:
    """Some parameter differs by more than rounding: what is compared could have differed."""
    theirs = dict(b.named_parameters())
    assert max((p - theirs[n]).abs().max().item() for n, p in a.named_parameters()) > than
