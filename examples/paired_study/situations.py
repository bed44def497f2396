"""The table that a reader looks for: your situation, what was seen there, how surely, of how many runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paired_study.comparisons import Comparison
from paired_study.settings import SETTINGS, Setting
from paired_study.tables import p_equals

OUTCOMES = ("test_loss", "test_error")  # of images, and of the other tasks
ARM_COLUMNS = {  # what is centralized: the arms' names where they mean the same
    'everything, `target="gradient"`': ("gradient",),
    'everything, `target="update"`': ("update",),
    "all but the last layer": ("convolutions", "trunk"),
}
SITUATIONS: dict[str, str] = {
    "sgd": "SGD, BatchNorm, 10,000 images",
    "adamw": "AdamW, BatchNorm, 10,000 images",
    "high-lr": "SGD at four times the learning rate",
    "low-lr": "SGD at a fifth of the learning rate",
    "small-init": "SGD, small initial weights",
    "no-norm": "SGD, no normalisation layers",
    "long": "SGD, many epochs: it overfits",
    "sgd-groupnorm": "SGD, GroupNorm",
    "adamw-groupnorm": "AdamW, GroupNorm",
    "middle-lr": "SGD, 5,000 images",
    "all-images": "SGD, 60,000 images",
    "language-sgd": "SGD",
    "language-adamw": "AdamW",
    "language-adamw-high-lr": "AdamW at four times the learning rate",
    "language-lion": "Lion",
    "field-sgd": "MLP that fits a field, SGD",
    "field-adamw": "the same, AdamW",
    "field-adamw-restarts": "the same, AdamW, warm restarts",
    "field-lion-constant": "the same, Lion, constant learning rate",
    "burgers-adamw": "transformer for Burgers' equation, AdamW",
    "burgers-adamw-restarts": "the same, AdamW, warm restarts",
    "burgers-lion-restarts": "the same, Lion, warm restarts",
    "digits-head-sgd-constant": "a CNN's new last layer alone (after a ReLU), SGD, constant learning rate",
    "digits-all-adamw": "the same layer, then everything, AdamW",
    "code-head-adamw-constant": "a transformer's new last layer alone (after a LayerNorm), AdamW, constant learning rate",
    "code-all-adamw": "the same layer, then everything, AdamW",
}
TASK_TITLES = {
    "images": "**images**: a small CNN, Fashion-MNIST",
    "language": "**language**: a byte transformer",
    "regression": "**regression**: what an equation gives",
    "fine-tuning": "**fine-tuning**: a trunk that was trained before",
}


def situations(comparisons: Sequence[Comparison], tasks: dict[str, dict[str, object]]) -> str:
    """A row for each setting, under a row for each task."""
    outcomes = {(c.setting, c.arm): c for c in comparisons if c.metric in OUTCOMES}
    lines = [
        f"| your situation | {' | '.join(ARM_COLUMNS)} | runs |",
        f"| --- | {'--- | ' * len(ARM_COLUMNS)}--: |",
    ]
    for task, names in tasks.items():
        rows = []
        for name in names:
            here = [
                next((outcomes[name, arm] for arm in arms if (name, arm) in outcomes), None)
                for arms in ARM_COLUMNS.values()
            ]
            found = [c for c in here if c is not None]
            if found:
                runs = (len(found) + 1) * max(c.seeds for c in found)
                cells = [seen(c) if c else "" for c in here]
                rows.append(f"| {SITUATIONS[name]} (`{name}`) | {' | '.join(cells)} | {runs} |")
        if rows:
            lines += [f"| {TASK_TITLES[task]} |{' |' * (len(ARM_COLUMNS) + 1)}", *rows]
    return "\n".join([*lines, ""])


def seen(comparison: Comparison) -> str:
    """What was seen, by how much, and the corrected p-value: "**hurts**: +9.1 % (p = 0.012)"."""
    verdict = comparison.verdict
    if verdict == "not tested":
        return f"not tested: {comparison.seeds} pairs have numbers"
    said = verdict if verdict == "nothing" else f"**{verdict}**"
    return f"{said}: {percent(comparison):+.1f} % ({p_equals(comparison.p_holm)})"


def percent(comparison: Comparison) -> float:
    """By how much the error on what was held out is larger with than without, in percent."""
    setting = SETTINGS[comparison.setting]
    if isinstance(setting, Setting) and setting.problem in ("field", "burgers"):  # the logarithm of the error
        return 100 * math.expm1(comparison.difference * math.log(10))
    return 100 * comparison.difference / comparison.without
