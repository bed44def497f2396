"""What Gradient Centralization removes in the first steps of a run, as its callback logs it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from lightning.pytorch import Callback, Trainer

from lightning_gc import GradientCentralization

STEPS = 50  # that a rule may look at
EVERY = 5


class FirstNorms(Callback):
    """Averages the logged shares of the gradient's norm that were removed, and stops the run after `STEPS` steps.

    The run is one of full length until then: its learning rates are those that its schedule begins with.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step % EVERY == 0:
            for name, value in trainer.callback_metrics.items():
                if name.startswith("gc/removed_norm"):
                    self.values[name.removeprefix("gc/removed_norm").lstrip("/") or "total"].append(float(value))
        trainer.should_stop = trainer.global_step >= STEPS

    def means(self) -> dict[str, float]:
        """By parameter, and of all as "total"."""
        return {name: sum(values) / len(values) for name, values in self.values.items()}


def observers() -> tuple[FirstNorms, list[Callback]]:
    """The collector, and all callbacks of a run of first steps."""
    norms = FirstNorms()
    return norms, [GradientCentralization(log_means="per_parameter"), norms]
