"""The problems: what a seed makes of data, a network in two parts (trunk and head), a loss, and what is held out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from paired_study import data as datasets
from paired_study.data import Data

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """One seed's problem.

    Attributes:
        data: What is learned, and what is held out.
        batch_size: Of the training.
        trunk: All layers but the last.
        head: The last layer.
        loss: Of outputs and targets.
        trained_before: Where the trunk was trained before on something else: that data, and the head it had.
    """

    data: Data
    batch_size: int
    trunk: nn.Module
    head: nn.Linear
    loss: Loss
    trained_before: tuple[Data, nn.Linear] | None = None


class TransformerTrunk(nn.Module):
    """Two transformer layers over tokens, `(N, tokens, ...)` to `(N, tokens, width)`.

    Args:
        embedding: Makes vectors of `width` of the tokens.
        tokens: How many there are at most.
        width: Of the layers.
        causal: A token sees those before it only.
    """

    def __init__(self, embedding: nn.Module, tokens: int, width: int, causal: bool) -> None:
        super().__init__()
        self.embedding, self.causal = embedding, causal
        self.positions = nn.Embedding(tokens, width)
        nn.init.normal_(self.positions.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The last hidden states."""
        x = self.embedding(tokens) + self.positions.weight
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        return self.layers(x, mask=mask, is_causal=self.causal)


def _byte_loss(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


def _bytes_trunk(width: int) -> nn.Module:
    embedding = nn.Embedding(256, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return TransformerTrunk(embedding, datasets.CONTEXT, width, causal=True)


def language(generator: torch.Generator, width: int = 48) -> Problem:
    """A byte transformer learns Python's language reference."""
    text = datasets.next_bytes(datasets.language_reference())
    return Problem(text, 8, _bytes_trunk(width), nn.Linear(width, 256), _byte_loss)


def code(generator: torch.Generator, width: int = 48) -> Problem:
    """A byte transformer that has learned the language reference learns source code, with a new last layer."""
    before = datasets.next_bytes(datasets.language_reference()), nn.Linear(width, 256)
    source = datasets.next_bytes(datasets.library_source())
    return Problem(source, 8, _bytes_trunk(width), nn.Linear(width, 256), _byte_loss, before)


def field(generator: torch.Generator, width: int = 64) -> Problem:
    """An MLP learns the two components of a plane flow's velocity from places in it."""
    sizes = [2, width, width, width]
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.GELU())]
    return Problem(datasets.vortices(generator), 256, nn.Sequential(*layers), nn.Linear(width, 2), F.mse_loss)


def burgers(generator: torch.Generator, width: int = 48, patch: int = 4) -> Problem:
    """A transformer learns to map initial conditions of Burgers' equation to a later time, in patches of the grid."""
    flows = datasets.flows(generator)
    cut = Data(
        *(x.unflatten(1, (-1, patch)) for x in (flows.inputs, flows.targets, flows.test_inputs, flows.test_targets))
    )
    trunk = TransformerTrunk(nn.Linear(patch, width), cut.inputs.shape[1], width, causal=False)
    return Problem(cut, 32, trunk, nn.Linear(width, patch), F.mse_loss)


def digits(generator: torch.Generator) -> Problem:
    """A small CNN that has learned the digits 0 to 4 learns 5 to 9, with a new last layer."""
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16 * 4 * 4, 64), nn.ReLU()),
    )
    before = datasets.digits(0, generator), nn.Linear(64, 5)
    return Problem(datasets.digits(5, generator), 32, trunk, nn.Linear(64, 5), F.cross_entropy, before)


PROBLEMS: dict[str, Callable[[torch.Generator], Problem]] = {
    "language": language,
    "field": field,
    "burgers": burgers,
    "digits": digits,
    "code": code,
}
