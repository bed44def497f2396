"""What the study's pages quote is what the runs in docs/study/ say; what README and others quote of it, too."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.examples.paired_study.parts import part

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUNS = DOCS / "study"
SHORT, APPENDIX = ((DOCS / name).read_text(encoding="utf-8") for name in ("study.md", "study_appendix.md"))
PAGES = SHORT + APPENDIX
QUOTING = {
    str(page.relative_to(ROOT)): " ".join(page.read_text(encoding="utf-8").split())
    for page in [ROOT / "README.md", *(DOCS / name for name in ("index.md", "faq.md", "study.md"))]
}
TABLES = "".join((RUNS / name).read_text(encoding="utf-8") for name in ("summary.md", "tasks_summary.md"))
IMAGES = {"results": "results.csv", "summary": "summary.csv", "metrics": ["train_loss", "test_accuracy", "test_loss"]}
OTHERS = {"results": "tasks_results.csv", "summary": "tasks_summary.csv", "metrics": ["train_loss", "test_error"]}

comparisons, report, rule_report = part("comparisons"), part("report"), part("rule_report")
settings, situations, tables = part("settings"), part("situations"), part("tables")


def rows(name: str) -> list[dict[str, str]]:
    with (RUNS / name).open() as stream:
        return list(csv.DictReader(stream))


def changes(arm: str = "gradient") -> dict[str, tuple[float, str]]:
    """By setting: the change of the error on what was held out, in percent, and the verdict."""
    found = [c for these in (IMAGES, OTHERS) for c in tables.read_comparisons(RUNS / these["summary"])]
    return {
        c.setting: (situations.percent(c), c.verdict) for c in found if c.arm == arm and c.metric in situations.OUTCOMES
    }


@pytest.mark.parametrize("these", [IMAGES, OTHERS], ids=["images", "others"])
class TestSummaries:
    def test_eight_seeds_of_every_setting_and_arm(self, these):
        seeds: dict[tuple[str, str], set[str]] = {}
        for row in rows(these["results"]):
            seeds.setdefault((row["name"], row["arm"]), set()).add(row["seed"])
        names = settings.IMAGES if these is IMAGES else settings.SETTINGS.keys() - settings.IMAGES.keys()
        assert seeds.keys() == {(name, arm) for name in names for arm in settings.arms_of(name)}
        assert all(len(found) == 8 for found in seeds.values())

    def test_follow_from_the_runs(self, these):
        for metric in these["metrics"]:
            values = {(r["name"], r["arm"], r["seed"]): float(r[metric]) for r in rows(these["results"])}
            quoted = [row for row in rows(these["summary"]) if row["metric"] == metric]
            assert quoted
            for row in quoted:
                seeds = sorted(s for n, a, s in values if (n, a) == (row["setting"], row["arm"]))
                pairs = [[values[row["setting"], arm, s] for s in seeds] for arm in (row["arm"], "none")]
                test = stats.ttest_rel(*pairs)
                assert float(row["difference"]) == pytest.approx(np.subtract(*pairs).mean())
                assert float(row["p"]) == pytest.approx(test.pvalue)
                assert float(row["low"]) == pytest.approx(test.confidence_interval(0.95).low)

    def test_are_corrected_for_as_many_comparisons_as_the_page_says(self, these):
        of_metric = [row for row in rows(these["summary"]) if row["metric"] == these["metrics"][-1]]
        named_before = [row for row in of_metric if row["arm"] not in settings.ARMS_AFTERWARDS]
        assert f"all {len(named_before)} " in APPENDIX
        for family in (named_before, [row for row in of_metric if row not in named_before]):
            corrected = comparisons.holm([float(row["p"]) for row in family])
            assert [float(row["p_holm"]) for row in family] == pytest.approx(corrected)


def test_what_is_written_of_the_runs_follows_from_them(tmp_path, capsys):
    for name in ("summary.csv", "tasks_summary.csv", "tasks_results.csv", "first_norms.csv"):
        (tmp_path / name).write_bytes((RUNS / name).read_bytes())
    report.write_conclusions(tmp_path)
    for name in ("situations.md", "situations_arms.md", "afterwards.md", "rule.csv", "rule.md"):
        assert (tmp_path / name).read_text() == (RUNS / name).read_text(), name
    assert (RUNS / "effects.svg").stat().st_size == pytest.approx((tmp_path / "effects.svg").stat().st_size, rel=0.1)


class TestText:
    def test_quotes_the_tables(self):
        quoted = re.findall(r"([\d.]+\d)%? instead of ([\d.]+\d)", PAGES)
        assert len(quoted) >= 15
        for with_, without in quoted:
            assert f"{without} → {with_}" in TABLES, f"{with_} instead of {without}"

    def test_quotes_p_values_with_their_correction(self):
        quoted = re.findall(r"\(p = (0\.\d+);\s+(0\.\d+) after the correction", PAGES)
        assert len(quoted) >= 2
        for p, p_holm in quoted:
            assert f"| {p} | {p_holm} |" in TABLES, (p, p_holm)

    def test_counts_the_pairs(self):
        pairs = sum(8 for name in settings.SETTINGS)
        for name in ("README.md", "docs/index.md", "docs/study.md"):
            assert f"{pairs} pairs of runs" in QUOTING[name], name

    @pytest.mark.parametrize("page", QUOTING)
    def test_regression_with_an_mlp_gets_worse_by_what_is_quoted(self, page):
        found = {name: change for name, change in changes().items() if name.startswith("field")}
        assert all(verdict == "hurts" for _, verdict in found.values())
        percents = sorted(percent for percent, _ in found.values())
        quoted = re.search(r"(?:by )?([\d.]+) (?:% \(SGD\) )?to ([\d.]+) %(?: \(AdamW\)| higher|\.)", QUOTING[page])
        assert quoted, page
        for number, exact in zip(quoted.groups(), (percents[0], percents[-1]), strict=True):
            digits = len(number.partition(".")[2])
            assert abs(float(number) - exact) <= 0.5 * 10**-digits + 1e-9

    def test_transformers_notice_little_but_at_a_high_learning_rate(self):
        found = changes()
        high, verdict = found.pop("language-adamw-high-lr")
        assert (f"{high:.1f}", verdict) == ("2.3", "hurts")
        assert changes("update")["language-adamw-high-lr"][1] == "nothing"
        small = [found[name] for name in found if name.startswith(("language", "burgers"))]
        assert {verdict for _, verdict in small} == {"nothing"}
        assert (f"{min(p for p, _ in small):+.1f}", f"{max(p for p, _ in small):+.1f}") == ("-3.3", "+0.2")
        assert "from -3.3 % to +0.2 %" in " ".join(SHORT.split())
        assert "2.3 % worse with AdamW at four times the learning rate" in QUOTING["README.md"]

    def test_fine_tuning_helps_or_does_nothing(self):
        found = {name: change for name, change in changes().items() if name.startswith(("digits", "code"))}
        helped = {name: f"{percent:.1f}" for name, (percent, verdict) in found.items() if verdict == "helps"}
        assert helped == {"digits-all-adamw": "-13.8"}
        assert "ends 13.8 % lower" in SHORT
        assert {verdict for name, (_, verdict) in found.items() if name not in helped} == {"nothing"}
        assert abs(found["code-head-adamw-constant"][0]) < 0.01

    @pytest.mark.parametrize("page", ["README.md", "docs/faq.md"])
    def test_the_long_run_overfits(self, page):
        percent, verdict = changes()["long"]
        assert (round(percent), verdict) == (10, "hurts")
        assert re.search(r"test loss (was )?10 % higher", QUOTING[page])

    def test_images_train_faster_in_ten_of_eleven_settings(self):
        found = [r for r in rows("summary.csv") if r["arm"] == "gradient" and r["metric"] == "train_loss"]
        faster = {r["setting"] for r in found if float(r["difference"]) < 0 and float(r["p_holm"]) < 0.05}
        assert len(found) == 11
        assert {r["setting"] for r in found} - faster == {"low-lr"}

    def test_the_two_targets_do_the_same_on_images_under_sgd(self):
        found = [r for r in rows("summary.csv") if r["metric"] == "train_loss"]
        losses = {(r["setting"], r["arm"]): float(r["with_"]) for r in found}
        names = [name for name, setting in settings.IMAGES.items() if setting.optimizer == "sgd"]
        assert len(names) == 9
        assert all(abs(losses[name, "gradient"] - losses[name, "update"]) < 0.0025 for name in names)


class TestHarmToRegression:
    def test_the_last_layer_has_no_part_in_it(self):
        for name, (percent, _) in changes("trunk").items():
            if name.startswith("field"):
                assert percent > 0.95 * changes()[name][0]

    def test_a_part_of_it_comes_from_the_layer_of_fan_in_2(self):
        wide = changes("wide")
        for name, (percent, verdict) in wide.items():
            assert verdict == ("nothing" if name == "field-sgd" else "hurts")
            share = percent / changes()[name][0]
            assert share < 0.5 if name == "field-sgd" else 0.5 < share < 0.8


class TestRule:
    def test_is_no_better_than_a_coin(self):
        told = (RUNS / "rule.md").read_text()
        assert "| the rule | 11 of 11 | 10 of 15 |" in told
        p = stats.binomtest(10, 15).pvalue
        assert f"against a coin p = {p:.3f}" in told
        assert p > 0.05
        assert f"(10 of 15, p = {p:.3f})" in QUOTING["README.md"]

    def test_the_new_settings_have_no_part_in_its_choice(self):
        found = rows("rule.csv")
        cases = rule_report.setting_cases(RUNS, tables.read_comparisons(RUNS / "summary.csv"))
        rule = part("rule").choose(list(cases.values()))
        assert cases.keys() == settings.IMAGES.keys()
        assert f"*{rule}*" in (RUNS / "rule.md").read_text()
        right = [row["better"] == row["rule"] for row in found if row["setting"] not in settings.IMAGES]
        assert (sum(right), len(right)) == (10, 15)


class TestSettings:
    def test_of_images_are_those_of_the_script(self):
        row = r"^\| `([\w-]+)` \| ([\d,]+) \| (\d+) \| (SGD|AdamW) \| ([\d.]+) \| [^|\n]*\|"
        described = re.findall(row, APPENDIX, re.MULTILINE)
        assert {name for name, *_ in described} == settings.IMAGES.keys()
        for name, images, epochs, optimizer, lr in described:
            setting = settings.IMAGES[name]
            assert (setting.images, setting.epochs) == (int(images.replace(",", "")), int(epochs))
            assert (setting.optimizer, setting.lr) == (optimizer.lower(), float(lr))

    def test_of_other_tasks_are_those_of_the_script(self):
        row = r"^\| `([\w-]+)` \| ([\d,]+)(?: \+ (\d+))? \| (SGD|AdamW|Lion) \| ([\d.]+) \| (\w+) \|$"
        described = {name: found for name, *found in re.findall(row, APPENDIX, re.MULTILINE)}
        assert described.keys() == settings.SETTINGS.keys() - settings.IMAGES.keys()
        for name, (first, second, optimizer, lr, schedule) in described.items():
            setting = settings.SETTINGS[name]
            steps = [int(x.replace(",", "")) for x in (first, second) if x]
            assert steps == [x for x in (setting.head_steps, setting.steps) if x]
            assert (setting.optimizer, setting.lr, setting.schedule) == (optimizer.lower(), float(lr), schedule)

    def test_the_learning_rates_that_are_not_the_best_are_named(self):
        rates = re.findall(
            r"^\| `([\w-]+)` \| ([-.\d]+) \| ([-.\d]+) \| (\S+) \|$", (RUNS / "tuning.md").read_text(), re.M
        )
        assert {name for name, *_ in rates} == settings.SETTINGS.keys() - settings.IMAGES.keys()
        better_above = {name for name, _, here, above in rates if above != "diverged" and float(above) < float(here)}
        assert better_above == {"language-sgd", "field-adamw", "field-adamw-restarts", "digits-all-adamw"}
        assert {name for name, below, here, _ in rates if float(below) < float(here)} == {"language-adamw-high-lr"}

    def test_the_time_is_what_the_runs_took(self):
        for minutes, these in ((95, IMAGES), (33, OTHERS)):
            assert sum(float(row["cpu_seconds"]) for row in rows(these["results"])) / 60 == pytest.approx(
                minutes, abs=0.5
            )
