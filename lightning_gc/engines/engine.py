"""How the engine that drives the training holds the parameters of a module."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gc import kernels
from lightning_gc.engines.store import Store
from lightning_gc.engines.target import Target
from lightning_gc.engines.tensors import TensorStore
from lightning_gc.selection import Entry
from lightning_gc.selection.graph import Graph, Start


class Engine:
    """How a strategy holds parameters and optimizers: here, whole, on every rank."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy

    @staticmethod
    def check(strategy: Any, target: Target) -> None:
        """Refuse what cannot be.

        Raises:
            MisconfigurationException: It says why, and what to do.
        """

    def parameters_in(self, owner: nn.Module) -> Mapping[str, nn.Parameter | None]:
        """The parameters that stand in a module itself, by name."""
        return owner._parameters

    def shape_of(self, parameter: nn.Parameter) -> torch.Size:
        """The shape of the whole parameter."""
        return parameter.shape

    def held_by(self, optimizer: Optimizer) -> list[Any]:
        """The parameters, as :meth:`parameters_in` gives them, that an optimizer steps on, in order."""
        return parameters_of(optimizer)

    def inner_optimizers(self, optimizer: Optimizer) -> Sequence[Optimizer]:
        """The torch optimizers whose steps make up a step of `optimizer`: hooks go there."""
        return [optimizer]

    def target_in_step(self, target: Target) -> Target:
        """The target that is the same as `target` here, and acted on in the step itself, if there is such a one."""
        return target

    def leaves(self, module: nn.Module) -> Collection[Tensor]:
        """What the module's parameters are at the leaves of a graph."""
        return list(module.parameters())

    def starts(self, graph: Graph, parameters: Sequence[nn.Parameter]) -> dict[nn.Parameter, list[Start]]:
        """Where in a graph these parameters, as :meth:`parameters_in` gives them, stand; those that do."""
        return {
            parameter: [Start(graph.leaves[parameter], 0, tuple(self.shape_of(parameter)))]
            for parameter in parameters
            if parameter in graph.leaves
        }

    def make_store(self, entries: Sequence[Entry]) -> Store:
        """What reads and moves the means of these parameters."""
        return tensor_store(entries)

    def check_entries(self, entries: Sequence[Entry]) -> None:
        """Refuse, before training, what cannot be centralized as the engine holds it.

        Raises:
            MisconfigurationException: It names the parameter, says why, and what to do.
        """

    def steps_now(self) -> bool:
        """Whether the optimizer step that Lightning announces is really one."""
        return True

    def gradient_scale(self, optimizer: Optimizer) -> Any:
        """By what the gradients are still scaled when the step is announced: a number or a scalar; None by nothing."""
        return None


def tensor_store(entries: Sequence[Entry]) -> Store:
    """The store for tensors of their own: the kernel's where some are on a GPU that it runs on, else the plain one."""
    if not any(map(kernels.usable, {entry.parameter.device for entry in entries})):
        return TensorStore(entries)
    from lightning_gc.engines.fused import FusedTensorStore

    return FusedTensorStore(entries)


def parameters_of(optimizer: Optimizer) -> list[Any]:
    """All parameters in the groups of an optimizer, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
