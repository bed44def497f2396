"""Notices a callback that changes nothing, whatever the reason."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gc.engines import Role, Store
from lightning_gc.selection import Entry, Selection
from lightning_gc.steps.plan import NO_OPTIMIZER, Plan
from lightning_gc.training.remarks import Remarks


class Silence:
    """Tells the user, once, when parameters moved and nothing of them was centralized on any rank.

    Args:
        selection: Gives the selection in force.
        remarks: Through which the user is told.
    """

    def __init__(self, selection: Callable[[], Selection], remarks: Remarks) -> None:
        self._selection = selection
        self._remarks = remarks
        self._backward_ran = False
        self._found: dict[Store, bool] = {}
        self._asked: set[Store] = set()
        self._versions: list[tuple[Entry, int]] = []

    def before_batch(self) -> None:
        """Note how often the parameters that no optimizer of the Trainer holds were changed, until something steps."""
        self._backward_ran = False
        left = [] if self._asked else [e for e in self._selection() if e.reason == NO_OPTIMIZER]
        self._versions = [(entry, entry.parameter._version) for entry in left]

    def after_backward(self) -> None:
        """Note that there should be gradients now."""
        self._backward_ran = True

    def moves(self, plan: Plan, store: Store, role: Role) -> None:
        """Note whether this rank has anything to move, in a step of a plan that was not asked about."""
        if plan.store not in self._asked:
            self._found[plan.store] = self._found.get(plan.store, False) or store.holds_any(role)

    def after_batch(self) -> None:
        """Ask the other ranks about the plans that were acted on for the first time, never while an exception is handled."""
        found, self._found = self._found, {}
        if not self._backward_ran:
            return
        for store, here in found.items():
            self._asked.add(store)
            if not store.on_any_rank(here):
                self._remarks.on_no_gradients(store)
        if not self._asked:
            moved = [entry.name for entry, version in self._versions if entry.parameter._version != version]
            self._remarks.on_steps_elsewhere(moved)
