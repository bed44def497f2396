"""The runs: which there are, and those that are missing trained, each into a file of its own, by any number of workers."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fashion_mnist
import torch

from paired_study import images, training
from paired_study.settings import FIRST_STEPS, SETTINGS, ImageSetting, arms_of


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    setting: Any
    arm: str
    seed: int

    def file(self, folder: Path) -> Path:
        """Where its result is."""
        return folder / f"{self.name}--{self.arm}--seed{self.seed}.json"

    def is_done(self, folder: Path) -> bool:
        """Whether it has a result; one of another setting by its name is an error."""
        file = self.file(folder)
        if not file.exists():
            return False
        if json.loads(file.read_text())["setting"] != asdict(self.setting):
            sys.exit(
                f"{file} is of another setting than {self.name!r} is now: {self.setting}. "
                "Give another folder with --results."
            )
        return True


def make_grid(names: Sequence[str], arms: Sequence[str] | None, seeds: int, changes: dict[str, Any]) -> list[Job]:
    """The runs, seed by seed within a setting, so that what is there at any time is balanced.

    All settings are trained without Gradient Centralization and with the first arm, before the other arms follow.

    Args:
        names: Of the settings.
        arms: None for all that a setting has, and the runs of its first steps.
        seeds: How many; they count from 0.
        changes: What is changed in all settings that have it.
    """
    grid = []
    for now in (slice(0, 2), slice(2, None)):
        for name, seed in itertools.product(names, range(seeds)):
            setting = SETTINGS[name]
            setting = replace(setting, **{k: v for k, v in changes.items() if getattr(setting, k, None)})
            here = [*arms_of(name), FIRST_STEPS]
            grid += [Job(name, setting, arm, seed) for arm in here[now] if arms is None or arm in arms]
    return grid


def make_tuning_grid(names: Sequence[str], seeds: Sequence[int] = (100, 101)) -> list[Job]:
    """Without Gradient Centralization, at a third of the learning rate, at it, and at three times it; other seeds."""
    return [
        Job(f"{name}@{factor:.2g}", replace(SETTINGS[name], lr=SETTINGS[name].lr * factor), "none", seed)
        for name, factor, seed in itertools.product(names, (1 / 3, 1.0, 3.0), seeds)
    ]


def run_all(grid: Iterable[Job], folder: Path, data_folder: Path, workers: int = 1) -> None:
    """Train what has no file in `folder` yet, and say how it goes."""
    jobs = list(grid)
    missing = [job for job in jobs if not job.is_done(folder)]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them done already; results in {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    if any(isinstance(job.setting, ImageSetting) for job in missing):
        _load(data_folder)  # to miss the data now rather than in every worker
    began = time.perf_counter()
    for count, (job, record) in enumerate(_results(missing, folder, data_folder, workers), 1):
        left = (time.perf_counter() - began) / count * (len(missing) - count)
        said = f"{record['seconds']:.1f} s; about {left / 60:.1f} min left"
        if job.arm != FIRST_STEPS:
            score = f"test accuracy {record['test_accuracy']:.4f}" if "test_loss" in record else _error(record)
            said = f"training loss {record['train_losses'][-1]:.4f}, {score}, {said}"
        print(f"[{count}/{len(missing)}] {job.name}, {job.arm}, seed {job.seed}: {said}", flush=True)


def _error(record: dict[str, Any]) -> str:
    return f"test error {record['test_error']:.4f}"


def _results(missing: list[Job], folder: Path, data: Path, workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    if workers == 1:  # in this process: what a debugger and a profiler can look into
        prepare()
        for job in missing:
            yield job, run(job, folder, data)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=prepare) as pool:
        futures = {pool.submit(run, job, folder, data): job for job in missing}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:  # stopped by Ctrl-C or an error: without this, the pool would train all that is left first
            pool.shutdown(cancel_futures=True)


def prepare() -> None:
    """Make a process train on one core, the same each time, and quietly."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_gc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def run(job: Job, folder: Path, data_folder: Path) -> dict[str, Any]:
    """Train one, and write its file: whole or not at all, so that a run that is interrupted leaves nothing."""
    began = time.perf_counter()
    is_image = isinstance(job.setting, ImageSetting)
    package, data = (images, [_load(data_folder)]) if is_image else (training, [])
    if job.arm == FIRST_STEPS:
        result = {"first_norms": package.first_norms(job.setting, job.seed, *data)}
        result["seconds"] = time.perf_counter() - began
    else:
        result = package.train(job.setting, job.arm, job.seed, *data)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    record = {"name": job.name, "arm": job.arm, "seed": job.seed, "setting": asdict(job.setting), **versions, **result}
    file = job.file(folder)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(file)
    return record


@functools.cache
def _load(folder: Path) -> images.Splits:
    return {split: fashion_mnist.load(folder, split) for split in ("train", "t10k")}
