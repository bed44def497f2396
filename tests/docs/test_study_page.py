"""What docs/study.md quotes is what the runs in docs/study/ say."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "study.md").read_text(encoding="utf-8")
TABLES = (DOCS / "study" / "summary.md").read_text(encoding="utf-8")


def rows(name: str) -> list[dict[str, str]]:
    with (DOCS / "study" / name).open() as stream:
        return list(csv.DictReader(stream))


def test_at_least_eight_seeds():
    seeds: dict[tuple[str, str], set[str]] = {}
    for row in rows("results.csv"):
        seeds.setdefault((row["name"], row["arm"]), set()).add(row["seed"])
    assert seeds
    assert all(len(found) >= 8 for found in seeds.values())


@pytest.mark.parametrize("metric", ["train_loss", "test_accuracy", "test_loss"])
def test_the_summary_follows_from_the_runs(metric):
    values = {(r["name"], r["arm"], r["seed"]): float(r[metric]) for r in rows("results.csv")}
    quoted = [row for row in rows("summary.csv") if row["metric"] == metric]
    assert quoted
    for row in quoted:
        seeds = sorted(s for n, a, s in values if (n, a) == (row["setting"], row["arm"]))
        with_, without = (np.array([values[row["setting"], arm, s] for s in seeds]) for arm in (row["arm"], "none"))
        test = stats.ttest_rel(with_, without)
        assert float(row["difference"]) == pytest.approx((with_ - without).mean())
        assert float(row["p"]) == pytest.approx(test.pvalue)
        assert float(row["low"]) == pytest.approx(test.confidence_interval(0.95).low)


def test_the_text_quotes_the_tables():
    quoted = re.findall(r"([\d.]+\d)%? instead of ([\d.]+\d)", PAGE)
    assert len(quoted) >= 4
    for with_, without in quoted:
        assert f"{without} → {with_}" in TABLES, f"{with_} instead of {without}"


def test_the_text_quotes_p_values_with_their_correction():
    quoted = re.findall(r"\(p = (0\.\d+);\s+(0\.\d+) after the correction", PAGE)
    assert len(quoted) >= 3
    for p, p_holm in quoted:
        assert f"| {p} | {p_holm} |" in TABLES, (p, p_holm)


def test_the_two_targets_do_the_same_under_sgd():
    from tests.examples.loading import load

    losses = {(r["setting"], r["arm"]): float(r["with_"]) for r in rows("summary.csv") if r["metric"] == "train_loss"}
    names = [name for name, setting in load("study").SETTINGS.items() if setting.optimizer == "sgd"]
    assert len(names) == 9
    assert all(abs(losses[name, "gradient"] - losses[name, "update"]) < 0.0025 for name in names)


def test_it_trains_faster_in_ten_of_eleven_settings():
    found = [r for r in rows("summary.csv") if r["arm"] == "gradient" and r["metric"] == "train_loss"]
    faster = {r["setting"] for r in found if float(r["difference"]) < 0 and float(r["p_holm"]) < 0.05}
    assert len(found) == 11
    assert {r["setting"] for r in found} - faster == {"low-lr"}


def test_the_settings_are_those_of_the_script():
    from tests.examples.loading import load

    settings = load("study").SETTINGS
    described = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| (\d+) \| (SGD|AdamW) \| ([\d.]+) \|", PAGE, re.MULTILINE)
    assert {name for name, *_ in described} == settings.keys()
    for name, images, epochs, optimizer, lr in described:
        setting = settings[name]
        assert (setting.images, setting.epochs) == (int(images.replace(",", "")), int(epochs))
        assert (setting.optimizer, setting.lr) == (optimizer.lower(), float(lr))
