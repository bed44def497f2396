"""Which engine drives the training, by Lightning's strategies."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_gc.engines import Engine
from lightning_gc.engines.target import Target

# By name, not by class: `pytorch_lightning` has classes of its own, and imports of some fail without their backend.
# The first that a strategy is decides: DeepSpeedStrategy is a DDPStrategy.
_ENGINES = {
    "DeepSpeedStrategy": "lightning_gc.engines.deepspeed.DeepSpeedEngine",
    "ModelParallelStrategy": "lightning_gc.engines.dtensor.DTensorEngine",
    "FSDPStrategy": "lightning_gc.engines.fsdp.FSDPEngine",
    "SingleDeviceXLAStrategy": "lightning_gc.engines.engine.Engine",
    "XLAStrategy": "lightning_gc.engines.engine.Engine",
    "SingleDeviceStrategy": "lightning_gc.engines.engine.Engine",
    "DDPStrategy": "lightning_gc.engines.engine.Engine",
}


def find_engine(strategy: Any) -> type[Engine]:
    """How a strategy holds gradients.

    Raises:
        MisconfigurationException: That is not known. It names the strategy and what to do.
    """
    kinds = {kind.__name__ for kind in type(strategy).__mro__}
    for kind, engine in _ENGINES.items():
        if kind in kinds:
            module, _, name = engine.rpartition(".")
            found: type[Engine] = getattr(import_module(module), name)
            return found
    raise MisconfigurationException(
        f"GradientCentralization does not know how {type(strategy).__name__} holds gradients, and would silently change "
        "nothing. Train on a single device or with a `ddp`, `xla`, `fsdp`, `deepspeed` or `ModelParallelStrategy` strategy, or "
        "remove the callback."
    )


def check_strategy(trainer: Trainer, target: Target) -> None:
    """Refuse a strategy that is not known to let gradients be seen as `target` needs it.

    Raises:
        MisconfigurationException: It names the strategy, why, and what to do.
    """
    find_engine(trainer.strategy).check(trainer.strategy, target)
