"""Fine-tuning: Gradient Centralization on the head while the backbone is frozen, then on everything.

A small network first learns the digits 0 to 4. Its backbone is then used for the digits 5 to 9: for some epochs
frozen, with only a new head in training, and from then on with everything in training. The optimizer gets the
backbone's parameters in the middle of the run, from Lightning's BackboneFinetuning; GradientCentralization takes them up
from that step on.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_gc import GradientCentralization


def make_backbone() -> nn.Sequential:
    """Images (N, 1, 8, 8) to features (N, 64)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16 * 4 * 4, 64), nn.ReLU()),
    )


class Classifier(LightningModule):
    """A backbone and a head for five classes."""

    def __init__(self, backbone: nn.Module, lr: float = 0.05) -> None:
        super().__init__()
        self.backbone, self.head, self.lr = backbone, nn.Linear(64, 5), lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.head(self.backbone(images)), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        right = self.head(self.backbone(images)).argmax(1) == labels
        self.log("val_accuracy", right.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Only what is trained now: BackboneFinetuning adds the backbone when it is unfrozen.
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, self.lr, momentum=0.9)


class Tell(Callback):
    """Prints in each epoch what is centralized, and how far the weight vectors of the backbone have moved."""

    def __init__(self, gc: GradientCentralization) -> None:
        self.gc = gc

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        now = dict(pl_module.named_parameters())
        moved = {name: (now[name].detach() - start) for name, start in self.start.items() if start.dim() > 1}
        distance = max(float(d.abs().max()) for name, d in moved.items() if name.startswith("backbone"))
        mean = max(float(d.flatten(1).mean(1).abs().max()) for d in moved.values())
        print(
            f"\nepoch {trainer.current_epoch}: {self.gc.selection.summary()}\n"
            f"  the backbone's weights moved by up to {distance:.1e}, the mean of a weight vector by up to {mean:.0e}"
        )


def digits(low: int, high: int) -> tuple[DataLoader, DataLoader]:
    """The digits from `low` up to, not including, `high`, as classes from 0 on: for training and validation."""
    data = load_digits()
    chosen = (data.target >= low) & (data.target < high)
    images = torch.tensor(data.images[chosen], dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target[chosen]) - low
    cut = len(labels) * 4 // 5
    return (
        DataLoader(TensorDataset(images[:cut], labels[:cut]), batch_size=32, shuffle=True),
        DataLoader(TensorDataset(images[cut:], labels[cut:]), batch_size=256),
    )


def main(argv: list[str] | None = None) -> None:
    """Pretrain, fine-tune, and print what was centralized in each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain-epochs", type=int, default=3, help="on the digits 0 to 4")
    parser.add_argument("--epochs", type=int, default=4, help="on the digits 5 to 9")
    parser.add_argument("--unfreeze-at", type=int, default=2, help="the epoch from which the backbone is trained too")
    parser.add_argument("--target", choices=("gradient", "clipped_gradient", "update"), default="gradient")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    seed_everything(args.seed)
    first = Classifier(make_backbone())
    print("Pretraining on the digits 0 to 4")
    Trainer(max_epochs=args.pretrain_epochs, callbacks=[GradientCentralization(target=args.target)], **quiet).fit(
        first, *digits(0, 5)
    )

    print("\nFine-tuning on the digits 5 to 9")
    gc = GradientCentralization(target=args.target)
    finetuning = BackboneFinetuning(
        unfreeze_backbone_at_epoch=args.unfreeze_at,
        lambda_func=lambda epoch: 1.0,
        backbone_initial_ratio_lr=0.1,
        train_bn=False,  # frozen means frozen
    )
    trainer = Trainer(max_epochs=args.epochs, callbacks=[finetuning, gc, Tell(gc)], **quiet)
    trainer.fit(Classifier(first.backbone), *digits(5, 10))
    print(f"\nAccuracy on digits that were held back: {trainer.callback_metrics['val_accuracy']:.3f}")


if __name__ == "__main__":
    main()
