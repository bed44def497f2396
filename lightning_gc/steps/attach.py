"""Gradient Centralization in a loop without a Trainer: plain PyTorch, Fabric, Accelerate, or anyone's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_gc.engines.loops import check_entries, engine_of
from lightning_gc.selection import Selection, build_selection
from lightning_gc.selection.filters import FilterArgument, parse_fan_in_dims, parse_filters
from lightning_gc.steps.plan import NO_OPTIMIZER, Plan, Planner
from lightning_gc.steps.steps import Observer, Steps

AttachedTarget = Literal["clipped_gradient", "update"]

# By name: to unwrap what Fabric or Accelerate made needs neither of them. Optimizers that wrap another one to add an
# update of their own (Lookahead, say) are no such wrappers: their own step is what there is to centralize.
_OPTIMIZER_WRAPPERS = ("_FabricOptimizer", "AcceleratedOptimizer", "LightningOptimizer")


class Attached:
    """What :func:`attach` returns.

    Attributes:
        optimizer: The optimizer that the hooks are on, out of its wrappers.
    """

    def __init__(self, optimizer: Optimizer, planner: Planner, target: AttachedTarget) -> None:
        self.optimizer = optimizer
        self._planner = planner
        self._steps = Steps(planner, target, _Warner())
        self._hooks = self._steps.hook(optimizer)

    @property
    def selection(self) -> Selection:
        """Which parameters are centralized, over which dims, and why the others are not; print it to see a table."""
        return self._planner.selection

    def centralize_(self) -> None:
        """Centralize the gradients that are there, in place: to be called after backward and before clipping.

        It works after :meth:`remove`, too: then it is all that is done, which is the callback's ``target="gradient"``.
        """
        self._steps.centralize_gradients(self.optimizer)

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __repr__(self) -> str:
        return f"<attached to {type(self.optimizer).__name__}: {self.selection.summary()}>"


def attach(
    optimizer: Any,
    module: nn.Module,
    target: AttachedTarget = "clipped_gradient",
    include: FilterArgument = (),
    exclude: FilterArgument = (),
    fan_in_dims: Mapping[str, int | Sequence[int]] = {},
) -> Attached:
    r"""Centralize in every step of an optimizer, in any loop: what the callback does, without a Trainer.

    With e the normalised all-ones vector of a weight vector's length, :math:`P = I - e e^\top` (Yong et al., 2020,
    arXiv 2004.01461, equation 3) is applied to the gradients as the optimizer gets them, or to its whole update.

    Args:
        optimizer: A ``torch.optim.Optimizer``, also as Fabric or Accelerate wraps it.
        module: The module whose parameters it steps on, as the loop uses it: plain, compiled, wrapped by Fabric,
            Accelerate, ``DistributedDataParallel`` or ``FullyShardedDataParallel``, sharded by ``fully_shard`` or
            ``parallelize_module``. Attach after wrapping.
        target: ``"clipped_gradient"``: the gradients at the start of the step, after whatever the loop did to them (or
            after each call of a closure); ``"update"``: what the step adds to the weights, decay and momentum included.
        include: As in :func:`select`; names are those of your own module, without what wraps it.
        exclude: As in :func:`select`.
        fan_in_dims: As in :func:`select`. It sees no loss, so that of a layer of no known class the assumption stands, where
            the callback reads the graph: look at ``select(module, loss=loss)``, and say here (or in `exclude`) what it shows.

    Only what ``optimizer.step()`` does is seen. Of one that takes its steps by other names (``first_step`` and ``second_step``
    of sharpness-aware minimisation), attach to the optimizer that it wraps.

    Returns:
        A handle: ``handle.selection``, ``handle.centralize_()``, ``handle.remove()``.

    Raises:
        TypeError: An argument has the wrong type, or the optimizer has no step hooks.
        ValueError: `target` is not one of the two; an entry matches nothing, dims are out of range, or the filters leave
            nothing; the module has none of the optimizer's parameters, or holds them in a way that is not served.

    Example:
        >>> import torch
        >>> from lightning_gc import attach
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        >>> handle = attach(optimizer, net, target="update", exclude="2")
        >>> before = net[0].weight.mean(1)
        >>> net(torch.rand(16, 4)).square().sum().backward()
        >>> optimizer.step()
        >>> bool((net[0].weight.mean(1) - before).abs().max() < 1e-6)
        True
        >>> handle.remove()
    """
    _check_target(target)
    if not isinstance(module, nn.Module):
        raise TypeError(f"attach() takes a torch.nn.Module after the optimizer, got {type(module).__name__}.")
    optimizer = _unwrapped_optimizer(optimizer)
    wrapped = _out_of_fabric(module, "_forward_module")
    engine = engine_of(wrapped, optimizer)
    own = _own_module(module)
    filters = parse_filters(include, "include"), parse_filters(exclude, "exclude"), parse_fan_in_dims(fan_in_dims)

    def build() -> Selection:
        return build_selection(own, *filters, engine.shape_of, engine.parameters_in)

    if not {entry.parameter for entry in build()}.intersection(engine.held_by(optimizer)):
        raise ValueError(
            f"attach() was given an optimizer that holds no parameter of the {type(own).__name__}. Make it of the module's "
            "parameters, and attach after both were wrapped or sharded."
        )
    planner = Planner(
        build,
        lambda: [optimizer],
        takes_foreign=not include,
        held_by=engine.held_by,
        make_store=engine.make_store,
    )
    if not any(entry.layout is not None and entry.reason != NO_OPTIMIZER for entry in planner.selection):
        raise ValueError(
            f"attach() has nothing to centralize. Widen `include` and `exclude`, or leave it out.\n{planner.selection}"
        )
    check_entries(engine, planner.selection)
    return Attached(optimizer, planner, target)


class _Warner(Observer):
    """Warns of what is probably not meant, once."""

    def __init__(self) -> None:
        self._warned = False

    def looked_for_gradients(self, plan: Plan, optimizer: Optimizer, found: bool) -> None:
        trainable = [entry.name for entry in plan.store.entries if entry.parameter.requires_grad]
        if not found and trainable:
            self._warn(
                f"none of the {len(trainable)} selected parameters ({trainable[0]}, ...) had a gradient in a step, so "
                "nothing was centralized."
            )

    def selects_nothing(self, optimizer: Optimizer) -> None:
        self._warn(
            f"{type(optimizer).__name__} takes a step on other parameters than it had when attach() was called, of which none "
            "is selected, so nothing was centralized. Attach after everything was wrapped or sharded; DeepSpeed is not served."
        )

    def closure_not_in_time(self, optimizer: Optimizer, what: str) -> None:
        self._warn(what)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"Gradient Centralization: {what}", stacklevel=2)


def _check_target(target: Any) -> None:
    if target == "gradient":
        raise ValueError(
            "attach(target='gradient'): in a loop of your own nothing is called between backward and clipping. Attach with "
            "target='clipped_gradient', and call handle.centralize_() there; after handle.remove(), that alone is done."
        )
    if target not in get_args(AttachedTarget):
        raise ValueError(f"attach(target={target!r}): allowed are {', '.join(map(repr, get_args(AttachedTarget)))}.")


def _unwrapped_optimizer(optimizer: Any) -> Any:
    while any(kind.__name__ in _OPTIMIZER_WRAPPERS for kind in type(optimizer).__mro__):
        optimizer = optimizer.optimizer
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(f"attach() takes an optimizer first, got {type(optimizer).__name__}.")
    return optimizer


def _out_of_fabric(module: nn.Module, attribute: str) -> Any:
    """What a module of Fabric's wraps: its ``_forward_module`` is what is trained, ``_original_module`` what was given."""
    while any(kind.__name__ == "_FabricModule" for kind in type(module).__mro__):
        module = getattr(module, attribute)
    return module


def _own_module(module: nn.Module) -> Any:
    """The user's module: names are its."""
    own: Any = _out_of_fabric(module, "_original_module")
    while isinstance(own, DistributedDataParallel) or hasattr(own, "_orig_mod"):  # compiled before or after
        own = own.module if isinstance(own, DistributedDataParallel) else own._orig_mod
    return own
