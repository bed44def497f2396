"""Draws removed_norm.svg: what is removed from each parameter of a small transformer and of a small CNN, in real training.

python docs/figures/removed_norm.py
"""

from __future__ import annotations

import logging
import warnings

import matplotlib.pyplot as plt
import torch
from ground import prepare, save
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_gc import GradientCentralization


class Digits(LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 2e-3)


class ByRows(nn.Module):
    """A transformer that reads an image of 8x8 pixels as eight rows; LayerNorm before each block (pre-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        return self.head(self.layers(self.rows(images.squeeze(1))).mean(1))


def cnn() -> nn.Module:
    modules = {"conv1": nn.Conv2d(1, 16, 3, padding=1), "norm1": nn.BatchNorm2d(16), "relu1": nn.ReLU()}
    modules |= {"conv2": nn.Conv2d(16, 16, 3, padding=1), "norm2": nn.BatchNorm2d(16), "relu2": nn.ReLU()}
    modules |= {"pool": nn.MaxPool2d(2), "flatten": nn.Flatten(), "head": nn.Linear(256, 10)}
    net = nn.Sequential()
    for name, module in modules.items():
        net.add_module(name, module)
    return net


class Collect(Callback):
    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer, *args) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith("gc/removed_norm/"):
                self.values.setdefault(
                    name.removeprefix("gc/removed_norm/net.").removeprefix("layers.layers.0."), []
                ).append(float(value))


def measure(net: nn.Module) -> dict[str, float]:
    """The mean of removed_norm over five epochs, by parameter."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), 64, shuffle=True)
    collect = Collect()
    trainer = Trainer(
        max_epochs=5,
        callbacks=[GradientCentralization(log_means="per_parameter"), collect],
        accelerator="cpu",
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(net), loader)
    return {name: sum(values) / len(values) for name, values in collect.values.items()}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    prepare()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axis, (title, make) in zip(axes, {"a CNN": cnn, "a transformer, pre-norm": ByRows}.items(), strict=True):
        seed_everything(0)
        shares = measure(make())
        names = list(shares)
        axis.barh(range(len(names)), list(shares.values()), color="#0072B2")
        for i, value in enumerate(shares.values()):
            axis.text(value + 0.01, i, f"{value:.2f}", va="center", fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=9)
        axis.invert_yaxis()
        axis.set(title=title, xlim=(0, 1.05), xlabel="removed_norm, mean over five epochs")
        print(title, {name: round(value, 3) for name, value in shares.items()})
    save(figure, __file__)


if __name__ == "__main__":
    main()
