"""What is written of the rule: the norms it looks at, which rule was chosen, and how often it is right."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paired_study.comparisons import Comparison, Runs
from paired_study.rule import FEATURES, Case, Norms, Rule, choose, judge, p_against_constant
from paired_study.settings import TASKS
from paired_study.situations import OUTCOMES
from paired_study.tables import p_equals, read_csv, write_csv


def write_norms(folder: Path, runs: Runs) -> None:
    """Write first_norms.csv, a row for each parameter of each run of first steps, beside those it has of others."""
    file = folder / "first_norms.csv"
    kept = [row for row in read_csv(file) if (row["name"]) not in {n for n, _, _ in runs}] if file.exists() else []
    rows = [
        {"name": name, "seed": seed, "parameter": parameter, "removed_norm": norm}
        for (name, _, seed), run in runs.items()
        for parameter, norm in run["first_norms"].items()
    ]
    if rows:
        write_csv(file, [*kept, *rows])


def read_norms(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """The norms by setting, seed and parameter."""
    norms: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    file = folder / "first_norms.csv"
    for row in read_csv(file) if file.exists() else []:
        norms[row["name"]][row["seed"]][row["parameter"]] = float(row["removed_norm"])
    return norms


def mean_norms(by_seed: dict[str, dict[str, float]]) -> Norms:
    """The means over the seeds."""
    parameters = next(iter(by_seed.values()))
    return {name: float(np.mean([norms[name] for norms in by_seed.values()])) for name in parameters}


def setting_cases(folder: Path, comparisons: Sequence[Comparison]) -> dict[str, Case]:
    """One case for each setting that has norms and a difference in the arm with target "gradient"."""
    norms = read_norms(folder)
    return {
        c.setting: Case(c.setting, mean_norms(norms[c.setting]), c.difference, c.p_holm < 0.05)
        for c in comparisons
        if c.metric in OUTCOMES and c.arm == "gradient" and c.setting in norms and not math.isnan(c.difference)
    }


def pair_cases(folder: Path, file: Path) -> list[Case]:
    """One case for each seed of each setting, of a file of results."""
    norms = read_norms(folder)
    errors = {
        (row["name"], row["arm"], row["seed"]): float(row.get("test_error") or row["test_loss"])
        for row in read_csv(file)
    }
    differences = {
        (name, seed): with_ - errors[name, "none", seed]
        for (name, arm, seed), with_ in errors.items()
        if arm == "gradient" and (name, "none", seed) in errors and name in norms
    }
    return [
        Case(name, norms[name][seed], difference)
        for (name, seed), difference in differences.items()
        if not math.isnan(difference)
    ]


def write_rule(folder: Path, comparisons: Sequence[Comparison]) -> None:
    """Choose on the images, judge on the rest, and write rule.csv and rule.md; nothing while one of them is missing."""
    cases = setting_cases(folder, comparisons)
    images = [case for name, case in cases.items() if name in TASKS["images"]]
    others = [case for name, case in cases.items() if name not in TASKS["images"]]
    if len(images) < 2 or not others:
        return
    rule = choose(images)
    write_csv(folder / "rule.csv", [_row(case, rule) for case in [*images, *others]])
    pairs = pair_cases(folder, folder / "tasks_results.csv")
    table = as_markdown(rule, images, others, pairs)
    (folder / "rule.md").write_text(table)
    print(table)


def _row(case: Case, rule: Rule) -> dict[str, object]:
    return {
        "setting": case.setting,
        **{feature: round(read(case.norms), 4) for feature, read in FEATURES.items()},
        "difference": case.difference,
        "significant": case.significant,
        "better": "with" if case.helped else "without",
        "rule": "with" if rule.says_with(case.norms) else "without",
    }


def as_markdown(rule: Rule, images: Sequence[Case], others: Sequence[Case], pairs: Sequence[Case]) -> str:
    """How often each way to decide is right, and the exact tests of the rule."""
    groups = [images, others, [case for case in others if case.significant], pairs]
    counts = [judge(group, rule) for group in groups]
    lines = [
        f"The rule that is right most often on the image settings: *{rule}*.",
        "",
        "| | image settings, on which it was chosen | new settings | of these, with a significant difference | pairs of "
        "runs of new settings |",
        "| --- | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {row[0].name} | {' | '.join(f'{j.right} of {j.cases}' for j in row)} |" for row in zip(*counts, strict=True)
    ]
    tests = {
        "a coin": counts[1][0].p_coin,
        "always with": p_against_constant(others, rule, always=True),
        "always without": p_against_constant(others, rule, always=False),
    }
    said = "; ".join(f"against {name} {p_equals(p)}" for name, p in tests.items())
    return "\n".join([*lines, "", f"Exact tests of the rule on the new settings: {said}.", ""])
