"""Each example runs, small, and prints what it did."""

from __future__ import annotations

import csv
import re

import pytest

from tests.examples.loading import EXAMPLES, load

# The examples run as a user runs them; Lightning's remarks on that are not under test here.
pytestmark = pytest.mark.filterwarnings("ignore")


def means_in(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^\s+(\S*gc\S*)\s+([\d.e+-]+)$", text, re.MULTILINE)}


class TestGan:
    def test_both_networks_are_centralized_and_logged(self, tmp_path, capsys):
        load("gan").main(["--epochs", "1", "--logs", str(tmp_path)])
        out = capsys.readouterr().out
        assert re.search(r"generator\.0\.weight +\(32, 64, 2, 2\) +\(0, 2, 3\) .* yes \(ConvTranspose2d\)", out)
        means = means_in(out)
        for optimizer in ("Adam", "Adam-1"):
            assert means[f"gc/{optimizer}/mean_post"] < 1e-6 < means[f"gc/{optimizer}/mean_pre"]
            assert 0 < means[f"gc/{optimizer}/removed_norm"] < 1
        with (tmp_path / "gan" / "version_0" / "metrics.csv").open() as stream:
            columns = csv.DictReader(stream).fieldnames
        assert means.keys() <= set(columns)

    @pytest.mark.slow
    def test_without(self, tmp_path, capsys):
        load("gan").main(["--epochs", "1", "--logs", str(tmp_path), "--no-gc"])
        assert not means_in(capsys.readouterr().out)


class TestFabric:
    def test_the_update_keeps_the_means(self, capsys):
        load("fabric").main(["--epochs", "2"])
        out = capsys.readouterr().out
        assert re.search(r"0\.weight +\(128, 64\) .* yes \(Linear\)", out)
        found = re.search(r"moved by up to (\S+); ([\d.]+)% of", out)
        assert float(found[1]) < 1e-6
        assert float(found[2]) > 80


class TestFinetune:
    def test_the_head_first_and_then_everything(self, capsys):
        load("finetune").main(["--pretrain-epochs", "1", "--epochs", "2", "--unfreeze-at", "1"])
        out = capsys.readouterr().out
        assert re.search(r"epoch 0: 1 of 12 parameters are centralized.*\n.*moved by up to 0\.0e\+00", out)
        after = re.search(r"epoch 1: 4 of 12 parameters.*\n.* moved by up to (\S+), .* vector by up to (\S+)", out)
        moved, mean = float(after[1]), float(after[2])
        assert moved > 1e-4
        assert mean < 1e-6


class TestLanguageModel:
    def test_tied(self, capsys):
        load("language_model").main(["--batches", "3", "--vocabulary", "100"])
        out = capsys.readouterr().out
        assert re.search(r"embedding\.weight +\(100, 64\) .* yes \(Embedding\)", out)
        assert "output.weight" not in out, "the tied weight is one parameter, listed once"
        means = means_in(out)
        assert means["gc/mean_post"] < 1e-6 < means["gc/mean_pre"]

    def test_sparse(self, capsys):
        load("language_model").main(["--sparse", "--batches", "3", "--vocabulary", "100"])
        out = capsys.readouterr().out
        assert re.search(r"output\.weight +\(100, 64\) .* yes \(Linear\)", out)
        means = means_in(out)
        assert means["gc/AdamW/mean_post"] < 1e-6 < means["gc/AdamW/mean_pre"]
        # What the example says of it: LayerNorm has left nothing to remove.
        assert means["gc/SparseAdam/removed_norm"] < 1e-4 < means["gc/AdamW/removed_norm"]

    def test_without_the_embedding(self, capsys):
        load("language_model").main(["--exclude-embedding", "--batches", "1", "--vocabulary", "100"])
        assert "excluded by 'embedding': " in capsys.readouterr().out


class TestCli:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def run(self, *arguments: str) -> None:
        load("cli/main").main(["fit", *arguments])

    def test_config(self, capsys):
        self.run("--config", str(EXAMPLES / "cli" / "config.yaml"), "--trainer.max_epochs=1")
        out = capsys.readouterr().out
        means = means_in(out)
        assert {"gc_conv/mean_post/features.0.weight", "gc_conv/mean_post/features.4.weight"} <= means.keys()
        assert not any("features.8" in name or "head" in name for name in means)
        assert means["gc_conv/mean_post"] < 1e-6 < means["gc_conv/mean_pre"]
        assert means["gc_linear/mean_post"] < 1e-6

    def test_flags(self, capsys):
        self.run(
            *("--optimizer=SGD", "--optimizer.lr=0.05", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
            *("--trainer.callbacks+=lightning_gc.GradientCentralization", "--trainer.callbacks.target=update"),
            "--trainer.callbacks.exclude=[torch.nn.Conv2d, head]",
        )
        assert re.search(r"exclude=\[\S*Conv2d, 'head'\], target='update'\)", capsys.readouterr().out)

    def test_a_typo_is_named_with_what_there_is(self):
        with pytest.raises(Exception, match=r"'haed'.*'head'"):
            self.run(
                *("--optimizer=SGD", "--optimizer.lr=0.05", "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"),
                *("--trainer.callbacks+=lightning_gc.GradientCentralization", "--trainer.callbacks.exclude=haed"),
            )
