"""One run of ``Trainer.fit``: what is planned, hooked, and done in each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gc.engines import Engine, Role, Store
from lightning_gc.engines.target import Target
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.selection import Selection, build_selection
from lightning_gc.selection.filters import FanInDims
from lightning_gc.selection.places import Filter
from lightning_gc.selection.readings import Readings, same_layout
from lightning_gc.steps.hooks import after_step, runs_hooks
from lightning_gc.steps.plan import Plan, Planner
from lightning_gc.steps.steps import Observer, Steps
from lightning_gc.training.announcements import Announcements
from lightning_gc.training.logged import LoggedMeans
from lightning_gc.training.reading import Reader
from lightning_gc.training.remarks import Remarks, may_be_centralized
from lightning_gc.training.silence import Silence
from lightning_gc.training.strategies import find_engine


@dataclass(frozen=True)
class Settings:
    """The arguments of the callback, checked and parsed."""

    include: tuple[Filter, ...]
    exclude: tuple[Filter, ...]
    target: Target
    fan_in_dims: FanInDims
    log_means: str
    log_prefix: str


class Fit(Observer):
    """The state of the callback from `on_fit_start` to `teardown`.

    Args:
        settings: The arguments of the callback.
        trainer: The Trainer of the fit.
        module: Its LightningModule.
        is_active: Whether the Trainer calls the callback's hooks at present. Callbacks that make trial
            steps, such as `LearningRateFinder`, take all others out of the Trainer meanwhile.

    Raises:
        MisconfigurationException: The filters or dims do not fit the module, or leave nothing to
            centralize; an optimizer cannot be hooked as the target needs it.
    """

    def __init__(
        self, settings: Settings, trainer: Trainer, module: LightningModule, is_active: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._trainer = trainer
        self._engine = engine = find_engine(trainer.strategy)(trainer.strategy)
        self._target = engine.target_in_step(settings.target)
        self._remarks = Remarks()
        self._announcements: Announcements | None = None
        self._logged = LoggedMeans(trainer, module, engine, enabled=settings.log_means != "off")
        self._reader = Reader(module, engine, trainer.strategy)
        self._planner = Planner(
            partial(_build_selection, module, settings, engine, self._reader.settled),
            lambda: trainer.optimizers,
            held_by=engine.held_by,
            make_store=engine.make_store,
            takes_foreign=not settings.include,
            prefix=settings.log_prefix,
            per_parameter=settings.log_means == "per_parameter",
            on_new_selection=self._announce_growth,
        )
        self._silence = Silence(lambda: self.selection, self._remarks)
        self._steps = Steps(self._planner, self._target, self, is_active)
        self._check_selection(at_start=True)
        self._remarks.on_clipping(trainer, settings.target)
        self._hooks: dict[Optimizer, list[RemovableHandle]] = {}
        self._announced_steps: set[Optimizer] = set()
        self._backwards = 0
        self._backwards_before: dict[Optimizer, int] = {}
        try:
            self.hook_optimizers()
        except BaseException:
            self.close()
            raise

    @property
    def selection(self) -> Selection:
        """The selection in force."""
        return self._planner.selection

    def announce(self, callback: str) -> None:
        """Print one line, from rank zero, of what is centralized, and from now on one whenever more is."""
        self._announcements = Announcements(callback, self.selection)

    def remark_on_shared_prefix(self, callback: str, other: str) -> None:
        """Warn that another callback logs under the same names."""
        self._remarks.on_shared_prefix(callback, other, self._settings.log_prefix)

    def look_again(self) -> None:
        """Bring the selection up to date, between steps, with what was unfrozen."""
        self._planner.look_again()

    def before_batch(self, batch_idx: int) -> None:
        """Look again in the first batch of an epoch, and note what is there, to notice when nothing of it is moved."""
        if batch_idx == 0:
            self.look_again()
        self._silence.before_batch()
        self._reader.before_forward(self.selection.open)

    def after_batch(self) -> None:
        """Tell the user when parameters moved and nothing was centralized; there may have been no backward to read."""
        self._silence.after_batch()
        self._reader.after_forward()

    def after_epoch(self) -> None:
        """Tell the user when parameters moved in steps that were not seen."""
        self._silence.after_epoch()

    def hook_optimizers(self) -> None:
        """Put the target's hooks on the Trainer's optimizers, once on each."""
        for optimizer in self._trainer.optimizers:
            if optimizer not in self._hooks:
                inner = self._engine.inner_optimizers(optimizer)
                self._hooks[optimizer] = [handle for stepped in inner for handle in self._hook(optimizer, stepped)]

    def close(self) -> None:
        """Take all hooks off."""
        self._reader.after_forward()
        for handles in self._hooks.values():
            for handle in handles:
                handle.remove()
        self._hooks.clear()

    def before_backward(self, loss: Tensor) -> None:
        """Read off the graph of the loss what is only assumed so far, where it is due."""
        before = self.selection
        if not before.open:
            return
        tried = len(self._reader.tried)
        if self._reader.read(loss, before.open):
            self._planner.renew()
            self._compare(before, self.selection)
        if len(self._reader.tried) > tried or self.selection is not before:
            self._check_selection()
        self._reader.before_forward(self.selection.open)  # the batch may have more than one

    def end(self) -> None:
        """Act after the last batch."""
        if self._announcements:
            self._announcements.never_read(self.selection, self._reader.tried, bypassed=not self._backwards)

    def _compare(self, before: Selection, after: Selection) -> None:
        """Say what the graph has settled, and where it contradicts the table."""
        if self._announcements:
            self._announcements.read(before, after, self._reader.settled)
        now = {entry.parameter: entry for entry in after}
        for was in before.open:
            entry = now[was.parameter]
            if (
                was.layout is not None
                and was.layout.third_party
                and not same_layout(was.layout, entry.layout, entry.shape)
            ):
                self._remarks.on_contradiction(was, entry)

    def after_backward(self) -> None:
        """Note that there should be gradients now: a `training_step` that returns None leaves none."""
        self._backwards += 1
        self._silence.after_backward()

    def before_step(self, optimizer: Optimizer) -> None:
        """Act in `on_before_optimizer_step`."""
        if not self._engine.steps_now():
            return
        self._announced_steps.add(optimizer)
        if self._target == "gradient":
            self._steps.centralize_gradients(optimizer)
        elif optimizer not in self._hooks:
            raise MisconfigurationException(
                f"GradientCentralization(target={self._settings.target!r}) has no hook on a {type(optimizer).__name__} "
                "optimizer that appeared in the middle of an epoch. Replace optimizers between epochs, or use "
                "target='gradient'."
            )

    def measures(self) -> bool:
        """See :meth:`Observer.measures`: on the steps that the Trainer logs."""
        return self._logged.due()

    def moves(self, plan: Plan, stores: Sequence[Store], role: Role) -> None:
        """See :meth:`Observer.moves`."""
        self._silence.moves(plan, stores, role)

    def measured(self, plan: Plan, optimizer: Optimizer, role: Role, measurement: Measurement) -> None:
        """See :meth:`Observer.measured`: log it."""
        unscaled = self._logged.unscaled(optimizer, measurement) if role == "gradient" else measurement
        self._logged.log(plan, unscaled)

    def looked_for_gradients(self, plan: Plan, optimizer: Optimizer, found: bool) -> None:
        """See :meth:`Observer.looked_for_gradients`: warn where there should have been some."""
        if not found and self._expects_gradients(optimizer, plan):
            self._remarks.on_no_gradients(plan.store)
        self._backwards_before[optimizer] = self._backwards

    def closure_not_in_time(self, optimizer: Optimizer, what: str) -> None:
        """See :meth:`Observer.closure_not_in_time`: warn."""
        self._remarks.on_closure_not_in_time(what)

    def _hook(self, optimizer: Optimizer, stepped: Optimizer) -> list[RemovableHandle]:
        try:
            handles = self._steps.hook(optimizer, stepped)
        except TypeError as error:
            raise MisconfigurationException(f"GradientCentralization: {error} Use target='gradient'.") from error
        if self._target == "gradient" and stepped is optimizer and runs_hooks(optimizer):
            handles += after_step(optimizer, self._steps.when_active(self._check_step_was_announced))
        return handles

    def _expects_gradients(self, optimizer: Optimizer, plan: Plan) -> bool:
        """Whether a backward ran since the optimizer's last step, through Lightning or past it."""
        return self._backwards > self._backwards_before.get(optimizer, 0) or any(
            parameter.grad is not None for parameter in plan.parameters
        )

    def _announce_growth(self, selection: Selection) -> None:
        if self._announcements:
            self._announcements.growth(selection)

    def _check_selection(self, *, at_start: bool = False) -> None:
        """Refuse and remark what there is to; what the graph may still decide, not at the start."""
        settings, selection = self._settings, self.selection
        if (settings.include or settings.exclude) and not any(map(may_be_centralized, selection)):
            raise MisconfigurationException(
                f"GradientCentralization: include={settings.include!r} and exclude={settings.exclude!r} leave nothing "
                f"to centralize. Widen them, or remove the callback.\n{selection}"
            )
        self._engine.check_entries([entry for entry in selection if not (at_start and entry.open)])
        self._remarks.on_selection(selection, self._trainer.optimizers)

    def _check_step_was_announced(self, optimizer: Optimizer) -> None:
        if optimizer not in self._announced_steps:
            self._remarks.on_unannounced_step(optimizer)
        self._announced_steps.discard(optimizer)


def _build_selection(module: LightningModule, settings: Settings, engine: Engine, readings: Readings) -> Selection:
    """Select anew; in the middle of a fit too, where the optimizers changed or a lazy shape became known."""
    try:
        filters = (settings.include, settings.exclude, settings.fan_in_dims)
        return build_selection(module, *filters, engine.shape_of, engine.parameters_in, readings)
    except ValueError as error:
        raise MisconfigurationException(f"GradientCentralization: {error}") from error
