"""All that is written of the runs: each task's tables and plots, the table of situations, and the rule."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from paired_study.comparisons import load_runs
from paired_study.effects import save_effects
from paired_study.image_report import write_images
from paired_study.rule_report import write_norms, write_rule
from paired_study.settings import ARMS, ARMS_AFTERWARDS, FIRST_STEPS, IMAGE_ARMS, TASKS
from paired_study.situations import afterwards, at_a_glance, situations
from paired_study.tables import read_comparisons
from paired_study.task_report import write_tasks


def write_report(folder: Path, settings: Sequence[str], arms: Iterable[str] | None, seeds: int) -> None:
    """Write tables and plots into `folder`, and print the tables.

    Arms that lack a seed are left out: what is quoted is of all `seeds` seeds.
    """
    chosen = list(arms) if arms is not None else list(dict.fromkeys([*IMAGE_ARMS, *ARMS, *ARMS_AFTERWARDS]))
    runs, incomplete = load_runs(folder, settings, [arm for arm in chosen if arm != FIRST_STEPS], seeds)
    if incomplete:
        print(f"not complete, and left out: {'; '.join(incomplete)}\n")
    if not runs:
        print(f"no arm in {folder} has all of {seeds} seeds")
    of_images = {key: run for key, run in runs.items() if key[0] in TASKS["images"]}
    of_tasks = {key: run for key, run in runs.items() if key[0] not in TASKS["images"]}
    if of_images:
        print(write_images(folder, of_images, settings))
    if of_tasks:
        print(write_tasks(folder, of_tasks, settings))
    first_steps, _ = load_runs(folder, settings, [FIRST_STEPS], seeds)
    write_norms(folder, first_steps)
    write_conclusions(folder)
    print(f"tables and plots are in {folder}")


def write_conclusions(folder: Path) -> None:
    """Write what follows from the summaries of all tasks that `folder` has, and print it."""
    files = [file for file in (folder / "summary.csv", folder / "tasks_summary.csv") if file.exists()]
    comparisons = [comparison for file in files for comparison in read_comparisons(file)]
    if comparisons:
        (folder / "situations.md").write_text(at_a_glance(comparisons, TASKS))
        table = situations(comparisons, TASKS)
        (folder / "situations_arms.md").write_text(table)
        print(table)
        save_effects(comparisons, TASKS, folder / "effects.svg")
        if any(c.arm in ARMS_AFTERWARDS for c in comparisons):
            (folder / "afterwards.md").write_text(afterwards(comparisons))
    write_rule(folder, comparisons)


def tuning(folder: Path, settings: Sequence[str]) -> str:
    """What the runs of `--tune` ended at, by setting and factor of the learning rate: means over the seeds."""
    ends: dict[str, list[float]] = {}
    for file in sorted(folder.glob("*@*--none--seed*.json")):
        run = json.loads(file.read_text())
        ends.setdefault(run["name"], []).append(run.get("test_error", run.get("test_loss")))
    lines = ["| setting | lr / 3 | lr | 3 lr |", "| --- | --: | --: | --: |"]
    for name in settings:
        cells = [_end(ends.get(f"{name}@{factor}", [])) for factor in ("0.33", "1", "3")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _end(errors: Sequence[float]) -> str:
    if not errors:
        return ""
    return f"{np.mean(errors):.4f}" if np.isfinite(errors).all() else "diverged"
