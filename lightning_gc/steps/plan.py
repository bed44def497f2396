"""What to do for each optimizer: planned once, looked up at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import is_
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lightning_gc.engines import Store, parameters_of, tensor_store
from lightning_gc.selection import FROZEN, Entry, Selection, foreign_entry

NO_OPTIMIZER = "in no optimizer"

HeldBy = Callable[[Optimizer], list[Any]]


@dataclass
class Plan:
    """The selected parameters of one optimizer.

    Attributes:
        parameters: All the optimizer's parameters when the plan was made.
        store: Those of them that have fan-in dims.
        prefix: The prefix of the names that are logged.
        logged_names: The names of the parameters whose means are logged each by itself; none: the totals alone.
    """

    parameters: list[nn.Parameter]
    store: Store
    prefix: str
    logged_names: Sequence[str]

    def __post_init__(self) -> None:
        """Note which parameters had no shape yet: they are to be looked at again."""
        self._lazy = [p for p in self.parameters if isinstance(p, UninitializedParameter)]

    def is_current(self, now: Sequence[nn.Parameter]) -> bool:
        """Whether the optimizer, which has these now, still has those that the plan was made for, as they were."""
        same = len(now) == len(self.parameters) and all(map(is_, now, self.parameters))
        return same and all(isinstance(p, UninitializedParameter) for p in self._lazy)


class Planner:
    """Keeps the selection and the plans of one fit up to date with its optimizers.

    Args:
        build: Makes the selection of the module anew.
        optimizers: Tells the optimizers of the fit, which may change between epochs.
        takes_foreign: Whether parameters that only an optimizer holds are centralized.
        prefix: The prefix of the names that are logged.
        per_parameter: Whether each parameter is measured by itself.
        held_by: The parameters that an optimizer steps on, where a strategy has put others in its groups.
        make_store: What reads and moves the means of selected parameters, however the strategy holds them.
        on_new_selection: Called with each selection that is made after the first.
    """

    def __init__(
        self,
        build: Callable[[], Selection],
        optimizers: Callable[[], Sequence[Optimizer]],
        *,
        takes_foreign: bool = True,
        prefix: str = "gc",
        per_parameter: bool = False,
        held_by: HeldBy = parameters_of,
        make_store: Callable[[Sequence[Entry]], Store] = tensor_store,
        on_new_selection: Callable[[Selection], None] = lambda selection: None,
    ) -> None:
        self._build = build
        self._optimizers = optimizers
        self._takes_foreign = takes_foreign
        self._prefix = prefix
        self._per_parameter = per_parameter
        self._held_by = held_by
        self._make_store = make_store
        self._on_new_selection = on_new_selection
        self._plans: dict[Optimizer, Plan] = {}
        self.selection = match_to_optimizers(build(), optimizers(), takes_foreign, held_by)

    def plan_for(self, optimizer: Optimizer) -> Plan:
        """The plan of an optimizer; all are made anew when the parameters of one have changed."""
        plan = self._plans.get(optimizer)
        if plan is not None and plan.is_current(self._held_by(optimizer)):
            return plan
        # What changed may also be what is frozen, lazy, or held by which optimizer: look at everything again.
        optimizers = list(self._optimizers())
        if optimizer not in optimizers:
            optimizers.append(optimizer)
        self._select(optimizers)
        names = optimizer_names(optimizers)
        several = len(optimizers) > 1
        self._plans = {o: self._make(o, f"{self._prefix}/{names[o]}" if several else self._prefix) for o in optimizers}
        return self._plans[optimizer]

    def look_again(self) -> None:
        """Select anew if anything was unfrozen: its optimizer may have had it all along, as its plan has."""
        if any(entry.reason == FROZEN and entry.parameter.requires_grad for entry in self.selection):
            self._select(list(self._optimizers()))

    def renew(self) -> None:
        """Select anew, and plan when asked for it: more has become known of the parameters."""
        self._plans = {}
        self.selection = match_to_optimizers(self._build(), self._optimizers(), self._takes_foreign, self._held_by)

    def _select(self, optimizers: Sequence[Optimizer]) -> None:
        self.selection = match_to_optimizers(self._build(), optimizers, self._takes_foreign, self._held_by)
        self._on_new_selection(self.selection)

    def _make(self, optimizer: Optimizer, prefix: str) -> Plan:
        parameters = self._held_by(optimizer)
        # Frozen parameters are planned for too: until they are unfrozen, they have no gradient.
        wanted = {entry.parameter: entry for entry in self.selection if entry.layout is not None}
        entries = [wanted[parameter] for parameter in parameters if parameter in wanted]
        names = [entry.name for entry in entries] if self._per_parameter else []
        return Plan(parameters, self._make_store(entries), prefix, names)


def match_to_optimizers(
    selection: Selection,
    optimizers: Sequence[Optimizer],
    takes_foreign: bool,
    held_by: HeldBy = parameters_of,
) -> Selection:
    """Add what the optimizers tell: the parameters that none holds, and those that only they hold.

    The latter are centralized by the default rule, if `takes_foreign`, under a made-up name.
    """
    held = {parameter for optimizer in optimizers for parameter in held_by(optimizer)}
    entries = [
        replace(entry, reason=NO_OPTIMIZER, open=False) if entry.centralized and entry.parameter not in held else entry
        for entry in selection
    ]
    known = {entry.parameter for entry in selection}
    for optimizer, name in optimizer_names(optimizers).items():
        for index, parameter in enumerate(held_by(optimizer)):
            if parameter not in known:
                known.add(parameter)
                entry = foreign_entry(f"{name}.param_{index}", parameter)
                if entry.layout is not None and not takes_foreign:
                    entry = replace(entry, layout=None, reason="not included")
                entries.append(entry)
    return Selection(entries, selection.unmatched)


def optimizer_names(optimizers: Sequence[Optimizer]) -> Mapping[Optimizer, str]:
    """Names as LearningRateMonitor gives them: ``Adam``, ``SGD``, ``Adam-1``."""
    seen: dict[str, int] = {}
    names = {}
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        seen[kind] = seen.get(kind, 0) + 1
        names[optimizer] = kind if seen[kind] == 1 else f"{kind}-{seen[kind] - 1}"
    return names
