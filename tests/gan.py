"""A GAN that is trained by hand, with two optimizers."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from tests.loops import Layouts

# A weight vector of a transposed convolution is the incoming weights of one output channel in its group.
GENERATOR: Layouts = {"generator.0.weight": ((1,), 1), "generator.2.weight": ((0, 2, 3), 2)}
DISCRIMINATOR: Layouts = {"discriminator.0.weight": ((1, 2, 3), 1), "discriminator.2.weight": ((1,), 1)}


def gan_batches(count: int = 3) -> DataLoader:
    """Batches of real images and of noise, always the same."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4 * count, 2, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(4 * count, 3, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(images, noise), batch_size=4, shuffle=False)


class GAN(LightningModule):
    """A generator with a grouped ConvTranspose2d against a small discriminator."""

    def __init__(self, kinds: tuple[Any, Any] = (torch.optim.Adam, torch.optim.Adam)) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._kinds = kinds
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.generator = nn.Sequential(
                nn.Linear(3, 16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 2, 2, stride=2, groups=2)
            )
            self.discriminator = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 1))
        self.double()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        of_generator, of_discriminator = self._kinds
        return [
            of_generator(self.generator.parameters(), lr=0.01),
            of_discriminator(self.discriminator.parameters(), lr=0.02),
        ]

    def discriminator_loss(self, images: Tensor, noise: Tensor) -> Tensor:
        fake = self.generator(noise).detach()
        return F.softplus(-self.discriminator(images)).mean() + F.softplus(self.discriminator(fake)).mean()

    def generator_loss(self, noise: Tensor) -> Tensor:
        return F.softplus(-self.discriminator(self.generator(noise))).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, noise = batch
        of_generator, of_discriminator = self.optimizers()
        self.manual_backward(self.discriminator_loss(images, noise))
        of_discriminator.step()
        of_discriminator.zero_grad()
        self.manual_backward(self.generator_loss(noise))
        of_generator.step()
        of_generator.zero_grad()
        of_discriminator.zero_grad()
