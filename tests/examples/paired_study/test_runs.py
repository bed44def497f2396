"""The study from the command line to its tables, on little data and few steps."""

from __future__ import annotations

import csv
import math

import pytest

from tests.examples.paired_study.parts import part, study

comparisons, images, training = part("comparisons"), part("images"), part("training")
pytestmark = pytest.mark.filterwarnings("ignore")


class TestImages:
    @pytest.fixture(scope="class")
    def results(self, idx_folder, tmp_path_factory):
        folder = tmp_path_factory.mktemp("results")
        study.main(["--data", str(idx_folder), "--results", str(folder), "--seeds", "2", "--settings", "sgd"])
        return folder

    def test_leaves_a_file_for_each_run(self, results):
        assert len(list(results.glob("*.json"))) == 4
        assert not list(results.glob("*.partial"))

    def test_the_arms_differ(self, results):
        runs, incomplete = comparisons.load_runs(results, ["sgd"], ["none", "gradient"], 2)
        assert not incomplete
        assert runs["sgd", "none", 0]["train_losses"] != runs["sgd", "gradient", 0]["train_losses"]

    def test_writes_tables_and_plots(self, results):
        names = {"results.csv", "summary.csv", "summary.md", "situations.md"}
        names |= {"training_loss.png", "test_accuracy.png", "epochs_to_baseline.png"}
        assert names <= {f.name for f in results.iterdir()}
        rows = list(csv.DictReader((results / "results.csv").open()))
        assert len(rows) == 4
        assert {"train_loss", "test_accuracy", "lr", "seed", "arm"} <= rows[0].keys()

    def test_what_is_on_disk_is_not_trained_again(self, results, monkeypatch, capsys):
        monkeypatch.setattr(images, "train", lambda *args: pytest.fail("trained again"))
        # Not even the data is needed.
        study.main(["--data", "/nowhere", "--results", str(results), "--seeds", "2", "--settings", "sgd"])
        assert "4 of them done already" in capsys.readouterr().out

    def test_an_arm_that_lacks_a_seed_is_left_out(self, results, capsys):
        study.main(["--results", str(results), "--seeds", "3", "--settings", "sgd", "--report-only"])
        out = capsys.readouterr().out
        assert "sgd, gradient (2 of 3 seeds)" in out
        assert "| sgd" not in out

    def test_an_interrupted_run_is_trained_again(self, results, idx_folder, capsys):
        (results / "sgd--none--seed1.json").rename(results / "sgd--none--seed1.partial")
        study.main(["--data", str(idx_folder), "--results", str(results), "--seeds", "2", "--settings", "sgd"])
        out = capsys.readouterr().out
        assert "[1/1] sgd, none, seed 1" in out
        assert "min left" in out

    def test_results_of_other_settings_are_not_mixed_in(self, results, idx_folder):
        arguments = [
            "--full",
            "--data",
            str(idx_folder),
            "--results",
            str(results),
            "--seeds",
            "1",
            "--settings",
            "sgd",
        ]
        with pytest.raises(SystemExit, match="another setting"):
            study.main(arguments)


@pytest.mark.slow
class TestOtherTasks:
    @pytest.fixture(scope="class")
    def results(self, tmp_path_factory):
        """Two seeds of a setting, by two workers, in the arms and the first steps that the rule needs."""
        folder = tmp_path_factory.mktemp("results")
        arguments = ["--settings", "field-adamw", "--arms", "none", "gradient", "first-steps"]
        study.main([*arguments, "--seeds", "2", "--workers", "2", "--results", str(folder)])
        return folder

    def test_leaves_a_file_for_each_run(self, results):
        assert len(list(results.glob("*.json"))) == 6

    def test_workers_train_what_one_process_trains(self, results, tmp_path):
        study.main(["--settings", "field-adamw", "--arms", "gradient", "--seeds", "1", "--results", str(tmp_path)])
        (here,) = comparisons.load_runs(tmp_path, ["field-adamw"], ["gradient"], 1)[0].values()
        there = comparisons.load_runs(results, ["field-adamw"], ["gradient"], 2)[0]["field-adamw", "gradient", 0]
        assert (here["train_losses"], here["test_error"]) == (there["train_losses"], there["test_error"])

    def test_writes_tables_and_plots(self, results):
        names = {"tasks_results.csv", "tasks_summary.csv", "tasks_summary.md", "first_norms.csv", "situations.md"}
        names |= {"tasks_training_loss.png", "tasks_test_error.png"}
        assert names <= {f.name for f in results.iterdir()}
        assert len(list(csv.DictReader((results / "tasks_results.csv").open()))) == 4

    def test_a_rule_needs_images(self, results):
        assert not (results / "rule.md").exists()


def test_tuning_trains_other_seeds_without_it(tmp_path, capsys, monkeypatch):
    trained = []

    def train(setting, arm, seed):
        trained.append((setting.lr, arm, seed))
        error = setting.lr if setting.lr <= lr else math.nan
        return {"train_losses": [1.0], "test_error": error, "seconds": 0.0}

    lr = part("settings").SETTINGS["field-adamw"].lr
    monkeypatch.setattr(training, "train", train)
    study.main(["--tune", "--settings", "field-adamw", "--results", str(tmp_path)])
    assert trained == [(lr * factor, "none", seed) for factor in (1 / 3, 1.0, 3.0) for seed in (100, 101)]
    assert f"| `field-adamw` | {lr / 3:.4f} | {lr:.4f} | diverged |" in capsys.readouterr().out
