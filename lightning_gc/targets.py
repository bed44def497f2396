"""What is centralized, and where in the optimizer's step it is done.

``"gradient"`` needs no hook of the optimizer's own: Lightning calls ``on_before_optimizer_step`` after
unscaling and before clipping. The others are put around ``Optimizer.step``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Target = Literal["gradient", "clipped_gradient", "update"]
TARGETS: tuple[str, ...] = get_args(Target)

OnStep = Callable[[Optimizer], None]


def after_closure(optimizer: Optimizer, act: OnStep) -> list[RemovableHandle]:
    """Call `act` where `optimizer` is about to use its gradients.

    That is after the closure, each time it is called: in Lightning it runs backward *and* clipping
    inside ``Optimizer.step``. Where the gradients are there already (with a gradient scaler, or in
    a step without a closure), it is at the start of the step.
    """

    def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            act(optimizer)
            return None

        def closure_then_act() -> Any:
            result = closure()
            act(optimizer)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_then_act}
        return (args[0], closure_then_act, *args[2:]), kwargs

    return [optimizer.register_step_pre_hook(before_step)]


def around_step(optimizer: Optimizer, before: OnStep, after: OnStep) -> list[RemovableHandle]:
    """Call `before` and `after` around ``optimizer.step``; neither where a scaler skips the step."""
    return [
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: before(optimizer)),
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: after(optimizer)),
    ]


def after_step(optimizer: Optimizer, act: OnStep) -> list[RemovableHandle]:
    """Call `act` after ``optimizer.step``."""
    return [optimizer.register_step_post_hook(lambda optimizer, args, kwargs: act(optimizer))]
