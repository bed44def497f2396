"""Which of Lightning's strategies leave gradients whole on every rank."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

# By name, not by class: `pytorch_lightning` has classes of its own, and imports of some fail without their backend.
_WHOLE = frozenset({"SingleDeviceStrategy", "DDPStrategy"})
_SHARDED = frozenset({"DeepSpeedStrategy"})  # although it is a DDPStrategy


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy that is not known to let gradients be seen whole.

    Raises:
        MisconfigurationException: It names the strategy and what to do.
    """
    kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    if kinds & _WHOLE and not kinds & _SHARDED:
        return
    raise MisconfigurationException(
        f"GradientCentralization does not know how {type(trainer.strategy).__name__} holds gradients, and would "
        "silently change nothing. Train on a single device or with a `ddp` strategy, or remove the callback."
    )
