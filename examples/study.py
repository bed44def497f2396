"""Does Gradient Centralization help? A paired study on Fashion-MNIST, on one CPU core.

Each *setting* (optimizer, learning rate, number of images, ...) is trained in several *arms* (without
Gradient Centralization, with target "gradient", with target "update", convolutions only, the linear layer only). A seed decides
the images, the initial weights and the order of the batches, and is the same in every arm, so that the arms
can be compared pairwise. Each run leaves one file; a run that has one is not trained again.

    python study.py                                  a look at it, in under two minutes
    python study.py --full                           the whole grid, 8 seeds: hours
    python study.py --full --settings sgd adamw      part of the grid
    python study.py --full --report-only             tables and plots of what is there

The results are summarised in results.csv (each run), summary.csv (paired differences with confidence
intervals and p-values), summary.md, and plots.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fashion_mnist
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from study_report import write_report
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_gc import GradientCentralization

BATCH_SIZE = 128


@dataclass(frozen=True)
class Setting:
    """What is trained; the arms differ in nothing but the callback."""

    images: int = 5_000
    epochs: int = 6
    optimizer: str = "sgd"  # with momentum 0.9, or "adamw"; both with a cosine schedule down to zero
    lr: float = 0.05
    weight_decay: float = 5e-4
    norm: str = "batch"  # "batch", "group" or "none"
    init_scale: float = 1.0  # what the default initial weights are multiplied by


SETTINGS: dict[str, Setting] = {
    "sgd": Setting(images=10_000),
    "adamw": Setting(images=10_000, optimizer="adamw", lr=2e-3, weight_decay=1e-2),
    "high-lr": Setting(lr=0.2),
    "low-lr": Setting(lr=0.01),
    "small-init": Setting(init_scale=0.3),
    "no-norm": Setting(norm="none"),
    "long": Setting(epochs=20),
    "sgd-groupnorm": Setting(images=10_000, norm="group"),
    "adamw-groupnorm": Setting(images=10_000, norm="group", optimizer="adamw", lr=2e-3, weight_decay=1e-2),
    "middle-lr": Setting(),  # what high-lr, low-lr, small-init, no-norm and long differ from
    "all-images": Setting(images=60_000, epochs=5),
}
ARMS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "gradient": {"target": "gradient"},
    "update": {"target": "update"},
    "convolutions": {"target": "gradient", "include": [nn.Conv2d]},
    "head": {"target": "gradient", "include": [nn.Linear]},
}
QUICK = {"settings": ["sgd", "high-lr"], "arms": ["none", "gradient"], "seeds": 3, "images": 2_000, "epochs": 2}


def small_cnn(setting: Setting) -> nn.Sequential:
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

    def __iter__(self) -> Any:
        count = len(self.labels)
        order = torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)
        for part in order.split(self.size):
            yield self.images[part], self.labels[part]


class Classifier(LightningModule):
    """The network with its optimizer; remembers the mean training loss of each epoch."""

    def __init__(self, setting: Setting) -> None:
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


def train(setting: Setting, arm: str, seed: int, data: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """One run: train, test, and return what to remember of it."""
    began, began_cpu = time.perf_counter(), time.process_time()
    generator = torch.Generator().manual_seed(seed)
    images, labels = data["train"]
    chosen = torch.randperm(len(labels), generator=generator)[: setting.images]
    torch.manual_seed(seed)
    module, removed = Classifier(setting), RemovedNorms()
    arguments = ARMS[arm]
    trainer = Trainer(
        max_epochs=setting.epochs,
        callbacks=[removed] if arguments is None else [GradientCentralization(**arguments), removed],
        accelerator="cpu",
        devices=1,
        logger=False,
        log_every_n_steps=20,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Batches(images[chosen], labels[chosen], BATCH_SIZE, generator))
    (tested,) = trainer.test(module, Batches(*data["t10k"], size=500), verbose=False)
    return {
        "train_losses": module.train_losses,
        **tested,
        "removed_norm": sum(removed.values) / len(removed.values) if removed.values else None,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - began_cpu,
    }


def run_grid(grid: list[tuple[str, Setting, str, int]], folder: Path, data_folder: Path) -> None:
    """Train what has no file in `folder` yet, and say how it goes."""
    missing = [job for job in grid if not _is_done(_file_of(folder, job), job)]
    print(f"{len(grid)} runs, {len(grid) - len(missing)} of them done already; results in {folder}", flush=True)
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    data = {split: fashion_mnist.load(data_folder, split) for split in ("train", "t10k")}
    began, passes = time.perf_counter(), sum(_cost(job) for job in missing)
    for count, job in enumerate(missing, 1):
        name, setting, arm, seed = job
        result = train(setting, arm, seed, data)
        record = {"name": name, "arm": arm, "seed": seed, "setting": asdict(setting), "torch": torch.__version__}
        _write(_file_of(folder, job), {**record, **result})
        spent = time.perf_counter() - began
        left = spent / sum(map(_cost, missing[:count])) * passes - spent
        print(
            f"[{count}/{len(missing)}] {name}, {arm}, seed {seed}: training loss {result['train_losses'][-1]:.4f}, "
            f"test accuracy {result['test_accuracy']:.4f}, {result['seconds']:.1f} s; {left / 60:.1f} min left",
            flush=True,
        )


def _cost(job: tuple[str, Setting, str, int]) -> int:
    """In image passes: testing 10,000 images costs a third of training on them."""
    return job[1].images * job[1].epochs + 3_333


def _file_of(folder: Path, job: tuple[str, Setting, str, int]) -> Path:
    name, _, arm, seed = job
    return folder / f"{name}--{arm}--seed{seed}.json"


def _is_done(file: Path, job: tuple[str, Setting, str, int]) -> bool:
    if not file.exists():
        return False
    if json.loads(file.read_text())["setting"] != asdict(job[1]):
        sys.exit(f"{file} is of another setting than {job[0]!r} is now: {job[1]}. Give another folder with --results.")
    return True


def _write(file: Path, record: dict[str, Any]) -> None:
    """Whole or not at all: a run that is interrupted leaves nothing."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(file)


def make_grid(names: list[str], arms: list[str], seeds: int, **changes: Any) -> list[tuple[str, Setting, str, int]]:
    """The runs, seed by seed within a setting, so that what is there at any time is balanced.

    All settings are trained without Gradient Centralization and with the first arm, before the other arms follow.
    """
    grid = []
    for arms_now in (arms[:2], arms[2:]):
        for name, seed, arm in itertools.product(names, range(seeds), arms_now):
            grid.append((name, replace(SETTINGS[name], **changes), arm, seed))
    return grid


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line's arguments, with what follows from --quick and --full filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help="a look at the study: two settings, two arms, three seeds, 2,000 images, two epochs (the default)",
    )
    size.add_argument("--full", action="store_true", help="the whole grid with 8 seeds, unless you choose less of it")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="NAME", help=", ".join(SETTINGS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds, from 0 on")
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN_FOLDER, help="the IDX files' folder")
    parser.add_argument("--results", type=Path, help="default: study-results/full or study-results/quick")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    args = parser.parse_args(argv)
    args.settings = args.settings or (list(SETTINGS) if args.full else QUICK["settings"])
    args.arms = args.arms or (list(ARMS) if args.full else QUICK["arms"])
    args.seeds = args.seeds or (8 if args.full else QUICK["seeds"])
    args.results = args.results or Path("study-results") / ("full" if args.full else "quick")
    return args


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, and report."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not args.report_only:
        changes = {} if args.full else {"images": QUICK["images"], "epochs": QUICK["epochs"]}
        try:
            run_grid(make_grid(args.settings, args.arms, args.seeds, **changes), args.results, args.data)
        except FileNotFoundError as error:
            sys.exit(str(error))
    write_report(args.results, settings=args.settings, arms=args.arms, seeds=args.seeds)


if __name__ == "__main__":
    main()
