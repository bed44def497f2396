"""Notices a callback that changes nothing, whatever the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_gc.engines import Role, Store
from lightning_gc.selection import Entry, Selection
from lightning_gc.steps.plan import NO_OPTIMIZER, Plan
from lightning_gc.training.remarks import Remarks


class Silence:
    """Tells the user, once, when parameters moved and nothing of them was centralized on any rank.

    A rank cannot know that by itself where it holds a part of the parameters alone. So the ranks ask each other: once for
    each plan, after the first batch in which its optimizer stepped, where an exception is handled on none of them.

    Args:
        selection: Gives the selection in force.
        remarks: Through which the user is told.
    """

    def __init__(self, selection: Callable[[], Selection], remarks: Remarks) -> None:
        self._selection = selection
        self._remarks = remarks
        self._backward_ran = False
        self._found: dict[tuple[Store, Role], bool] = {}
        self._asked: set[tuple[Store, Role]] = set()
        self._watches = True
        self._versions: list[tuple[Entry, int]] = []
        self._any_step = False
        self._in_epoch: list[tuple[Entry, int]] = []
        self._any_backward = False

    def before_batch(self) -> None:
        """Where the Trainer's optimizers hold nothing to centralize, note how often each parameter was changed.

        And that of what they hold, before the first batch, to see at the end of the epoch whether steps were missed.
        """
        self._backward_ran = False
        if not self._any_backward:
            self._in_epoch = [(e, e.parameter._version) for e in self._selection() if e.centralized]
        if self._watches:
            selection = list(self._selection())
            # Of some that no optimizer holds, who knows: a target network is not trained, and changes too.
            held = any(entry.centralized for entry in selection)
            left = [] if held else [entry for entry in selection if entry.reason == NO_OPTIMIZER]
            self._versions = [(entry, entry.parameter._version) for entry in left]

    def after_backward(self) -> None:
        """Note that there should be gradients now."""
        self._backward_ran = self._any_backward = True

    def moves(self, plan: Plan, stores: Sequence[Store], role: Role) -> None:
        """Note whether this rank has anything to move, in a step of a plan that was not asked about."""
        self._any_step = True
        key = (plan.store, role)
        if key not in self._asked:
            self._found[key] = self._found.get(key, False) or any(store.holds_any(role) for store in stores)

    def after_batch(self) -> None:
        """Ask about the plans that were acted on for the first time, and look at what no optimizer holds."""
        found, self._found = self._found, {}
        if not self._backward_ran:
            return
        for (store, role), here in found.items():
            self._asked.add((store, role))
            if not store.on_any_rank(here):
                self._remarks.on_no_gradients(store, role)
        moved = [entry.name for entry, version in self._versions if entry.parameter._version != version]
        if moved:
            self._remarks.on_steps_elsewhere(moved)
        if found or moved:
            self._watches, self._versions = False, []

    def after_epoch(self) -> None:
        """Look for parameters that were moved in the first epoch, by steps that are taken in another way than by `step`.

        In one batch it could be a training step that changes weights by hand, and accumulates.
        """
        if self._any_backward and not self._any_step:
            # What the graph has shown since to be no set of weight vectors is not missed.
            still = {entry.parameter for entry in self._selection() if entry.centralized}
            before = [(entry, version) for entry, version in self._in_epoch if entry.parameter in still]
            moved = [entry.name for entry, version in before if entry.parameter._version != version]
            if moved:
                self._remarks.on_steps_unseen(moved)
        self._in_epoch = []
