"""Rows: the callback as an object."""

from __future__ import annotations

import copy
import pickle

import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_gc import GradientCentralization, select
from tests.models import fit
from tests.recorder import Recorder
from tests.works_with.models import mlp
from tests.works_with.running import Regression, check, pairs, train
from tests.works_with.table import row

SECTION = "The callback itself"


@row(SECTION, "Several callbacks with different filters and targets, each with a `log_prefix` of its own")
def several(target: str) -> None:
    module, recorder = Regression(mlp(), momentum=0.9, weight_decay=0.5), Recorder()
    trainer = fit(
        module,
        recorder,
        GradientCentralization(include="net.0", target=target, log_prefix="first"),
        GradientCentralization(include="net.2", target="update", log_prefix="second"),
        data=pairs(6),
        precision="64-true",
        log_every_n_steps=1,
    )
    moved = recorder.weights[-1]["net.2.weight"] - recorder.weights[0]["net.2.weight"]
    assert moved.mean(1).abs().max() < 1e-14
    if target == "update":
        moved = recorder.weights[-1]["net.0.weight"] - recorder.weights[0]["net.0.weight"]
        assert moved.mean(1).abs().max() < 1e-14
    else:
        assert all(used["net.0.weight"].mean(1).abs().max() < 1e-14 for used in recorder.used)
    assert {"first/mean_pre", "second/mean_pre"} <= trainer.callback_metrics.keys()


@row(SECTION, "Two callbacks that overlap: to centralize twice is to centralize once")
def overlapping(target: str) -> None:
    once, twice = Regression(mlp()), Regression(mlp())
    check(once, target, data=pairs(6))
    train(twice, target, GradientCentralization(target=target, log_prefix="again"), data=pairs(6))
    for ours, theirs in zip(twice.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


class Copies(Callback):
    """Copies and pickles another callback in the middle of fit."""

    def __init__(self, of: GradientCentralization) -> None:
        self.of, self.copies, self.pickled = of, [], b""

    def on_train_batch_end(self, *_) -> None:
        self.pickled = pickle.dumps(self.of)
        self.copies = [copy.deepcopy(self.of), copy.copy(self.of), pickle.loads(self.pickled)]


@row(SECTION, "Pickled and copied before, in and after fit: the arguments go along, the model does not")
def pickling(target: str) -> None:
    before = pickle.loads(pickle.dumps(GradientCentralization(exclude=[nn.Conv1d, "net.2"], target=target)))
    copies = Copies(before)
    module = Regression(mlp())
    module.net.append(nn.Conv1d(1, 1, 3, padding=1))
    module.loss = lambda x, y: (module.net[3](module.net[:3](x).unsqueeze(1)).squeeze(1) - y).square().mean()
    recorder = train(module, None, before, copies, data=pairs(6))
    assert recorder.used
    assert len(copies.pickled) < 2_000
    for made in (*copies.copies, pickle.loads(pickle.dumps(before))):
        assert repr(made) == repr(before)
        assert made.selection is None
        again, data = Regression(mlp()), pairs(6)
        again.net.append(nn.Conv1d(1, 1, 3))
        again.loss = lambda x, y, again=again: (again.net[:3](x) - y).square().mean() + again.net[3].weight.sum()
        fit(again, made, data=data, precision="64-true", max_steps=1)


@row(SECTION, "One callback in several fits, of different models")
def reused(target: str) -> None:
    gc = GradientCentralization(target=target)
    for sizes in ((6, 5), (6, 7)):
        module, recorder = Regression(nn.Sequential(nn.Linear(*sizes), nn.Tanh(), nn.Linear(sizes[1], 3))), Recorder()
        fit(module, recorder, gc, data=pairs(6), precision="64-true")
        moved = recorder.weights[-1]["net.0.weight"] - recorder.weights[0]["net.0.weight"]
        assert moved.abs().max() > 1e-3
        assert moved.mean(1).abs().max() < 1e-14
        assert len(select(module).centralized) == 2
    assert [entry.name for entry in gc.selection.centralized] == ["net.0.weight", "net.2.weight"]
