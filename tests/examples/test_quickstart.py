"""The demo, on little data: it trains for real, and what it prints is what it measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from matplotlib import image

from examples import quickstart
from lightning_gc import GradientCentralization


@pytest.fixture
def threads():
    """The demo sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "sub" / "plot.png"

    quickstart.main(["--epochs", "2", "--seed", "3", "--out", str(plot)])

    printed = capsys.readouterr().out
    assert "at a learning rate that falls from 0.5 to 0 as a cosine. That is a bold one" in printed
    assert re.search(r"^head\.weight +\(10, 512\) +\(1,\) +10 +512 +yes \(Linear\)$", printed, re.M)
    assert "normalisation layer: features.1.weight, " in printed
    rows = re.findall(r"^ +(\d+)  +(\d\.\d\de-\d\d)  +(\d\.\d\de-\d\d) +([\d.]+)%$", printed, re.M)
    assert len(rows) == 5
    assert all(float(post) < 1e-5 * float(pre) and 0 < float(removed) < 100 for _, pre, post, removed in rows)
    assert len(re.findall(r"^(?:training loss|validation accuracy).* [\d.]+%? +[\d.]+%?$", printed, re.M)) == 2
    (share,) = re.findall(r"^The callback took ([\d.]+)% of the time of a training step", printed, re.M)
    assert 0 < float(share) < 50

    pixels = image.imread(plot)
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1500
    assert pixels[..., :3].std() > 0.05


@pytest.mark.usefixtures("threads")
def test_both_runs_start_from_the_same_weights_on_the_same_batches() -> None:
    without = quickstart.train([], epochs=1, seed=0)
    with_gc = quickstart.train([GradientCentralization()], epochs=1, seed=0)

    assert without.loss[0] == with_gc.loss[0]
    assert without.loss[2] != with_gc.loss[2]
    assert not without.means
    assert list(with_gc.means) == list(range(4, len(with_gc.loss) + 1, 4))


def test_the_share_is_of_each_hook_in_the_step_that_it_is_part_of() -> None:
    """Whatever else the machine does meanwhile slows both: the median of two runs did not tell them apart."""
    assert quickstart.share([1.0, 3.0, 5.0], [10.0, 10.0, 50.0]) == pytest.approx(0.1)
    callback = GradientCentralization()
    hooks = quickstart.time_hook(callback)
    history = quickstart.train([callback], epochs=1, seed=0)
    assert len(hooks) == len(history.seconds)
    assert all(0 < hook < step for hook, step in zip(hooks, history.seconds, strict=True))
    assert history.means


def test_the_report_says_which_setting_it_is_of() -> None:
    history = quickstart.train([GradientCentralization()], epochs=1, seed=0, lr=0.01)
    report = quickstart.report(history, history, history.seconds, lr=0.01)
    assert "a first learning rate of 0.01, and not the 0.5 of the demo" in report
    assert "15 had the higher" not in report


def test_smooth_is_the_mean_of_all_values_so_far_without_decay() -> None:
    assert quickstart.smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert quickstart.smooth([1.0, 2.0], weight=0.5) == pytest.approx([1.0, (0.5 * 1 + 2) / 1.5])
