"""A GAN that draws handwritten digits: two optimizers by hand, transposed convolutions, both centralized.

The weight vector of a transposed convolution is not a slice of its first dim: its weight is (in, out, height, width), so
the incoming weights of an output channel span the first dim and the kernel. The table that is printed shows it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_gc import GradientCentralization, select

NOISE = 32


def make_generator() -> nn.Sequential:
    """Noise (N, 32, 1, 1) to images (N, 1, 8, 8) between -1 and 1."""
    return nn.Sequential(
        *(nn.ConvTranspose2d(NOISE, 64, 2, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1), nn.Tanh()),
    )


def make_discriminator() -> nn.Sequential:
    """Images (N, 1, 8, 8) to scores (N, 1): positive for what looks real."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Flatten()),
        nn.Linear(64 * 2 * 2, 1),
    )


class GAN(LightningModule):
    """Generator and discriminator, each with its own Adam, stepped by hand."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr
        self.generator, self.discriminator = make_generator(), make_discriminator()

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        (real,) = batch
        for_generator, for_discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(real), NOISE, 1, 1, device=self.device))

        score_real, score_fake = self.discriminator(real), self.discriminator(fake.detach())
        loss = F.softplus(-score_real).mean() + F.softplus(score_fake).mean()
        for_discriminator.zero_grad()
        self.manual_backward(loss)
        for_discriminator.step()
        self.log("loss/discriminator", loss, prog_bar=True)

        loss = F.softplus(-self.discriminator(fake)).mean()
        for_generator.zero_grad()
        self.manual_backward(loss)
        for_generator.step()
        self.log("loss/generator", loss, prog_bar=True)

    def configure_optimizers(self) -> list[Any]:
        return [
            torch.optim.Adam(self.generator.parameters(), self.lr, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), self.lr, betas=(0.5, 0.999)),
        ]

    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        """Images between 0 and 1, ``(count, 8, 8)``."""
        self.generator.eval()
        images = self.generator(torch.randn(count, NOISE, 1, 1, device=self.device))
        return (images.squeeze(1) + 1) / 2


def digits() -> DataLoader:
    """The digits of scikit-learn in shuffled batches, between -1 and 1."""
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    return DataLoader(TensorDataset(images), batch_size=64, shuffle=True, drop_last=True)


def as_text(image: Tensor) -> str:
    """An image between 0 and 1 as characters, two for a pixel."""
    shades = " .:-=+*#%@"
    return "\n".join("".join(shades[int(v * 9.99)] * 2 for v in row) for row in image.tolist())


def side_by_side(blocks: list[str]) -> str:
    """Blocks of text of as many lines, next to each other."""
    return "\n".join(" | ".join(lines) for lines in zip(*(block.splitlines() for block in blocks), strict=True))


def main(argv: list[str] | None = None) -> None:
    """Train, and print what was removed and what the generator draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--target", choices=("gradient", "clipped_gradient", "update"), default="gradient")
    parser.add_argument("--no-gc", action="store_true", help="for comparison: without Gradient Centralization")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder for metrics.csv")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    seed_everything(args.seed)
    model = GAN(args.lr)
    print(select(model))
    trainer = Trainer(
        max_epochs=args.epochs,
        callbacks=[] if args.no_gc else [GradientCentralization(target=args.target)],
        accelerator="cpu",
        logger=CSVLogger(args.logs, name="gan"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, digits())

    print("\nThe last logged means, by optimizer (Adam: the generator's, Adam-1: the discriminator's):")
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"  {name:<28} {value:.3e}")
    print(f"\nFour digits it draws after {args.epochs} epochs:")
    print(side_by_side([as_text(image) for image in model.draw(4)]))
    print(f"\nAll values are in {trainer.logger.log_dir}/metrics.csv")


if __name__ == "__main__":
    main()
