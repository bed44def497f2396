"""What the user is warned of in one fit, once each."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lightning_gc.engines import Role, Store
from lightning_gc.engines.target import Target
from lightning_gc.selection import Entry, Selection
from lightning_gc.selection.show import said_of
from lightning_gc.steps.plan import NO_OPTIMIZER


def may_be_centralized(entry: Entry) -> bool:
    """Whether a parameter is centralized now, once it is unfrozen, or maybe once its shape or its graph is known."""
    return entry.layout is not None or entry.open or isinstance(entry.parameter, UninitializedParameter)


class Remarks:
    """Warns of what is probably not meant, from rank zero, once in a fit for each kind of it."""

    def __init__(self) -> None:
        self._made: set[str] = set()

    def on_selection(self, selection: Selection, optimizers: Sequence[Optimizer]) -> None:
        """Warn when nothing is eligible or may yet become so, or when no optimizer was given any of it."""
        eligible = [entry for entry in selection if may_be_centralized(entry)]
        if not eligible:
            self._warn("nothing", f"no parameter has weight vectors to centralize, so nothing changes.\n{selection}")
        # Without any (Lightning has a mock then), they may be stepped in gradient hooks: see on_steps_elsewhere().
        elif any(o.param_groups for o in optimizers) and all(entry.reason == NO_OPTIMIZER for entry in eligible):
            self._warn(
                "nothing",
                f"no optimizer holds any of the {len(eligible)} selected parameters "
                f"({_first([entry.name for entry in eligible])}), so nothing changes. Return one from `configure_optimizers` "
                "that does, or widen the filters.",
            )

    def on_clipping(self, trainer: Trainer, target: Target) -> None:
        """Warn when clipping undoes what was done before it."""
        by_value = trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value"
        if target == "gradient" and by_value:
            self._warn(
                "clipping",
                "clipping by value comes after centralizing and makes the means non-zero again. Use "
                "target='clipped_gradient' to centralize after clipping.",
            )

    def on_shared_prefix(self, callback: str, other: str, prefix: str) -> None:
        """Warn that two callbacks log under the same names."""
        self._warn(
            "prefix",
            f"{callback} and {other} both log under log_prefix={prefix!r}, and each overwrites the values of the other. "
            "Give each a `log_prefix` of its own, or log_means='off'.",
        )

    def on_contradiction(self, before: Entry, after: Entry) -> None:
        """Warn that a layer does otherwise than the table of other packages' layers says."""
        assert before.layout is not None
        self._warn(
            "contradiction",
            f"the graph of the loss shows {after.name} {said_of(after)}, while {said_of(before)} are known of "
            f"{before.layout.source}. The graph is taken to be right. `fan_in_dims` overrides both.",
        )

    def on_unannounced_step(self, optimizer: Optimizer) -> None:
        """Warn that an optimizer was stepped past Lightning."""
        self._warn(
            "missed",
            f"{type(optimizer).__name__}.step() ran without Lightning's `on_before_optimizer_step`, so its gradients "
            "were not centralized. Step the optimizer that `self.optimizers()` returns (not with "
            "`use_pl_optimizer=False`), or use target='clipped_gradient'.",
        )

    def on_closure_not_in_time(self, what: str) -> None:
        """Warn that an optimizer did not call the closure it was given before it changed the weights."""
        self._warn("missed", what)

    def on_steps_elsewhere(self, names: Sequence[str]) -> None:
        """Warn that parameters of no optimizer of the Trainer's were trained."""
        self._warn(
            "elsewhere",
            f"{len(names)} parameters ({_first(names)}) were trained by an optimizer that the Trainer does not have, such "
            "as one that is stepped in gradient hooks, and nothing was centralized. Return it from "
            "`configure_optimizers`, or use lightning_gc.attach(optimizer, module) in place of the callback.",
        )

    def on_steps_unseen(self, names: Sequence[str]) -> None:
        """Warn that parameters of the Trainer's optimizers were trained by something else than their `step`."""
        self._warn(
            "missed",
            f"{len(names)} parameters ({_first(names)}) changed in training, and no `step()` of the optimizer that holds them "
            "was seen, so nothing was centralized. Where it wraps the optimizer that takes the step, and is called by other "
            "names (`first_step`, `second_step`), use lightning_gc.attach() on that one in place of the callback.",
        )

    def on_no_gradients(self, store: Store, role: Role = "gradient") -> None:
        """Warn when none of the selected, trainable parameters had a gradient, or were there to be moved."""
        trainable = [entry.name for entry in store.entries if entry.parameter.requires_grad]
        if trainable:
            self._warn(
                "no gradients",
                f"none of the {len(trainable)} selected parameters ({_first(trainable)}) "
                + ("had a gradient" if role == "gradient" else "was found among the weights")
                + " in an optimizer step, so nothing was centralized.",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._made:
            self._made.add(kind)
            rank_zero_warn(f"GradientCentralization: {message}")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
