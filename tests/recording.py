"""What happened in a run, written down by callbacks around the one under test, and the logged means by formula."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback

from tests import oracle
from tests.loops import Layouts

Gradients = Mapping[str, np.ndarray]


class Recorder(Callback):
    """Copies the gradients at `on_before_optimizer_step`; put one before and one after the callback."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Any, Gradients]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        held = {p for group in optimizer.param_groups for p in group["params"]}
        gradients = {
            name: oracle.to_numpy(p.grad)
            for name, p in pl_module.named_parameters()
            if p in held and p.grad is not None
        }
        batches_done = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.steps.append((batches_done, optimizer, gradients))


def expected(before: Gradients, after: Gradients, layouts: Layouts) -> dict[str, float]:
    """The logged values, from the formulas in the documentation: float64, one weight vector at a time."""
    values, vectors = {}, {}
    for name, (dims, groups) in layouts.items():
        if name in before:
            n = len(oracle.weight_vector_indices(before[name].shape, dims, groups)[0])
            pre = [abs(m) for m in oracle.means_of(before[name], dims, groups)]
            post = [abs(m) for m in oracle.means_of(after[name], dims, groups)]
            vectors[name] = (pre, post, sum(n * m**2 for m in pre), float(np.sum(np.abs(before[name]) ** 2)))
    for name, (pre, post, removed, norm) in vectors.items():
        values[f"mean_pre/{name}"] = math.fsum(pre) / len(pre)
        values[f"mean_post/{name}"] = math.fsum(post) / len(post)
        values[f"removed_norm/{name}"] = math.sqrt(removed / norm)
    pre = [m for v in vectors.values() for m in v[0]]
    post = [m for v in vectors.values() for m in v[1]]
    values["mean_pre"] = math.fsum(pre) / len(pre)
    values["mean_post"] = math.fsum(post) / len(post)
    values["removed_norm"] = math.sqrt(sum(v[2] for v in vectors.values()) / sum(v[3] for v in vectors.values()))
    return values


def csv_rows(directory: Path | str) -> list[dict[str, float]]:
    """The rows of a CSVLogger, empty cells left out."""
    with open(Path(directory) / "metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def steps_of(rows: list[dict[str, float]], name: str) -> list[int]:
    """On which steps `name` was logged."""
    return [int(row["step"]) for row in rows if name in row]
