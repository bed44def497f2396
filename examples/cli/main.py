"""Train a classifier of handwritten digits from the command line, with Gradient Centralization from YAML.

python main.py fit --config config.yaml
python main.py fit --help
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(LightningDataModule):
    """The 1,797 digits of 8x8 pixels that scikit-learn carries.

    Args:
        batch_size: Images in a batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        dataset = TensorDataset(images, torch.tensor(digits.target))
        self.train, self.val = random_split(dataset, [0.8, 0.2], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 256)


class DigitsClassifier(LightningModule):
    """Two convolutions, a hidden layer and a head.

    Args:
        channels: Of the convolutions.
        hidden: Units of the hidden layer.
    """

    def __init__(self, channels: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(16 * channels, hidden), nn.ReLU()),
        )
        self.head = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)


def main(args: list[str] | None = None) -> None:
    """Run LightningCLI, and say afterwards what was trained with.

    Args:
        args: The command line's arguments; by default those of the process.
    """
    cli = LightningCLI(DigitsClassifier, Digits, args=args, seed_everything_default=1)
    if cli.subcommand == "fit":
        print(f"trained for {cli.trainer.global_step} steps with:")
        for callback in cli.trainer.callbacks:
            if type(callback).__module__.startswith("lightning_gc"):
                print(f"  {callback!r}")
        print("last logged values:")
        for name, value in sorted(cli.trainer.callback_metrics.items()):
            print(f"  {name:<42} {value:.4g}")


if __name__ == "__main__":
    main()
