"""The means are logged on exactly the steps that the Trainer logs: those of a metric that the module logs itself."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F  # noqa: N812

from lightning_gc import GradientCentralization
from lightning_gc.training.logged import steps_by_public_counters, steps_done
from tests.loops import SMALL_CNN
from tests.models import Classifier, fit, image_batches, trainer_kwargs
from tests.recording import Recorder, csv_rows, expected, steps_of


class Probed(Classifier):
    """Logs a metric of its own on every step."""

    def training_step(self, batch, batch_idx):
        self.log("probe", 1.0, batch_size=1)
        return super().training_step(batch, batch_idx)


class ByHand(Probed):
    """The same in manual optimization."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()
        self.optimizers().zero_grad()


class Counters(Callback):
    """Compares the two counts of steps at every step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append((steps_done(trainer), steps_by_public_counters(trainer)))


def run(module, tmp_path, *, data=None, callbacks=(), ckpt_path=None, **kwargs):
    """Train and check; return the steps that were logged."""
    logger, before, after = CSVLogger(tmp_path), Recorder(), Recorder()
    stack = [before, GradientCentralization(), after, *callbacks]
    trainer = Trainer(**trainer_kwargs(tmp_path, logger=logger, callbacks=stack, **kwargs))
    trainer.fit(module, image_batches() if data is None else data, ckpt_path=ckpt_path)
    logger.save()
    try:
        rows = csv_rows(logger.log_dir)
    except FileNotFoundError:
        rows = []
    steps = steps_of(rows, "probe")
    assert steps_of(rows, "gc/mean_pre") == steps
    of_step = {done: (pre, post) for (done, _, pre), (_, _, post) in zip(before.steps, after.steps, strict=True)}
    for row in rows:  # and each value is that of its step, none an older one shown again
        pre, post = of_step[int(row["step"])]
        assert row["gc/mean_pre"] == pytest.approx(expected(pre, post, SMALL_CNN)["mean_pre"], rel=1e-4)
    return steps


@pytest.mark.parametrize("kind", [Probed, ByHand])
@pytest.mark.parametrize(("every", "steps"), [(1, list(range(8))), (3, [2, 5]), (7, [6]), (8, [7]), (50, []), (0, [])])
def test_intervals(tmp_path, kind, every, steps):
    assert run(kind(), tmp_path, log_every_n_steps=every) == steps


@pytest.mark.parametrize("kind", [Probed, ByHand])
def test_intervals_go_on_over_epochs(tmp_path, kind):
    assert run(kind(), tmp_path, log_every_n_steps=5, max_epochs=3) == [4, 9, 14, 19]


@pytest.mark.parametrize(("accumulate", "steps"), [(2, [1, 3]), (3, [1])])
def test_accumulation(tmp_path, accumulate, steps):
    assert run(Probed(), tmp_path, log_every_n_steps=2, accumulate_grad_batches=accumulate) == steps


@pytest.mark.parametrize("kind", [Probed, ByHand])
def test_every_step_from_the_one_that_asks_to_stop(tmp_path, kind):
    class Stops(kind):
        def training_step(self, batch, batch_idx):
            if self.trainer.fit_loop.total_batch_idx == 4:
                self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    assert run(Stops(), tmp_path, log_every_n_steps=3, min_steps=8) == [2, 4, 5, 6, 7]


@pytest.mark.parametrize("kind", [Probed, ByHand])
def test_a_run_resumed_between_epochs(tmp_path, kind):
    first = fit(kind(), GradientCentralization(), log_every_n_steps=3)
    first.save_checkpoint(tmp_path / "end.ckpt")
    steps = run(kind(), tmp_path, log_every_n_steps=3, max_epochs=2, ckpt_path=tmp_path / "end.ckpt")
    assert steps == [8, 11, 14]


@pytest.mark.parametrize("kind", [Probed, ByHand])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_resumed_within_an_epoch(tmp_path, kind):
    path = tmp_path / "middle.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 3:
                trainer.save_checkpoint(path)

    fit(kind(), GradientCentralization(), Save())
    assert run(kind(), tmp_path, log_every_n_steps=3, max_epochs=1, ckpt_path=path) == [5]


@pytest.mark.parametrize("kind", [Probed, ByHand])
def test_a_batch_that_is_refused(tmp_path, kind):
    """`on_train_batch_start` may end an epoch: that batch is counted by some counters."""

    class Refuses(kind):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 else None

    assert run(Refuses(), tmp_path, log_every_n_steps=2, max_epochs=3) == [1, 3, 5, 7]


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None")
@pytest.mark.parametrize("kind", [Probed, ByHand])
def test_batches_that_are_none(tmp_path, kind):
    class Gaps:
        def __iter__(self):
            for index, batch in enumerate(image_batches(6)):
                if index == 3:
                    yield from (None, None)
                yield batch

        def __len__(self):
            return 8

    assert run(kind(), tmp_path, data=Gaps(), log_every_n_steps=3) == [2, 5]


def test_lbfgs_calls_the_hook_several_times_a_step(tmp_path):
    module = Probed(optimizer=torch.optim.LBFGS, lr=0.01, max_iter=3)
    counters = Counters()
    steps = run(module, tmp_path, log_every_n_steps=3, callbacks=[counters])
    assert steps == [2, 5]
    assert len(counters.seen) > 8


@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument in the `training_step`")
@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.parametrize("manual", [False, True])
def test_a_module_that_takes_the_iterator(tmp_path, manual):
    class Iterates(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = not manual

        def training_step(self, dataloader_iter):
            (x, y), _, _ = next(dataloader_iter)
            self.log("probe", 1.0, batch_size=1)
            loss = F.cross_entropy(self(x), y)
            if not manual:
                return loss
            self.manual_backward(loss)
            self.optimizers().step()
            self.optimizers().zero_grad()
            return None

    assert run(Iterates(), tmp_path, log_every_n_steps=3) == [2, 5]


def test_fast_dev_run_has_no_logger_to_write_to(tmp_path):
    trainer = fit(Probed(), GradientCentralization(), fast_dev_run=3, log_every_n_steps=2, logger=CSVLogger(tmp_path))
    assert trainer.callback_metrics.keys() == {"probe", "gc/mean_pre", "gc/mean_post", "gc/removed_norm"}
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("kind", [Probed, ByHand])
def test_the_public_counters_agree_in_an_ordinary_run(kind):
    counters = Counters()
    fit(kind(), GradientCentralization(), counters, max_epochs=2)
    assert counters.seen == [(step, step) for step in range(16)]
