"""Train a classifier of handwritten digits in a loop of your own, with Lightning Fabric and `attach`.

`python examples/fabric.py` trains with AdamW on one device; ``--devices 2`` with DDP on two, ``--precision bf16-mixed`` in
16 bits: the loop stays the same. It prints how far the mean of any weight vector has moved, which `target="update"` keeps
where it was, and what the network gets right.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_gc import attach


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,797 digits of 8 x 8 pixels, which scikit-learn brings along; every fifth is held out."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    held_out = torch.arange(len(y)) % 5 == 0
    return TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what came of it."""
    options = parse(arguments)
    fabric = Fabric(accelerator=options.accelerator, devices=options.devices, precision=options.precision)
    fabric.launch()
    fabric.seed_everything(0)
    train, held_out = digits()
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    before = net[0].weight.detach().clone().mean(1)
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=1e-2))
    loader = fabric.setup_dataloaders(DataLoader(train, batch_size=64, shuffle=True))

    handle = attach(optimizer, model, target="update", exclude="2")  # the one line
    fabric.print(handle.selection)

    for _ in range(options.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(model(images), labels))
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()

    moved = (net[0].weight.detach().mean(1) - before.to(fabric.device)).abs().max().item()
    images, labels = fabric.to_device(held_out.tensors)
    right = (model(images).argmax(1) == labels).float().mean().item()
    fabric.print(
        f"the mean of a weight vector has moved by up to {moved:.1e}; {right:.1%} of the held out digits are right"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--precision", default="32-true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
