"""One run of a task that is not images: train, test on what is held out, and collect what the callback logged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pytorch_optimizer import Lion
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts

from lightning_gc import GradientCentralization
from paired_study import norms
from paired_study.data import Data
from paired_study.problems import PROBLEMS, Loss, Problem
from paired_study.settings import ARMS, ARMS_AFTERWARDS, Setting

OPTIMIZERS: dict[str, tuple[Any, dict[str, float]]] = {
    "sgd": (SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
    "adamw": (AdamW, {"weight_decay": 1e-2}),
    "lion": (Lion, {"weight_decay": 1e-1}),  # its learning rates are a tenth of AdamW's
}
SCHOOLING_STEPS = 300  # of a trunk that is to be fine-tuned
PARTS = 10  # of a run, for its curve of training losses


class Draws:
    """A number of batches, drawn with replacement."""

    def __init__(self, data: Data, size: int, count: int, generator: torch.Generator) -> None:
        self.data, self.size, self.count, self.generator = data, size, count, generator

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.count):
            chosen = torch.randint(len(self.data.inputs), (self.size,), generator=self.generator)
            yield self.data.inputs[chosen], self.data.targets[chosen]


class Learner(LightningModule):
    """A trunk and a head with their optimizer; remembers the training loss of each step."""

    def __init__(self, trunk: nn.Module, head: nn.Module, loss: Loss, setting: Setting) -> None:
        super().__init__()
        self.trunk, self.head, self.loss, self.setting = trunk, head, loss, setting
        self.losses: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.trunk(inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = self.loss(self(inputs), targets)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        made, arguments = OPTIMIZERS[self.setting.optimizer]
        optimizer = made([p for p in self.parameters() if p.requires_grad], lr=self.setting.lr, **arguments)
        steps = int(self.trainer.estimated_stepping_batches)
        if self.setting.schedule == "constant":
            return optimizer
        if self.setting.schedule == "cosine":
            scheduler: Any = CosineAnnealingLR(optimizer, steps)
        else:
            scheduler = CosineAnnealingWarmRestarts(optimizer, math.ceil(steps / 7), T_mult=2)  # 1 + 2 + 4 = 7
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(module: Learner, batches: Draws, callbacks: list[Callback]) -> None:
    """Lightning's Trainer, as quiet and as small as it gets."""
    trainer = Trainer(
        max_epochs=1,
        callbacks=callbacks,
        accelerator="cpu",
        devices=1,
        logger=False,
        log_every_n_steps=norms.EVERY,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)


def begin(setting: Setting, seed: int) -> tuple[Problem, torch.Generator]:
    """The problem of a seed, its trunk trained as far as it is to be before; and what draws the batches."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    problem = PROBLEMS[setting.problem](generator)
    if problem.trained_before is not None:
        data, head = problem.trained_before
        schooling = replace(setting, optimizer="adamw", lr=3e-3, schedule="cosine")
        batches = Draws(data, problem.batch_size, SCHOOLING_STEPS, generator)
        fit(Learner(problem.trunk, head, problem.loss, schooling), batches, [])
    return problem, generator


def train(setting: Setting, arm: str, seed: int) -> dict[str, Any]:
    """One run: train, test, and return what to remember of it. The arms of a seed differ in the callback alone."""
    began, began_cpu = time.perf_counter(), time.process_time()
    problem, generator = begin(setting, seed)
    arguments, losses = {**ARMS, **ARMS_AFTERWARDS}[arm], []
    for head_alone, steps in phases(setting):
        problem.trunk.requires_grad_(not head_alone)
        module = Learner(problem.trunk, problem.head, problem.loss, setting)
        callbacks: list[Callback] = [] if arguments is None else [GradientCentralization(**arguments, log_means="off")]
        fit(module, Draws(problem.data, problem.batch_size, steps, generator), callbacks)
        losses += module.losses
    return {
        "train_losses": [float(part.mean()) for part in torch.stack(losses).tensor_split(PARTS) if len(part)],
        **test(problem),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - began_cpu,
    }


def first_norms(setting: Setting, seed: int) -> dict[str, float]:
    """What the callback logs in the first steps of the run with target "gradient"."""
    problem, generator = begin(setting, seed)
    head_alone, steps = phases(setting)[0]
    problem.trunk.requires_grad_(not head_alone)
    found, callbacks = norms.observers()
    module = Learner(problem.trunk, problem.head, problem.loss, setting)
    fit(module, Draws(problem.data, problem.batch_size, steps, generator), callbacks)
    return found.means()


def phases(setting: Setting) -> list[tuple[bool, int]]:
    """Whether the head is trained alone, and for how many steps; one phase after the other."""
    return [(alone, steps) for alone, steps in ((True, setting.head_steps), (False, setting.steps)) if steps]


@torch.no_grad()
def test(problem: Problem) -> dict[str, float]:
    """The error on what is held out: the cross-entropy in nats, or for a regression log10 of the relative error.

    The relative error is the root of the mean square of the error by that of the targets.
    """
    net = nn.Sequential(problem.trunk, problem.head).eval()
    data = problem.data
    outputs = torch.cat([net(part) for part in data.test_inputs.split(500)])
    if data.test_targets.is_floating_point():
        error = (outputs - data.test_targets).square().mean() / data.test_targets.square().mean()
        return {"test_error": float(error.sqrt().log10())}
    right = (outputs.argmax(-1) == data.test_targets).float().mean()
    return {"test_error": float(problem.loss(outputs, data.test_targets)), "test_accuracy": float(right)}
