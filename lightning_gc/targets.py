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
        return _act_after_closure(args, kwargs, lambda: act(optimizer))

    return [optimizer.register_step_pre_hook(before_step)]


def around_step(optimizer: Optimizer, before: OnStep, after: OnStep) -> list[RemovableHandle]:
    """Call `before` and `after` around what ``optimizer.step`` does; neither where a scaler skips the step.

    `before` is called after the *first* call of the closure: what a training step or a hook does to the
    weights is not the optimizer's update.
    """

    def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        called = False

        def before_once() -> None:
            nonlocal called
            if not called:
                called = True
                before(optimizer)

        return _act_after_closure(args, kwargs, before_once)

    return [
        optimizer.register_step_pre_hook(before_step),
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: after(optimizer)),
    ]


def _act_after_closure(args: tuple[Any, ...], kwargs: dict[str, Any], act: Callable[[], None]) -> Any:
    """Wrap the closure among the arguments of a step, to call `act` after it; without one, call it now.

    Returns:
        What a step pre-hook returns: the new arguments, or None to leave them.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        act()
        return None

    def closure_then_act() -> Any:
        result = closure()
        act()
        return result

    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure_then_act}
    return (args[0], closure_then_act, *args[2:]), kwargs


def after_step(optimizer: Optimizer, act: OnStep) -> list[RemovableHandle]:
    """Call `act` after ``optimizer.step``, once where torch runs the hooks around it and the step of its base.

    Not any more after a step that raised: good enough for a check, which is what this is for.
    """
    depth = 0

    def enter(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        depth += 1

    def leave(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            act(optimizer)

    return [optimizer.register_step_pre_hook(enter), optimizer.register_step_post_hook(leave)]
