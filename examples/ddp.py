"""Train a small CNN on scikit-learn's digits on several devices with `ddp`, on GPUs or on the CPU.

`python examples/ddp.py` starts two processes (``--devices`` for more). DistributedDataParallel gives every process
the same averaged gradients, so the callback needs no communication, and the weight vectors keep the same means on all
processes, which is checked at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_gc import GradientCentralization


class DigitsCNN(LightningModule):
    """Two convolutions and a linear layer for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def digits(batch_size: int) -> DataLoader:
    """The 1797 images of handwritten digits that scikit-learn brings along."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    return DataLoader(TensorDataset(images, torch.tensor(bunch.target)), batch_size=batch_size, shuffle=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and compare the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2, help="processes, each with a GPU if there are (default: 2)")
    parser.add_argument("--accelerator", default="auto", help="'cpu', 'gpu', ... (default: GPUs if there are enough)")
    parser.add_argument("--epochs", type=int, default=2, help="default: 2")
    parser.add_argument("--batch-size", type=int, default=32, help="of each process (default: 32)")
    options = parser.parse_args(arguments)
    accelerator = options.accelerator
    if accelerator == "auto" and torch.cuda.device_count() < options.devices:
        accelerator = "cpu"

    seed_everything(0)
    model = DigitsCNN()
    before = model.head.weight.detach().mean(1)
    trainer = Trainer(
        strategy="ddp",
        accelerator=accelerator,
        devices=options.devices,
        max_epochs=options.epochs,
        callbacks=[GradientCentralization()],
        log_every_n_steps=10,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, digits(options.batch_size))

    # Centralized gradients and plain SGD leave the means of the weight vectors where they were.
    moved = (model.head.weight.detach().mean(1).to(before) - before).abs().max()
    everyone = trainer.strategy.all_gather(model.head.weight.detach())
    if trainer.is_global_zero:
        means = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("gc/")}
        print(f"{trainer.world_size} processes on {trainer.strategy.root_device.type}, {trainer.global_step} steps")
        print(f"largest difference between the processes' weights: {(everyone - everyone[0]).abs().max().item():.1e}")
        print(f"largest move of the mean of a weight vector of the head: {moved.item():.1e}")
        for name, value in means.items():
            print(f"{name:16} {value:.3e}")


if __name__ == "__main__":
    main()
