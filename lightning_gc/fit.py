"""One run of ``Trainer.fit``: what is planned, hooked, logged and warned of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gc.filters import FanInDims
from lightning_gc.places import Filter
from lightning_gc.plan import Plan, Planner
from lightning_gc.selection import Selection, build_selection
from lightning_gc.stores import Means, Measurement, Role
from lightning_gc.targets import Target, after_closure, after_step, around_step


@dataclass(frozen=True)
class Settings:
    """The arguments of the callback, checked and parsed."""

    include: tuple[Filter, ...]
    exclude: tuple[Filter, ...]
    target: Target
    fan_in_dims: FanInDims
    log_means: str
    log_prefix: str


class Fit:
    """The state of the callback from `on_fit_start` to `teardown`.

    Raises:
        ValueError: The filters or dims do not fit the module, or leave nothing to centralize.
        MisconfigurationException: An optimizer cannot be hooked as the target needs it.
    """

    def __init__(self, settings: Settings, trainer: Trainer, module: LightningModule) -> None:
        self.saw_backward = False
        self._warned: set[str] = set()
        self._settings = settings
        self._trainer = trainer
        self._module = module
        self._planner = Planner(
            partial(build_selection, module, settings.include, settings.exclude, settings.fan_in_dims),
            trainer.optimizers,
            takes_foreign=not settings.include,
            prefix=settings.log_prefix,
            per_parameter=settings.log_means == "per_parameter",
        )
        self._check_selection()
        self._check_clipping()
        self._hooks: dict[Optimizer, list[RemovableHandle]] = {}
        self._announced_steps: set[Optimizer] = set()
        self._means_before: dict[Optimizer, Means] = {}
        self.hook_optimizers()

    @property
    def selection(self) -> Selection:
        """The selection in force."""
        return self._planner.selection

    def announce(self, callback: str) -> None:
        """Print one line, from rank zero, of what is centralized."""
        rank_zero_info(f"{callback}: {self.selection.summary()}")

    def hook_optimizers(self) -> None:
        """Put the target's hooks on the Trainer's optimizers, once on each."""
        for optimizer in self._trainer.optimizers:
            if optimizer not in self._hooks:
                self._hooks[optimizer] = self._hook(optimizer)

    def close(self) -> None:
        """Take all hooks off."""
        for handles in self._hooks.values():
            for handle in handles:
                handle.remove()
        self._hooks.clear()

    def before_step(self, optimizer: Optimizer) -> None:
        """Act in `on_before_optimizer_step`."""
        self._announced_steps.add(optimizer)
        if self._settings.target == "gradient":
            self._recentre(optimizer, "gradient")
        elif optimizer not in self._hooks:
            raise MisconfigurationException(
                f"GradientCentralization(target={self._settings.target!r}) has no hook on a {type(optimizer).__name__} "
                "optimizer that appeared in the middle of an epoch. Replace optimizers between epochs, or use "
                "target='gradient'."
            )

    def _hook(self, optimizer: Optimizer) -> list[RemovableHandle]:
        target = self._settings.target
        if not hasattr(optimizer, "register_step_post_hook"):
            if target == "gradient":
                return []
            raise MisconfigurationException(
                f"GradientCentralization(target={target!r}) needs the step hooks of torch.optim.Optimizer, which "
                f"{type(optimizer).__name__} does not have. Use target='gradient'."
            )
        if target == "clipped_gradient":
            return after_closure(optimizer, partial(self._recentre, role="gradient"))
        if target == "update":
            return around_step(optimizer, self._remember_means, self._restore_means)
        return after_step(optimizer, self._check_step_was_announced)

    def _recentre(self, optimizer: Optimizer, role: Role, to: Means | None = None) -> None:
        plan = self._planner.plan_for(optimizer)
        if not plan.store.entries:
            return
        if self._logs_now():
            measurement = plan.store.recentre_measured_(role, to)
            moved = measurement is not None
            if measurement is not None:
                self._log(plan, self._unscaled(optimizer, measurement) if role == "gradient" else measurement)
        else:
            moved = plan.store.recentre_(role, to)
        if not moved and self.saw_backward:
            self._warn_of_no_gradients(plan)
        self.saw_backward = False

    def _remember_means(self, optimizer: Optimizer) -> None:
        self._means_before[optimizer] = self._planner.plan_for(optimizer).store.means("weight")

    def _restore_means(self, optimizer: Optimizer) -> None:
        self._recentre(optimizer, "weight", self._means_before.pop(optimizer))

    def _logs_now(self) -> bool:
        """Whether the Trainer logs after this step. Hooks are not counted: LBFGS calls them several times."""
        trainer = self._trainer
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._settings.log_means == "off" or not every or trainer.barebones:
            return False
        automatic = self._module.automatic_optimization
        done = trainer.global_step if automatic else trainer.fit_loop.total_batch_idx
        return (done + 1) % every == 0 or trainer.should_stop

    def _log(self, plan: Plan, measurement: Measurement) -> None:
        means = plan.means.to(measurement.before.device)
        means.reset()
        means.update(*measurement)
        values = {f"{plan.prefix}/{name}": value for name, value in means.compute().items()}
        # The batch size is of no use to a value of one step, but Lightning asks for it with `dataloader_iter`.
        self._module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    def _unscaled(self, optimizer: Optimizer, measurement: Measurement) -> Measurement:
        """Undo the loss scale that a fused optimizer undoes inside its step only."""
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
            return measurement
        scale = scaler.scale(torch.ones((), device=measurement.before.device))
        norm = measurement.squared_norm
        return measurement._replace(
            before=measurement.before / scale,
            after=measurement.after / scale,
            squared_norm=None if norm is None else norm / scale / scale,
        )

    def _check_selection(self) -> None:
        if any(entry.layout is not None for entry in self.selection):
            return
        if self._settings.include or self._settings.exclude:
            raise ValueError(
                f"include={self._settings.include!r} and exclude={self._settings.exclude!r} leave nothing to "
                f"centralize. Widen them, or remove the callback.\n{self.selection}"
            )
        if not any(entry.reason.startswith("lazy") for entry in self.selection):
            self._warn(
                "nothing", f"no parameter has weight vectors to centralize, so nothing changes.\n{self.selection}"
            )

    def _check_clipping(self) -> None:
        trainer = self._trainer
        if (
            self._settings.target == "gradient"
            and trainer.gradient_clip_val
            and trainer.gradient_clip_algorithm == "value"
        ):
            self._warn(
                "clipping",
                "clipping by value comes after centralizing and makes the means non-zero again. Use "
                "target='clipped_gradient' to centralize after clipping.",
            )

    def _check_step_was_announced(self, optimizer: Optimizer) -> None:
        if optimizer not in self._announced_steps:
            self._warn(
                "unannounced",
                f"{type(optimizer).__name__}.step() ran without Lightning's `on_before_optimizer_step`, so its gradients "
                "were not centralized. Step the optimizer that `self.optimizers()` returns (not with "
                "`use_pl_optimizer=False`), or use target='clipped_gradient'.",
            )
        self._announced_steps.discard(optimizer)

    def _warn_of_no_gradients(self, plan: Plan) -> None:
        trainable = [entry.name for entry in plan.store.entries if entry.parameter.requires_grad]
        if trainable:
            self._warn(
                "no gradients",
                f"none of the {len(trainable)} selected parameters ({', '.join(trainable[:3])}, ...) had a gradient in an "
                "optimizer step, so nothing was centralized.",
            )

    def _warn(self, what: str, message: str) -> None:
        """Warn once in a fit, from rank zero."""
        if what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(f"GradientCentralization: {message}")


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy that is not known to let gradients be seen whole.

    Raises:
        MisconfigurationException: It names the strategy and what to do.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise MisconfigurationException(
            f"GradientCentralization does not know how {type(trainer.strategy).__name__} holds gradients, and would "
            "silently change nothing. Train on a single device or with a `ddp` strategy, or remove the callback."
        )
