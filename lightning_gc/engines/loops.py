"""Which engine holds a module's parameters in a loop without a Trainer: the parameters themselves tell."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_gc.engines.engine import Engine
from lightning_gc.equation.traits import is_dtensor


class Loop(NamedTuple):
    """What an engine asks of a strategy.

    Attributes:
        model: The module, as it is wrapped.
        root_device: Where sums are exchanged.
    """

    model: nn.Module
    root_device: torch.device


def engine_of(module: nn.Module, optimizer: Any) -> Engine:
    """The engine of a module that is ready to be trained, wrapped or not, by whomever.

    Raises:
        ValueError: Its parameters are held in a way that is not known, or not served without a Trainer.
    """
    parameters: list[Any] = list(module.parameters())
    deepspeed = [type(o).__name__ for o in (module, optimizer) if type(o).__module__.partition(".")[0] == "deepspeed"]
    if deepspeed or any(hasattr(p, "ds_id") or getattr(p, "_hp_mapping", None) is not None for p in parameters):
        raise ValueError(
            f"attach() does not serve DeepSpeed ({', '.join(deepspeed) or 'ZeRO'} holds the parameters): it steps partitions "
            "of its own copy of them. Train with Lightning's Trainer and the GradientCentralization callback, which do."
        )
    if any(kind.__name__ == "XlaFullyShardedDataParallel" for unit in module.modules() for kind in type(unit).__mro__):
        raise ValueError(
            "attach() does not serve XlaFullyShardedDataParallel: it holds shards, flat or padded, of which the shape of the "
            "whole parameter cannot be told. Let XLA shard the parameters instead (`torch_xla.distributed.spmd`)."
        )
    handles: list[Any] = [getattr(unit, "_handle", None) for unit in module.modules()]
    flats = [(handle, handle.flat_param) for handle in handles if hasattr(handle, "flat_param")]
    if flats:
        if any(handle._offload_params for handle, _ in flats):
            raise ValueError(
                "attach() does not serve FullyShardedDataParallel with CPU offload: the gradients are on the CPU, where the "
                "process group of the GPUs cannot add up what ranks hold of a weight vector. Train without offload."
            )
        from lightning_gc.engines.fsdp import FSDPEngine

        return FSDPEngine(Loop(module, flats[0][1].device))
    if any(map(is_dtensor, parameters)):
        from lightning_gc.engines.dtensor import DTensorEngine

        return DTensorEngine(Loop(module, _device_of_mesh(next(filter(is_dtensor, parameters)))))
    return Engine(Loop(module, parameters[0].device if parameters else torch.device("cpu")))


def check_entries(engine: Engine, entries: Any) -> None:
    """:meth:`Engine.check_entries`.

    Raises:
        ValueError: What the engine would tell the Trainer's user.
    """
    try:
        engine.check_entries(entries)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def _device_of_mesh(parameter: Any) -> torch.device:
    kind: str = parameter.device_mesh.device_type
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(kind, torch.get_device_module(kind).current_device())
