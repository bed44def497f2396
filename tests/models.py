"""Small LightningModules and data that many tests train for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

OptimizerFactory = Callable[..., torch.optim.Optimizer]


def image_batches(count: int = 8, batch_size: int = 4, classes: int = 3, seed: int = 0) -> DataLoader:
    """`count` batches of 1x8x8 images with labels, always the same, in the same order."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count * batch_size, 1, 8, 8, generator=generator)
    labels = torch.randint(0, classes, (count * batch_size,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=False)


def small_cnn(classes: int = 3) -> nn.Sequential:
    """Conv, BatchNorm, ReLU, strided Conv, ReLU, Linear: something of what GC takes and leaves."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, classes),
    )


class Classifier(LightningModule):
    """Classifies with any network; the optimizer is the caller's choice. Seeded: always the same weights."""

    def __init__(
        self,
        net: nn.Module | None = None,
        optimizer: OptimizerFactory = torch.optim.SGD,
        seed: int = 0,
        **optimizer_kwargs: Any,
    ) -> None:
        super().__init__()
        if net is None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                net = small_cnn()
        self.net = net
        self._optimizer = optimizer
        self._optimizer_kwargs = {"lr": 0.1, **optimizer_kwargs}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._optimizer(self.parameters(), **self._optimizer_kwargs)


def trainer_kwargs(tmp_path: Path | str = ".", **overrides: Any) -> dict[str, Any]:
    """Arguments of a quiet Trainer on one CPU device, which `overrides` change."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
        **overrides,
    }


def fit(module: LightningModule, *callbacks: Any, data: DataLoader | None = None, **overrides: Any) -> Trainer:
    """Train `module` with `callbacks` in a real, quiet Trainer, and return the Trainer."""
    trainer = Trainer(**trainer_kwargs(callbacks=list(callbacks), **overrides))
    trainer.fit(module, image_batches() if data is None else data)
    return trainer
