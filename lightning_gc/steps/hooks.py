"""What is centralized, and where in the optimizer's step it is done.

``"gradient"`` needs no hook of the optimizer's own: Lightning calls ``on_before_optimizer_step`` after
unscaling and before clipping. The others are put around ``Optimizer.step``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

OnStep = Callable[[Optimizer], None]

OnNestedStep = Callable[[Optimizer, bool], None]
"""Also whether it is the first call: where the step of a subclass calls that of its base, torch runs the hooks around
both, and the second call finds what the first one left."""


def after_closure(optimizer: Optimizer, act: OnNestedStep) -> list[RemovableHandle]:
    """Call `act` where `optimizer` is about to use its gradients.

    That is after the closure, each time it is called: in Lightning it runs backward *and* clipping
    inside ``Optimizer.step``. Where the gradients are there already (with a gradient scaler, or in
    a step without a closure), it is at the start of the step.
    """
    acted = False

    def act_on_gradients() -> None:
        nonlocal acted
        act(optimizer, not acted)
        acted = True

    def renew(*_: Any) -> None:
        nonlocal acted
        acted = False

    def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _around_closure(args, kwargs, renew, act_on_gradients)

    return [optimizer.register_step_pre_hook(before_step), optimizer.register_step_post_hook(renew)]


def around_step(optimizer: Optimizer, before: OnStep, after: OnNestedStep) -> list[RemovableHandle]:
    """Call `before` and `after` around what ``optimizer.step`` does; neither where a scaler skips the step.

    `before` is called after the *first* call of the closure: what a training step or a hook does to the
    weights is not the optimizer's update.
    """
    entered = False

    def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        called = False

        def before_once() -> None:
            nonlocal called, entered
            if not called:
                called = entered = True
                before(optimizer)

        return _around_closure(args, kwargs, lambda: None, before_once)

    def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal entered
        first, entered = entered, False
        after(optimizer, first)

    return [optimizer.register_step_pre_hook(before_step), optimizer.register_step_post_hook(after_step)]


def _around_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], before: Callable[[], None], after: Callable[[], None]
) -> Any:
    """Wrap the closure among the arguments of a step between `before` and `after`; without one, call `after` now.

    Returns:
        What a step pre-hook returns: the new arguments, or None to leave them.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        after()
        return None

    def wrapped() -> Any:
        before()
        result = closure()
        after()
        return result

    if "closure" in kwargs:
        return args, {**kwargs, "closure": wrapped}
    return (args[0], wrapped, *args[2:]), kwargs


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
