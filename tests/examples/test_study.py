"""The study: its data, its statistics, and a small run of it from start to end."""

from __future__ import annotations

import csv
import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_gc import select
from tests.examples.loading import load

fashion_mnist = load("fashion_mnist")
report = load("study_report")
study = load("study")

# The study trains as a user would; Lightning's remarks on that are not under test here.
pytestmark = pytest.mark.filterwarnings("ignore")


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder in Fashion-MNIST's format: scikit-learn's digits, enlarged to 24x24 and padded to 28x28."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("idx")
    digits = load_digits()
    images = np.pad(np.kron(digits.images * 15, np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2)))
    for split, part, suffix in (("train", slice(0, 600), ".gz"), ("t10k", slice(600, 900), "")):
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images[part])
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", digits.target[part])
    return folder


class TestData:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_reads_what_was_written(self, tmp_path, suffix):
        array = np.arange(24).reshape(2, 3, 4)
        write_idx(tmp_path / f"x{suffix}", array)
        assert torch.equal(fashion_mnist.read_idx(tmp_path / f"x{suffix}").long(), torch.from_numpy(array))

    def test_refuses_what_is_no_idx_file(self, tmp_path):
        (tmp_path / "x").write_bytes(b"PNG, say")
        with pytest.raises(ValueError, match="not an IDX file"):
            fashion_mnist.read_idx(tmp_path / "x")

    def test_refuses_a_file_that_was_cut(self, tmp_path):
        write_idx(tmp_path / "x", np.zeros((2, 3)))
        (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
        with pytest.raises(ValueError, match="damaged"):
            fashion_mnist.read_idx(tmp_path / "x")

    def test_says_where_to_get_the_data(self, tmp_path):
        with pytest.raises(SystemExit, match=r"apt-get install dataset-fashion-mnist.*--data"):
            study.main(["--data", str(tmp_path / "nothing"), "--results", str(tmp_path)])

    def test_normalises_the_images(self, data):
        images, labels = fashion_mnist.load(data, "train")
        assert images.shape == (600, 1, 28, 28)
        assert labels.dtype == torch.int64
        assert images.min() == pytest.approx(-fashion_mnist.MEAN / fashion_mnist.STD)


class TestStatistics:
    def test_holm_on_a_case_done_by_hand(self):
        # Sorted: .005 x 4, .01 x 3, .03 x 2 (and monotone after it), .04 x 1 -> at least .06
        assert report.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_holm_stays_below_one(self):
        assert report.holm([0.9, 0.8]) == [1.0, 1.0]

    @pytest.mark.parametrize(
        ("losses", "goal", "epochs"), [([4, 2, 1], 3, 1.5), ([4, 2, 1], 1, 3), ([1, 2], 1.5, 1), ([2, 3, 1], 1.5, 2.75)]
    )
    def test_epochs_to_reach(self, losses, goal, epochs):
        assert report.epochs_to_reach(losses, goal) == epochs

    def test_a_goal_that_is_never_reached(self):
        assert math.isnan(report.epochs_to_reach([3, 2], 1))

    def test_comparison_is_the_paired_t_test(self):
        without, with_ = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.8, 1.9, 3.4, 3.1])
        runs = {("s", "none", i): {"test_loss": x} for i, x in enumerate(without)}
        runs |= {("s", "gradient", i): {"test_loss": x} for i, x in enumerate(with_)}
        c = report.compare(runs, "s", "gradient", "test_loss")
        d = with_ - without
        half = stats.t.ppf(0.975, 3) * d.std(ddof=1) / 2  # the textbook's interval, for n = 4
        assert (c.seeds, c.difference) == (4, pytest.approx(d.mean()))
        assert (c.low, c.high) == (pytest.approx(d.mean() - half), pytest.approx(d.mean() + half))
        assert c.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / (d.std(ddof=1) / 2), 3))

    def test_only_seeds_of_both_arms_are_compared(self):
        runs = {("s", "none", i): {"test_loss": 1.0 + i} for i in range(3)}
        runs |= {("s", "gradient", i): {"test_loss": i**2 * 1.0} for i in (1, 2, 7)}
        assert report.compare(runs, "s", "gradient", "test_loss").seeds == 2

    def test_nothing_is_tested_where_a_seed_has_no_value(self):
        runs = {("s", "none", i): {"epochs_to_baseline": 6.0 + i} for i in range(4)}
        runs |= {("s", "gradient", i): {"epochs_to_baseline": x} for i, x in enumerate([4.0, 5.5, 4.5, math.nan])}
        c = report.compare(runs, "s", "gradient", "epochs_to_baseline")
        assert c.seeds == 3
        assert c.difference == pytest.approx((-2 - 1.5 - 3.5) / 3)
        assert math.isnan(c.p)
        assert math.isnan(c.low)


class TestDesign:
    @pytest.mark.parametrize(
        ("arm", "taken"),
        [
            ("gradient", ["0.weight", "3.weight", "7.weight", "11.weight"]),
            ("update", ["0.weight", "3.weight", "7.weight", "11.weight"]),
            ("convolutions", ["0.weight", "3.weight", "7.weight"]),
            ("head", ["11.weight"]),
        ],
    )
    def test_an_arm_centralizes_what_it_says(self, arm, taken):
        net = study.small_cnn(study.SETTINGS["sgd"])
        assert [e.name for e in select(net, study.ARMS[arm].get("include", ())).centralized] == taken

    def test_arms_of_a_seed_see_the_same_batches_from_the_same_weights(self, data, monkeypatch):
        seen = []

        class Recorder(study.Classifier):
            def training_step(self, batch, batch_idx):
                if batch_idx == 0:
                    seen.append([batch[0].clone(), batch[1].clone()])
                    if self.current_epoch == 0:
                        seen[-1] += [p.detach().clone() for p in self.parameters()]
                return super().training_step(batch, batch_idx)

        monkeypatch.setattr(study, "Classifier", Recorder)
        tensors = {split: fashion_mnist.load(data, split) for split in ("train", "t10k")}
        setting = study.Setting(images=300, epochs=2)
        for arm in ("none", "gradient"):
            study.train(setting, arm, 3, tensors)
        assert len(seen) == 4
        for without, with_ in zip(seen[:2], seen[2:], strict=True):
            assert len(without) == len(with_)
            assert all(map(torch.equal, without, with_))
        assert not torch.equal(seen[0][0], seen[1][0]), "the second epoch has another order"

    def test_removed_norm_is_that_of_the_arm(self, data):
        tensors = {split: fashion_mnist.load(data, split) for split in ("train", "t10k")}
        setting = study.Setting(images=600, epochs=4)  # 20 steps: the Trainer logs once
        assert 0 < study.train(setting, "gradient", 0, tensors)["removed_norm"] < 1
        assert study.train(setting, "none", 0, tensors)["removed_norm"] is None

    def test_initial_weights_are_scaled(self):
        torch.manual_seed(0)
        default = study.small_cnn(study.Setting())
        torch.manual_seed(0)
        small = study.small_cnn(study.Setting(init_scale=0.3))
        torch.testing.assert_close(small[0].weight, 0.3 * default[0].weight)
        assert torch.equal(small[1].weight, default[1].weight)


class TestRun:
    @pytest.fixture(scope="class")
    def results(self, data, tmp_path_factory):
        folder = tmp_path_factory.mktemp("results")
        study.main(["--data", str(data), "--results", str(folder), "--seeds", "2", "--settings", "sgd"])
        return folder

    def test_leaves_a_file_for_each_run(self, results):
        assert len(list(results.glob("*.json"))) == 4
        assert not list(results.glob("*.partial"))

    def test_the_arms_differ(self, results):
        runs, incomplete = report.load_runs(results, ["sgd"], ["none", "gradient"], 2)
        assert not incomplete
        assert runs["sgd", "none", 0]["train_losses"] != runs["sgd", "gradient", 0]["train_losses"]

    def test_writes_tables_and_plots(self, results):
        names = {"results.csv", "summary.csv", "summary.md"}
        names |= {"training_loss.png", "test_accuracy.png", "epochs_to_baseline.png"}
        assert names <= {f.name for f in results.iterdir()}
        rows = list(csv.DictReader((results / "results.csv").open()))
        assert len(rows) == 4
        assert {"train_loss", "test_accuracy", "lr", "seed", "arm"} <= rows[0].keys()

    def test_what_is_on_disk_is_not_trained_again(self, results, monkeypatch, capsys):
        monkeypatch.setattr(study, "train", lambda *args: pytest.fail("trained again"))
        # Not even the data is needed.
        study.main(["--data", "/nowhere", "--results", str(results), "--seeds", "2", "--settings", "sgd"])
        assert "4 of them done already" in capsys.readouterr().out

    def test_an_arm_that_lacks_a_seed_is_left_out(self, results, capsys):
        study.main(["--results", str(results), "--seeds", "3", "--settings", "sgd", "--report-only"])
        out = capsys.readouterr().out
        assert "sgd, gradient (2 of 3 seeds)" in out
        assert "| sgd" not in out

    def test_an_interrupted_run_is_trained_again(self, results, data, monkeypatch, capsys):
        (results / "sgd--none--seed1.json").rename(results / "sgd--none--seed1.partial")
        study.main(["--data", str(data), "--results", str(results), "--seeds", "2", "--settings", "sgd"])
        out = capsys.readouterr().out
        assert "[1/1] sgd, none, seed 1" in out
        assert "min left" in out

    def test_results_of_other_settings_are_not_mixed_in(self, results, data):
        arguments = ["--full", "--data", str(data), "--results", str(results), "--seeds", "1", "--settings", "sgd"]
        with pytest.raises(SystemExit, match="another setting"):
            study.main(arguments)
