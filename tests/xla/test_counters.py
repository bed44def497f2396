"""XLA's own counters: what the callback has compiled, run and read, beside a callback that logs as many scalars."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import count

import pytest
import torch
import torch_xla.core.xla_model as xm
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch_xla.debug import metrics

from lightning_gc import GradientCentralization
from tests.models import Classifier, fit, image_batches

STEPS, EVERY = 9, 3
WIDTHS = count(8)  # a new one for each training: nothing that it compiles was compiled before


class Control(Callback):
    """Logs some scalars of the gradients, on the steps that the Trainer logs."""

    def __init__(self, scalars: int) -> None:
        self.scalars = scalars

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            gradients = [p.grad for p in pl_module.parameters()]
            values = {f"control/{i}": gradient.abs().mean() for i, gradient in enumerate(gradients[: self.scalars])}
            pl_module.log_dict(values, batch_size=1)


class Product(nn.Module):
    """A product of which the graph alone tells what its weight is."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@dataclass
class Counts:
    """How often something was compiled, run, sent to the device and read from it."""

    compiled: int
    run: int
    sent: int
    read: int

    def since(self, other: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(vars(self).values(), vars(other).values(), strict=True)))


def counts() -> Counts:
    names = ("CompileTime", "ExecuteTime", "TransferToDeviceTime", "TransferFromDeviceTime")
    return Counts(*((metrics.metric_data(name) or [0])[0] for name in names))


class Counter(Callback):
    """Counts within each batch, from its first hook to its last."""

    def __init__(self) -> None:
        self.batches: list[Counts] = []

    def on_train_batch_start(self, *_):
        self._start = counts()

    def on_train_batch_end(self, *_):
        self.batches.append(counts().since(self._start))


def train(callback: Callback, folder) -> tuple[Counts, list[Counts], set[str]]:
    """Train; return the counts of all of it, those of each batch, and which operations XLA left to the CPU."""
    width, counter = next(WIDTHS), Counter()
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), Product(width, 3))
    xm.wait_device_ops()
    metrics.clear_counters()
    start = counts()
    arguments = {"log_every_n_steps": EVERY, "logger": CSVLogger(folder), "data": image_batches(count=STEPS)}
    fit(Classifier(net, momentum=0.9), callback, counter, accelerator="tpu", **arguments)
    xm.wait_device_ops()
    left_to_the_cpu = {name for name in metrics.counter_names() if name.startswith("aten::")}
    return counts().since(start), counter.batches, left_to_the_cpu


@cache
def control(scalars: int, folder):
    return train(Control(scalars), folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where CSVLogger writes; the programs of any training, whatever its widths, are compiled before the first that counts."""
    made = tmp_path_factory.mktemp("logs")
    train(Control(1), made)
    return made


@pytest.mark.parametrize(("target", "scalars"), [("gradient", 3), ("clipped_gradient", 3), ("update", 2)])
def test_nothing_more_is_compiled_run_or_read_than_by_a_callback_that_logs(record_property, folder, target, scalars):
    wanted, wanted_batches, wanted_left = control(scalars, folder)
    callback = GradientCentralization(target=target)
    found, batches, left = train(callback, folder)
    assert callback.selection is not None
    sources = {entry.name: entry.layout.source for entry in callback.selection if entry.layout}
    assert sources == {"net.1.weight": "Linear", "net.3.weight": "read from the graph"}
    record_property("of a callback that logs as much", wanted)
    record_property("of GradientCentralization", found)
    assert len(batches) == len(wanted_batches) == STEPS
    assert found.compiled == wanted.compiled > 2
    assert [batch.compiled for batch in batches] == [batch.compiled for batch in wanted_batches]
    assert found.run == wanted.run
    assert found.read == wanted.read
    assert left == wanted_left
    # No value is read in a batch. From the second logged step on nothing is compiled, and nothing sent.
    assert [batch.read for batch in batches] == [0] * STEPS
    settled = batches[2 * EVERY :]
    assert [batch.compiled for batch in settled] == [0] * EVERY
    assert [batch.sent for batch in settled] == [0] * EVERY


def test_a_read_would_be_counted(folder):
    class Reads(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            next(pl_module.parameters()).grad.sum().item()

    _, batches, _ = train(Reads(), folder)
    assert min(batch.read for batch in batches) > 0
