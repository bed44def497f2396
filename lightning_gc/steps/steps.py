"""What is done around an optimizer's step: by the callback, and by :func:`attach` in any other loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ParamSpec

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gc.engines import Means, Role, Store
from lightning_gc.engines.target import Target
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.steps.hooks import after_closure, around_step, runs_hooks
from lightning_gc.steps.plan import Plan, Planner

P = ParamSpec("P")


class Observer:
    """Is told what happens in the steps. This one wants to know nothing."""

    def measures(self) -> bool:
        """Whether to measure what is removed in the step that is being taken."""
        return False

    def moves(self, plan: Plan, stores: Sequence[Store], role: Role) -> None:
        """What these hold, the plan's own or parts of it, is about to be moved; none where none of it was found."""

    def measured(self, plan: Plan, optimizer: Optimizer, role: Role, measurement: Measurement) -> None:
        """What was removed."""

    def looked_for_gradients(self, plan: Plan, optimizer: Optimizer, found: bool) -> None:
        """Whether any of the plan's parameters had a gradient to centralize."""

    def selects_nothing(self, optimizer: Optimizer) -> None:
        """An optimizer takes a step on nothing that is selected."""

    def closure_not_in_time(self, optimizer: Optimizer, what: str) -> None:
        """An optimizer did not call its closure, or not before it moved the weights; `what` says so, and what to do."""


class Steps:
    """Centralizes the target in the steps of some optimizers.

    Args:
        planner: Which parameters of each optimizer, over which dims, and what holds them.
        target: What is centralized.
        observer: Is told.
        is_active: Whether to do anything in a step at present.
    """

    def __init__(
        self, planner: Planner, target: Target, observer: Observer, is_active: Callable[[], bool] = lambda: True
    ) -> None:
        self._planner = planner
        self._target = target
        self._observer = observer
        self._is_active = is_active
        self._means_before: dict[Optimizer, list[tuple[Plan, list[tuple[Store, Means]]]]] = {}

    def hook(self, optimizer: Optimizer, inner: Optimizer | None = None) -> list[RemovableHandle]:
        """Put on an optimizer what the target needs; nothing for gradients, which are centralized before the step.

        Args:
            optimizer: The one that the loop steps.
            inner: The one of torch's that takes its steps, or some part of each, where that is another one.

        Raises:
            TypeError: It has no step hooks.
        """
        stepped = optimizer if inner is None else inner
        if self._target == "gradient":
            return []
        if not runs_hooks(stepped):
            raise TypeError(
                f"target={self._target!r} needs the step hooks of torch.optim.Optimizer, which "
                f"{type(stepped).__name__} does not have."
            )
        if self._target == "clipped_gradient":
            return after_closure(
                stepped,
                self.when_active(partial(self._centralize_gradients_of, optimizer)),
                self.when_active(self._miss),
            )
        return around_step(
            stepped,
            self.when_active(partial(self._remember_means, optimizer)),
            self.when_active(partial(self._restore_means, optimizer)),
        )

    def centralize_gradients(self, optimizer: Optimizer) -> None:
        """Centralize the gradients of all of an optimizer's parameters, before its step."""
        plan = self._planner.plan_for(optimizer)
        if not plan.store.entries:
            self._observer.selects_nothing(optimizer)
            return
        self._observer.moves(plan, [plan.store], "gradient")
        found = self._recentre(plan, plan.store, optimizer, "gradient", may_measure=True)
        self._observer.looked_for_gradients(plan, optimizer, found)

    def _centralize_gradients_of(self, optimizer: Optimizer, stepped: Optimizer, first: bool) -> None:
        """Those that `stepped` is about to use; measure them only the `first` time in a step."""
        plan = self._planner.plan_for(optimizer)
        if not plan.store.entries:
            self._observer.selects_nothing(optimizer)
            return
        stores = plan.store.moved_by(stepped)
        self._observer.moves(plan, stores, "gradient")
        if stores:
            found = [self._recentre(plan, store, stepped, "gradient", may_measure=first) for store in stores]
            self._observer.looked_for_gradients(plan, optimizer, any(found))

    def _miss(self, stepped: Optimizer) -> None:
        self._observer.closure_not_in_time(
            stepped,
            f"{type(stepped).__name__}.step() was given a closure and did not call it, or moved the weights before it did, so "
            "what it did was not centralized. Call it without a closure; or, where it wraps the optimizer that takes the step, "
            "as sharpness-aware minimisation does, use lightning_gc.attach() on that one.",
        )

    def when_active(self, act: Callable[P, None]) -> Callable[P, None]:
        """`act`, where anything is to be done at present."""

        def act_if_active(*args: P.args, **kwargs: P.kwargs) -> None:
            if self._is_active():
                act(*args, **kwargs)

        return act_if_active

    def _remember_means(self, optimizer: Optimizer, stepped: Optimizer) -> None:
        plan = self._planner.plan_for(optimizer)
        means = [(store, store.means("weight")) for store in plan.store.moved_by(stepped)]
        # A stack: where a subclass calls the step of its base, torch runs the hooks around both.
        self._means_before.setdefault(stepped, []).append((plan, means))

    def _restore_means(self, optimizer: Optimizer, stepped: Optimizer, first: bool) -> None:
        if not self._means_before.get(stepped):
            self._miss(stepped)
            return
        # With the plan of then: the optimizer may have been given more parameters since.
        plan, before = self._means_before[stepped].pop()
        if not plan.store.entries:
            self._observer.selects_nothing(optimizer)
            return
        self._observer.moves(plan, [store for store, _ in before], "weight")
        for store, means in before:
            self._recentre(plan, store, stepped, "weight", means, may_measure=first)

    def _recentre(
        self, plan: Plan, store: Store, stepped: Optimizer, role: Role, to: Means | None = None, *, may_measure: bool
    ) -> bool:
        if not may_measure or not self._observer.measures():
            return store.recentre_(role, to)
        measurement = store.recentre_measured_(role, to)
        if measurement is None:
            return False
        whole = measurement if store is plan.store else plan.store.gathered(store, measurement)
        if whole is not None:
            self._observer.measured(plan, stepped, role, whole)
        return True
