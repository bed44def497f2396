"""When the Trainer logs, and handing it the means."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_gc.engines import Engine
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.steps.plan import Plan


class LoggedMeans:
    """Logs what a store measured, on the steps that the Trainer logs.

    Args:
        trainer: The Trainer of the fit.
        module: Its LightningModule, through which is logged.
        engine: How the strategy holds gradients.
        enabled: Whether anything is logged at all.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, engine: Engine, enabled: bool) -> None:
        self._trainer = trainer
        self._engine = engine
        self._module = module
        self._enabled = enabled and not trainer.barebones

    def due(self) -> bool:
        """Whether the Trainer logs after the step that is being taken."""
        if not self._enabled:
            return False
        every: int = self._trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and ((steps_done(self._trainer) + 1) % every == 0 or self._trainer.should_stop)

    def log(self, plan: Plan, measurement: Measurement) -> None:
        """Log the measurement of one step of one optimizer."""
        if not plan.logged_names:  # before it is sent to the other ranks
            measurement = measurement.total()
        plan.store.sum_over_ranks_([sums for sums in measurement if sums is not None])
        values = {f"{plan.prefix}/{name}": value for name, value in measurement.values(plan.logged_names).items()}
        # The batch size is of no use to a value of one step, but Lightning asks for it with `dataloader_iter`.
        self._module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    def unscaled(self, optimizer: Optimizer, measurement: Measurement) -> Measurement:
        """Undo the loss scale that a fused optimizer, or an engine, undoes inside its step only."""
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        scale = self._engine.gradient_scale(optimizer)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scale = scaler.scale(torch.ones((), device=measurement.before.device))
        return measurement if scale is None else measurement.unscaled(scale)


def steps_done(trainer: Trainer) -> int:
    """The count that decides when the Trainer logs: of the batches so far after which it stepped.

    Hooks cannot be counted instead: LBFGS calls them several times a step. Nor do the public counters
    always agree: they miss batches that are None, and count those that `on_train_batch_start` refused.
    """
    stepped: int | None = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", None)
    return steps_by_public_counters(trainer) if stepped is None else stepped


def steps_by_public_counters(trainer: Trainer) -> int:
    """The same from public counters: right as long as every batch is trained on."""
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx
