"""What the distributed tests train: small, uneven, and with something of everything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

STEPS = 6
GLOBAL_BATCH = 8


def batches(replicas: int = 1, replica: int = 0, accumulate: int = 1) -> DataLoader:
    """Data whose global batches are the same for any number of replicas: each takes every so many-th element."""
    generator = torch.Generator().manual_seed(0)
    count = GLOBAL_BATCH * STEPS * accumulate
    images = torch.rand(count, 1, 8, 8, generator=generator)
    tokens = torch.randint(0, 11, (count, 3), generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    data = TensorDataset(images, tokens, labels)
    sampler = DistributedSampler(data, replicas, replica, shuffle=False)
    return DataLoader(data, batch_size=GLOBAL_BATCH // replicas, sampler=sampler)


class Block(nn.Module):
    """Linear and ReLU, of a class of its own to wrap and to filter by."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(size, size), nn.Linear(size, size)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.other(torch.tanh(self.one(x))))


class Raw(nn.Module):
    """Parameters of no known layer: (in, out), a scale, blocks of a diagonal, and (out, in)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(7, 6) / 3)
        self.scale = nn.Parameter(torch.randn(2, 3))
        self.blocks = nn.Parameter(torch.randn(6, 4) / 3)
        self.down = nn.Parameter(torch.randn(7, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh((x @ self.up).unflatten(-1, (2, 3)) * self.scale)
        x = torch.einsum("...gi,gio->...go", x, self.blocks.view(2, 3, 4))
        return F.linear(torch.tanh(x).flatten(-2), self.down)


class Net(nn.Module):
    """Convolutions both ways, an embedding, tied, frozen and unused layers; sizes that divide badly.

    With `raw`, there are parameters of which the graph alone tells what they are. The unused layer has no gradient at all or, with `zero_unused`, one of zeros. With `weight_norm`, two layers have
    magnitudes and directions in place of weights.
    """

    def __init__(self, zero_unused: bool = False, weight_norm: bool = False, raw: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.GroupNorm(2, 6)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.embedding = nn.Embedding(11, 5)
        self.first = Block(4 * 7 * 7 + 5, 7)
        self.frozen = Block(7, 7).requires_grad_(False)
        self.tied = Tied(7)
        self.narrow = nn.Linear(7, 3, bias=False)
        self.head = nn.Linear(3, 3)
        self.unused = Block(3, 5)
        if raw:
            self.raw = Raw()
        self._zero_unused = zero_unused
        if weight_norm:
            parametrizations.weight_norm(self.first.linear)
            parametrizations.weight_norm(self.narrow, dim=1)  # its magnitude is of two dims, too

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.norm(self.conv(images)))))
        x = torch.cat([x.flatten(1), self.embedding(tokens).mean(1)], 1)
        x = self.tied(1 + self.frozen(self.first(x)))
        if hasattr(self, "raw"):
            x = x + self.raw(x)
        out = self.head(torch.tanh(self.narrow(x)))
        return out + 0 * self.unused(out).sum() if self._zero_unused else out


class OneSize(nn.Module):
    """Weights of 24 elements, of 6 rows and of 4: whoever takes one for another finds no size wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*sizes, bias=False) for sizes in ((4, 6), (6, 4)) * 2)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        x = images[:, 0, 0, :4]
        for layer in self.layers:
            x = torch.tanh(1 + layer(x))
        return x[:, :3]


WRAPPED: set[type[nn.Module]] = {nn.Conv2d, nn.ConvTranspose2d, nn.Embedding, Block, Tied, Raw}


class Model(LightningModule):
    """Trains a net, from the same weights wherever it is made, and remembers what was logged."""

    def __init__(self, net: Callable[[], nn.Module] = Net, optimizer: str = "sgd", accumulate: int = 1) -> None:
        super().__init__()
        self.accumulate = accumulate
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = net()
        self._optimizer = optimizer
        self.loss_factor = 1.0
        self.logged: list[dict[str, float]] = []

    def train_dataloader(self) -> DataLoader:
        # Lightning's own sampler would shuffle.
        where = self.trainer.strategy.distributed_sampler_kwargs if self.trainer.world_size > 1 else {}
        return batches(where.get("num_replicas", 1), where.get("rank", 0), self.accumulate)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        images, tokens, labels = batch
        return self.loss_factor * F.cross_entropy(self.net(images, tokens).float(), labels)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        values = {name: value.item() for name, value in self.trainer.callback_metrics.items() if name.startswith("gc/")}
        if values and (not self.logged or values != self.logged[-1]):
            self.logged.append(values)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self._optimizer, self.trainer.model.parameters())


def make_optimizer(kind: str, parameters: Any) -> torch.optim.Optimizer:
    if kind == "sgd_without_decay":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    # A large eps: the signs of tiny gradients are not what is compared.
    adamw = partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1, eps=1e-2)
    if kind == "adamw":
        return adamw(parameters)
    if kind == "adamw_in_groups":
        listed = list(parameters)
        return adamw([{"params": listed[:7], "lr": 0.01}, {"params": listed[7:], "weight_decay": 0.0}])
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
