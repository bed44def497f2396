"""The table that a reader looks for: your situation, what was seen there, how surely, of how many runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from paired_study.comparisons import Comparison
from paired_study.settings import ARMS_AFTERWARDS, SETTINGS, Setting
from paired_study.tables import p_equals, p_value

OUTCOMES = ("test_loss", "test_error")  # of images, and of the other tasks
ARM_COLUMNS = {  # what is centralized: the arms' names where they mean the same
    'everything, `target="gradient"`': ("gradient",),
    'everything, `target="update"`': ("update",),
    "all but the last layer": ("convolutions", "trunk"),
}
SITUATIONS: dict[str, str] = {
    "sgd": "SGD, BatchNorm, 10,000 images",
    "adamw": "AdamW, BatchNorm, 10,000 images",
    "high-lr": "SGD, four times the learning rate",
    "low-lr": "SGD, a fifth of the learning rate",
    "small-init": "SGD, small initial weights",
    "no-norm": "SGD, no normalisation layers",
    "long": "SGD, many epochs: it overfits",
    "sgd-groupnorm": "SGD, GroupNorm",
    "adamw-groupnorm": "AdamW, GroupNorm",
    "middle-lr": "SGD, 5,000 images",
    "all-images": "SGD, 60,000 images",
    "language-sgd": "SGD",
    "language-adamw": "AdamW",
    "language-adamw-high-lr": "AdamW, four times the learning rate",
    "language-lion": "Lion",
    "field-sgd": "MLP, SGD",
    "field-adamw": "MLP, AdamW",
    "field-adamw-restarts": "MLP, AdamW, warm restarts",
    "field-lion-constant": "MLP, Lion, constant learning rate",
    "burgers-adamw": "transformer, AdamW",
    "burgers-adamw-restarts": "transformer, AdamW, warm restarts",
    "burgers-lion-restarts": "transformer, Lion, warm restarts",
    "digits-head-sgd-constant": "CNN, new last layer after a ReLU, SGD",
    "digits-all-adamw": "CNN, new last layer, then everything, AdamW",
    "code-head-adamw-constant": "transformer, new last layer after a LayerNorm, AdamW",
    "code-all-adamw": "transformer, new last layer, then everything, AdamW",
}
TASK_TITLES = {
    "images": "**images**: a small CNN, Fashion-MNIST",
    "language": "**language**: a byte transformer",
    "regression": "**regression**: equations of flows",
    "fine-tuning": "**fine-tuning**: trained before",
}
Tasks = Mapping[str, Mapping[str, object]]


def at_a_glance(comparisons: Sequence[Comparison], tasks: Tasks) -> str:
    """What was seen of the callback as it comes: a row for each setting, under a row for each task."""
    outcomes = {c.setting: c for c in comparisons if c.metric in OUTCOMES and c.arm == "gradient"}
    lines = ["| your situation | what was seen | change | p | runs |", "| --- | --- | --: | --: | --: |"]
    for task, names in tasks.items():
        here = [outcomes[name] for name in names if name in outcomes]
        if here:
            lines.append(f"| {TASK_TITLES[task]} | | | | |")
        for c in here:
            change = f"{percent(c):+.1f} %" if c.seeds else ""
            numbers = (change, p_value(c.p_holm), str(2 * c.seeds))
            unbroken = [number.replace(" ", "\u00a0") for number in numbers]
            lines.append(f"| {' | '.join([SITUATIONS[c.setting], said(c), *unbroken])} |")
    return "\n".join([*lines, ""])


def situations(comparisons: Sequence[Comparison], tasks: Tasks) -> str:
    """The same of all arms that mean the same in all tasks: a column for each."""
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


def afterwards(comparisons: Sequence[Comparison]) -> str:
    """The same of the arm that was named afterwards, beside the default."""
    outcomes = {(c.setting, c.arm): c for c in comparisons if c.metric in OUTCOMES}
    lines = ["| setting | everything | all but the layer of fan-in 2 | runs |", "| --- | --- | --- | --: |"]
    for (setting, arm), c in outcomes.items():
        if arm in ARMS_AFTERWARDS and (setting, "gradient") in outcomes:
            lines.append(f"| `{setting}` | {seen(outcomes[setting, 'gradient'])} | {seen(c)} | {3 * c.seeds} |")
    return "\n".join([*lines, ""])


def seen(comparison: Comparison) -> str:
    """What was seen, by how much, and the corrected p-value: "**hurts**: +9.1 % (p = 0.012)"."""
    if comparison.verdict == "not tested":
        return f"not tested: {comparison.seeds} pairs have numbers"
    what = said(comparison).replace("nothing", "nothing significant")
    return f"{what}: {percent(comparison):+.1f} % ({p_equals(comparison.p_holm)})"


def said(comparison: Comparison) -> str:
    """The verdict, in bold where there is one."""
    verdict = comparison.verdict
    return f"**{verdict}**" if verdict in ("helps", "hurts") else verdict


def percent(comparison: Comparison) -> float:
    """By how much the error on what was held out is larger with than without, in percent."""
    return 100 * (ratio(comparison, comparison.difference) - 1)


def ratio(comparison: Comparison, difference: float) -> float:
    """What a difference of losses or errors, or of logarithms of errors, makes of the one without: 1 is no change."""
    setting = SETTINGS[comparison.setting]
    if comparison.metric == "test_error" and isinstance(setting, Setting) and setting.problem in ("field", "burgers"):
        return math.pow(10, difference)
    return 1 + difference / comparison.without
