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


def runs_hooks(optimizer: Any) -> bool:
    """Whether torch runs step hooks around the steps of `optimizer`; where it needs no more than to be told, tell it."""
    if not hasattr(optimizer, "register_step_post_hook") or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        return False
    # Torch does so in Optimizer.__init__, or else in the first zero_grad(), which may come after the first step, or to
    # Lightning's wrapper. Optimizers that wrap another one may leave the former out, as timm's Lookahead does.
    if isinstance(optimizer, Optimizer):
        optimizer._patch_step_function()
    return True


def after_closure(
    optimizer: Optimizer, act: OnNestedStep, closure_not_in_time: OnStep = lambda optimizer: None
) -> list[RemovableHandle]:
    """Call `act` where `optimizer` is about to use its gradients.

    That is after the closure, each time it is called: in Lightning it runs backward *and* clipping
    inside ``Optimizer.step``. Where the gradients are there already (with a gradient scaler, or in
    a step without a closure), it is at the start of the step. `closure_not_in_time` is called after a step without any of it.
    """
    acted = acted_in_step = False

    def act_on_gradients() -> None:
        nonlocal acted, acted_in_step
        act(optimizer, not acted)
        acted = acted_in_step = True

    def check(optimizer: Optimizer) -> None:
        nonlocal acted_in_step
        if not acted_in_step:
            closure_not_in_time(optimizer)
        acted_in_step = False

    def renew(*_: Any) -> None:
        nonlocal acted
        acted = False

    def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _around_closure(args, kwargs, renew, act_on_gradients)

    handles = [optimizer.register_step_pre_hook(before_step), optimizer.register_step_post_hook(renew)]
    return handles + after_step(optimizer, check)


def around_step(optimizer: Optimizer, before: OnStep, after: OnNestedStep) -> list[RemovableHandle]:
    """Call `before` and `after` around what ``optimizer.step`` does; neither where a scaler skips the step.

    `before` is called after the *first* call of the closure: what a training step or a hook does to the
    weights is not the optimizer's update. It is not called at all where the optimizer has moved the weights by then, as
    sharpness-aware minimisation does: these are not the weights that the step starts from.
    """
    entered = False

    def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        called = False
        at_start = _versions(optimizer)

        def look() -> None:
            nonlocal called
            called = called or _versions(optimizer) != at_start

        def before_once() -> None:
            nonlocal called, entered
            if not called:
                called = entered = True
                before(optimizer)

        return _around_closure(args, kwargs, look, before_once)

    def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal entered
        first, entered = entered, False
        after(optimizer, first)

    return [optimizer.register_step_pre_hook(before_step), optimizer.register_step_post_hook(after_step)]


def _versions(optimizer: Optimizer) -> list[int]:
    """How often each parameter was changed in place."""
    return [parameter._version for group in optimizer.param_groups for parameter in group["params"]]


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
