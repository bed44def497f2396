"""One run of an image setting: a small CNN on Fashion-MNIST."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_gc import GradientCentralization
from paired_study import norms
from paired_study.settings import IMAGE_ARMS, ImageSetting

BATCH_SIZE = 128
Splits = dict[str, tuple[Tensor, Tensor]]


def small_cnn(setting: ImageSetting) -> nn.Sequential:
    """Three convolutions and a linear layer: 30,000 weights."""

    def norm(channels: int) -> nn.Module:
        made = {"batch": nn.BatchNorm2d(channels), "group": nn.GroupNorm(4, channels), "none": nn.Identity()}
        return made[setting.norm]

    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), norm(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), norm(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), norm(32), nn.ReLU(), nn.Flatten()),
        nn.Linear(32 * 7 * 7, 10),
    )
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.mul_(setting.init_scale)
    return net


class Batches:
    """Batches cut from tensors; with a generator, in a new order each epoch.

    A DataLoader would cost more than the network: it collates image by image.
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int, generator: torch.Generator | None = None) -> None:
        self.images, self.labels, self.size, self.generator = images, labels, size, generator

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.size)
        return whole + (rest > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)
        for part in order.split(self.size):
            yield self.images[part], self.labels[part]


class Classifier(LightningModule):
    """The network with its optimizer; remembers the mean training loss of each epoch."""

    def __init__(self, setting: ImageSetting) -> None:
        super().__init__()
        self.setting = setting
        self.net = small_cnn(setting)
        self.train_losses: list[float] = []
        self._sum, self._count = torch.zeros(()), 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self._sum += loss.detach() * len(labels)
        self._count += len(labels)
        return loss

    def on_train_epoch_end(self) -> None:
        self.train_losses.append(float(self._sum) / self._count)
        self._sum, self._count = torch.zeros(()), 0

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        scores = self.net(images)
        self.log("test_loss", F.cross_entropy(scores, labels), batch_size=len(labels))
        self.log("test_accuracy", (scores.argmax(1) == labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        s = self.setting
        if s.optimizer == "sgd":
            kwargs: dict[str, Any] = {"momentum": 0.9}
            made: type[torch.optim.Optimizer] = torch.optim.SGD
        else:
            kwargs, made = {}, torch.optim.AdamW
        optimizer = made(self.parameters(), lr=s.lr, weight_decay=s.weight_decay, **kwargs)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class RemovedNorms(Callback):
    """Collects what the callback logs: the share of the gradient's (or update's) norm that was removed."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        value = trainer.callback_metrics.get("gc/removed_norm")
        if value is not None and trainer.global_step % trainer.log_every_n_steps == 0:
            self.values.append(float(value))


def begin(setting: ImageSetting, seed: int, data: Splits) -> tuple[Classifier, Batches]:
    """What a seed decides: the images, the initial weights, and the order of the batches."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = data["train"]
    chosen = torch.randperm(len(labels), generator=generator)[: setting.images]
    torch.manual_seed(seed)
    return Classifier(setting), Batches(images[chosen], labels[chosen], BATCH_SIZE, generator)


def make_trainer(setting: ImageSetting, callbacks: list[Callback], log_every_n_steps: int) -> Trainer:
    """Lightning's Trainer, as quiet as it gets."""
    return Trainer(
        max_epochs=setting.epochs,
        callbacks=callbacks,
        accelerator="cpu",
        devices=1,
        logger=False,
        log_every_n_steps=log_every_n_steps,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def train(setting: ImageSetting, arm: str, seed: int, data: Splits) -> dict[str, Any]:
    """One run: train, test, and return what to remember of it."""
    began, began_cpu = time.perf_counter(), time.process_time()
    module, batches = begin(setting, seed, data)
    arguments, removed = IMAGE_ARMS[arm], RemovedNorms()
    callbacks = [removed] if arguments is None else [GradientCentralization(**arguments), removed]
    trainer = make_trainer(setting, callbacks, log_every_n_steps=20)
    trainer.fit(module, batches)
    (tested,) = trainer.test(module, Batches(*data["t10k"], size=500), verbose=False)
    return {
        "train_losses": module.train_losses,
        **tested,
        "removed_norm": sum(removed.values) / len(removed.values) if removed.values else None,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - began_cpu,
    }


def first_norms(setting: ImageSetting, seed: int, data: Splits) -> dict[str, float]:
    """What the callback logs in the first steps of the run with target "gradient"."""
    module, batches = begin(setting, seed, data)
    found, callbacks = norms.observers()
    make_trainer(setting, callbacks, log_every_n_steps=norms.EVERY).fit(module, batches)
    return found.means()
