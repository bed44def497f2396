"""The names and values of the logged means, against numpy formulas on recorded gradients."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gc import GradientCentralization
from tests.gan import DISCRIMINATOR, GAN, GENERATOR, gan_batches
from tests.loops import SMALL_CNN
from tests.models import Classifier, fit, image_batches
from tests.recording import Recorder, csv_rows, expected

TOTALS = {"gc/mean_pre", "gc/mean_post", "gc/removed_norm"}


def close(value: float) -> object:
    """Equal but for float32's rounding."""
    return pytest.approx(value, rel=1e-4, abs=1e-8)


def run(module, tmp_path, callback=None, data=None, **kwargs):
    """Train; return the rows of the CSV file and the recorders before and after the callback."""
    before, after = Recorder(), Recorder()
    logger = CSVLogger(tmp_path)
    callback = callback or GradientCentralization()
    kwargs = {"logger": logger, "log_every_n_steps": 1, **kwargs}
    fit(module, before, callback, after, data=data, **kwargs)
    return csv_rows(logger.log_dir), before.steps, after.steps


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("log_means", ["total", "per_parameter"])
def test_values_with_one_optimizer(tmp_path, accumulate, log_means):
    callback = GradientCentralization(log_means=log_means)
    rows, before, after = run(Classifier(), tmp_path, callback, accumulate_grad_batches=accumulate)
    assert len(rows) == len(before) == -(-8 // accumulate)
    for row, (_, _, pre), (_, _, post) in zip(rows, before, after, strict=True):
        wanted = {f"gc/{k}": close(v) for k, v in expected(pre, post, SMALL_CNN).items()}
        if log_means == "total":
            wanted = {name: value for name, value in wanted.items() if name in TOTALS}
        assert {name: value for name, value in row.items() if name.startswith("gc")} == wanted
        assert row["gc/mean_pre"] > 1e-4
        assert row["gc/mean_post"] < 1e-8
        assert 0.01 < row["gc/removed_norm"] <= 1


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ((torch.optim.Adam, torch.optim.Adam), ("Adam", "Adam-1")),
        ((torch.optim.SGD, torch.optim.Adam), ("SGD", "Adam")),
    ],
)
def test_names_carry_the_optimizer_when_there_are_several(tmp_path, kinds, names):
    module = GAN(kinds)
    callback = GradientCentralization(log_means="per_parameter", log_prefix="centred")
    rows, before, after = run(module, tmp_path, callback, data=gan_batches(3), precision="64-true")
    of_generator = module.trainer.optimizers[0]
    assert len(rows) == 3
    assert len(before) == 6
    for index, (_, optimizer, pre) in enumerate(before):
        is_generator = optimizer is of_generator
        layouts, name = (GENERATOR, names[0]) if is_generator else (DISCRIMINATOR, names[1])
        wanted = {f"centred/{name}/{k}": close(v) for k, v in expected(pre, after[index][2], layouts).items()}
        row = rows[index // 2]
        assert {k: v for k, v in row.items() if k.startswith(f"centred/{name}/")} == wanted
        assert len(wanted) == 9
        assert not any(k.startswith("gc") for k in row)


def test_several_batches_per_step_by_hand(tmp_path):
    class EverySecond(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            if batch_idx % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()

    module = EverySecond()
    rows, before, after = run(module, tmp_path, log_every_n_steps=4)
    assert [int(row["step"]) for row in rows] == [3, 7]
    assert [step for step, _, _ in before] == [1, 3, 5, 7]
    for row, index in zip(rows, (1, 3), strict=True):
        wanted = expected(before[index][2], after[index][2], SMALL_CNN)
        assert row["gc/mean_pre"] == close(wanted["mean_pre"])
        assert row["gc/removed_norm"] == close(wanted["removed_norm"])


def test_two_steps_in_a_batch_by_hand_log_the_last(tmp_path):
    class Twice(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for _ in range(2):
                self.manual_backward(super().training_step(batch, batch_idx))
                self.optimizers().step()
                self.optimizers().zero_grad()

    rows, before, after = run(Twice(), tmp_path)
    assert len(before) == 2 * len(rows) == 16
    for index, row in enumerate(rows):
        wanted = expected(before[2 * index + 1][2], after[2 * index + 1][2], SMALL_CNN)
        assert row["gc/mean_pre"] == close(wanted["mean_pre"])


def test_parameters_without_a_gradient_do_not_count(tmp_path):
    class Branches(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)

    callback = GradientCentralization(log_means="per_parameter")
    rows, before, after = run(Branches(), tmp_path, callback)
    wanted = expected(before[0][2], after[0][2], SMALL_CNN)
    assert rows[0]["gc/mean_pre"] == close(wanted["mean_pre"])
    assert rows[0]["gc/mean_pre/unused.weight"] == rows[0]["gc/removed_norm/unused.weight"] == 0


def test_a_step_that_is_not_finite_does_not_poison_later_ones(tmp_path):
    class Overflows(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 2 else 1.0)

        def configure_gradient_clipping(self, optimizer, **kwargs):
            if not all(p.grad.isfinite().all() for p in self.parameters()):
                self.zero_grad()

    rows, before, after = run(Overflows(), tmp_path)
    assert rows[2]["gc/mean_pre"] != rows[2]["gc/mean_pre"]
    for index in (0, 1, 3, 4, 7):
        assert rows[index]["gc/mean_pre"] == close(expected(before[index][2], after[index][2], SMALL_CNN)["mean_pre"])


def test_values_are_of_unscaled_gradients_although_a_fused_optimizer_unscales_later(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    module = Classifier(optimizer=torch.optim.Adam, lr=0.01, fused=True)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    rows, before, after = run(module, tmp_path, plugins=[plugin])
    for row, (_, _, pre), (_, _, post) in zip(rows, before, after, strict=True):
        pre, post = ({k: v / 1024 for k, v in gradients.items()} for gradients in (pre, post))
        wanted = expected(pre, post, SMALL_CNN)
        assert row["gc/mean_pre"] == close(wanted["mean_pre"])
        assert row["gc/mean_post"] == close(wanted["mean_post"])
        assert row["gc/removed_norm"] == close(wanted["removed_norm"])
        assert 1e-5 < row["gc/mean_pre"] < 0.5


def test_off_logs_nothing(tmp_path):
    trainer = fit(Classifier(), GradientCentralization(log_means="off"), log_every_n_steps=1)
    assert trainer.callback_metrics == {}


def test_without_a_logger_the_values_are_in_the_callback_metrics():
    trainer = fit(Classifier(), GradientCentralization(), log_every_n_steps=1)
    assert trainer.callback_metrics.keys() == TOTALS


def test_two_loggers_get_the_same_values(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    of_csv, of_board = CSVLogger(tmp_path), TensorBoardLogger(tmp_path, name="board")
    fit(Classifier(), GradientCentralization(), logger=[of_csv, of_board], log_every_n_steps=2)
    events = accumulator.EventAccumulator(of_board.log_dir)
    events.Reload()
    rows = csv_rows(of_csv.log_dir)
    assert [row["step"] for row in rows] == [1, 3, 5, 7]
    for name in TOTALS:
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == {row["step"]: pytest.approx(row[name], rel=1e-6) for row in rows}


def test_barebones_is_silent():
    trainer = Trainer(barebones=True, max_steps=2, accelerator="cpu", callbacks=[GradientCentralization()])
    trainer.fit(Classifier(), image_batches())  # logging under barebones warns, and warnings are errors
    assert trainer.callback_metrics == {}


class NoSynchronisation(TorchDispatchMode):
    """Fails where a value would be read on the host, or its shape depend on one, or be moved elsewhere."""

    forbidden = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select")
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").split(".")[0]
        target = kwargs.get("device")
        assert name not in self.forbidden, f"{name} waits for the device"
        assert "unique" not in name, f"{name} waits for the device"
        assert "coalesce" not in name or name == "is_coalesced"
        moves = name in ("_to_copy", "to") and target is not None and torch.device(target) != args[0].device
        assert not moves, f"{name} to {target}"
        NoSynchronisation.calls += 1
        return func(*args, **kwargs)


class Enter(Recorder):
    """Watches what follows."""

    def __init__(self, mode):
        self.mode = mode

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.mode.__enter__()


class Exit(Enter):
    """Stops watching."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.mode.__exit__(None, None, None)


class WithSparse(Classifier):
    """Has an Embedding with sparse gradients besides."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.table = nn.Embedding(64, 5, sparse=True)
        self.to(dtype)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x.to(self.table.weight.dtype)
        return super().training_step((x, y), batch_idx) + self.table(y).square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("log_means", ["off", "total", "per_parameter"])
def test_nothing_is_read_on_the_host(log_means, dtype):
    mode = NoSynchronisation()
    NoSynchronisation.calls = 0
    callback = GradientCentralization(log_means=log_means)
    trainer = fit(WithSparse(dtype), Enter(mode), callback, Exit(mode), log_every_n_steps=2)
    assert trainer.global_step == 8
    assert NoSynchronisation.calls > 8 * 4
    assert bool(trainer.callback_metrics) == (log_means != "off")


@pytest.mark.parametrize(
    "read", [lambda t: t.item(), lambda t: bool(t > 0), lambda t: t.nonzero(), lambda t: t.unique()]
)
def test_the_watch_sees_reads(read):
    with pytest.raises(AssertionError, match="waits"), NoSynchronisation():
        read(torch.ones(()))


def test_logging_does_not_change_the_training():
    results = []
    for log_means in ("off", "total", "per_parameter"):
        module = Classifier()
        fit(module, GradientCentralization(log_means=log_means), log_every_n_steps=1, precision="64-true")
        results.append(module)
    for name, value in results[0].state_dict().items():
        for other in results[1:]:
            torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=1e-14)


def test_double_precision_in_which_lightning_changes_the_default_dtype(tmp_path):
    rows, before, after = run(Classifier(), tmp_path, precision="64-true", log_every_n_steps=4)
    for row, index in zip(rows, (3, 7), strict=True):
        for name, value in expected(before[index][2], after[index][2], SMALL_CNN).items():
            if f"gc/{name}" in row:
                assert row[f"gc/{name}"] == close(value)
