"""FSDP1 (``FullyShardedDataParallel``): flat parameters, cut among the ranks anywhere.

A unit flattens its parameters into one, pads it and gives each rank a chunk. With ``use_orig_params`` the
optimizer holds one-dimensional views of the chunk in place of the parameters, without it the flat
parameters themselves. What is read here of torch's flat parameters is not public, but has not changed
since torch 2.1, and is checked in the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.fsdp import FlatParameter, FullyShardedDataParallel
from torch.optim import Optimizer

from lightning_gc.engines.engine import Engine
from lightning_gc.engines.fragments import Fragment, FragmentPiece, spans_of_chunks
from lightning_gc.engines.mixed import store_of
from lightning_gc.engines.store import Role, Store
from lightning_gc.engines.target import Target
from lightning_gc.selection import Entry
from lightning_gc.selection.graph import Graph, Start


@dataclass(frozen=True)
class _Flattened:
    """One parameter in a flat one: its index there, and what stands for it in the selection."""

    handle: Any
    index: int
    parameter: nn.Parameter

    @property
    def flat(self) -> Any:
        return self.handle.flat_param


class FSDPEngine(Engine):
    """The units of a model that is wrapped in FullyShardedDataParallel."""

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy)
        self._in_units: dict[nn.Parameter, _Flattened] = {}  # all of them
        self._flattened: dict[nn.Parameter, _Flattened] = {}  # those that are cut
        self._of_flat: dict[nn.Parameter, list[nn.Parameter]] = {}
        self._stand_ins: dict[nn.Module, dict[str, nn.Parameter]] = {}
        for module in strategy.model.modules():
            handle = getattr(module, "_handle", None)
            if isinstance(module, FullyShardedDataParallel) and handle is not None:
                self._add_unit(handle)

    @staticmethod
    def check(strategy: Any, target: Target) -> None:
        """See :meth:`Engine.check`."""
        if strategy.cpu_offload is not None and strategy.cpu_offload.offload_params:
            raise MisconfigurationException(
                "GradientCentralization does not work with the CPU offload of FSDP: gradients are on the CPU then, "
                "where the process group of the GPUs cannot add up what ranks hold of a weight vector. Use FSDP without "
                "`cpu_offload`, or ModelParallelStrategy with FSDP2, or remove the callback."
            )

    def parameters_in(self, owner: nn.Module) -> Mapping[str, nn.Parameter | None]:
        """See :meth:`Engine.parameters_in`."""
        own = {name: p for name, p in owner._parameters.items() if not isinstance(p, FlatParameter)}
        stand_ins = self._stand_ins.get(owner, {})
        for parameter in stand_ins.values():
            parameter.requires_grad_(self._flattened[parameter].flat.requires_grad)
        return {**own, **stand_ins}

    def shape_of(self, parameter: nn.Parameter) -> torch.Size:
        """See :meth:`Engine.shape_of`."""
        found = self._flattened.get(parameter)
        return parameter.shape if found is None else found.flat._shapes[found.index]

    def held_by(self, optimizer: Optimizer) -> list[Any]:
        """See :meth:`Engine.held_by`."""
        return [p for held in super().held_by(optimizer) for p in self._of_flat.get(held, (held,))]

    def check_entries(self, entries: Sequence[Entry]) -> None:
        """See :meth:`Engine.check_entries`."""
        for found in self._in_units.values():
            if found.flat._param_extensions[found.index] is not None:
                raise MisconfigurationException(
                    f"GradientCentralization does not work on {found.flat._fqns[found.index]}: it was sharded (by tensor "
                    "parallelism) before FullyShardedDataParallel flattened it, which knows its local part alone, and so no "
                    "whole weight vector. Use FSDP2 (`fully_shard`, ModelParallelStrategy) around tensor parallelism."
                )

    def leaves(self, module: nn.Module) -> list[Tensor]:
        """See :meth:`Engine.leaves`: the flat parameters, which `use_orig_params` hides."""
        return [*module.parameters(), *{found.flat for found in self._in_units.values()}]

    def starts(self, graph: Graph, parameters: Sequence[nn.Parameter]) -> dict[nn.Parameter, list[Start]]:
        """See :meth:`Engine.starts`: a forward splits the flat parameter, and views each part as a parameter."""
        starts = super().starts(graph, parameters)
        for parameter in parameters:
            found = self._in_units.get(parameter)
            if found is not None and found.flat in graph.leaves:
                part = [i for i, padding in enumerate(found.flat._is_padding_mask) if not padding][found.index]
                uses = graph.uses(graph.leaves[found.flat], 0)
                shape = tuple(found.flat._shapes[found.index])
                starts[parameter] = [Start(use.user, part, shape) for use in uses]
        return starts

    def make_store(self, entries: Sequence[Entry]) -> Store:
        """See :meth:`Engine.make_store`."""
        cut = [FragmentPiece(self._fragment(entry)) for entry in entries if entry.parameter in self._flattened]
        return store_of(entries, cut, self.strategy.root_device)

    def _add_unit(self, handle: Any) -> None:
        flat = handle.flat_param
        if flat._params is not None:
            # use_orig_params: the optimizer holds the original parameters. NO_SHARD leaves them whole.
            units = {parameter: _Flattened(handle, index, parameter) for index, parameter in enumerate(flat._params)}
            self._in_units.update(units)
            if handle.uses_sharded_strategy:
                self._flattened.update(units)
            return
        originals = self._of_flat[flat] = []
        for index, (name, module, _) in enumerate(flat._param_infos):
            meta = torch.empty(flat._shapes[index], dtype=flat.dtype, device="meta")
            stand_in = nn.Parameter(meta, requires_grad=flat.requires_grad)
            self._flattened[stand_in] = self._in_units[stand_in] = _Flattened(handle, index, stand_in)
            self._stand_ins.setdefault(module, {})[name] = stand_in
            originals.append(stand_in)
        for name, module, _, primary_name, primary_module, _ in flat._shared_param_infos:
            self._stand_ins.setdefault(module, {})[name] = self._stand_ins[primary_module][primary_name]

    def _fragment(self, entry: Entry) -> Fragment:
        found = self._flattened[entry.parameter]
        handle, flat = found.handle, found.flat
        numel = flat._shapes[found.index].numel()
        info = flat._shard_param_infos[found.index]
        if handle.uses_sharded_strategy:
            start = _start_in_flat(flat, found.index)
            spans = spans_of_chunks(start, numel, flat._sharded_size.numel(), handle.world_size)
            rank, group = handle.rank, handle.process_group
        else:
            spans, rank, group = [(0, numel)], 0, None
        held = (info.intra_param_start_idx, info.intra_param_end_idx + 1) if info.in_shard else None
        if held != (spans[rank] if spans[rank][0] < spans[rank][1] else None):
            raise RuntimeError(
                f"this version of torch ({torch.__version__}) lays out FSDP's flat parameters in a way that is not known: "
                f"{entry.name} is held as {held}, expected was {spans[rank]}. Please report this."
            )
        contiguous = getattr(flat, "_contiguities", None)
        strides = None if contiguous is None or contiguous[found.index] else flat._strides[found.index]
        read = _read_original if flat._params is not None else _read_flat
        return Fragment(entry, spans, rank, group, flat.device, partial(read, found, info), strides)


def _start_in_flat(flat: Any, index: int) -> int:
    """Where a parameter starts in the unsharded flat one, which has padding between parameters."""
    numels = flat._numels_with_padding
    starts: list[int] = [0, *accumulate(numels)]
    return [start for start, padding in zip(starts, flat._is_padding_mask, strict=False) if not padding][index]


def _read_original(found: _Flattened, info: Any, role: Role) -> Tensor | None:
    if role == "gradient":
        return found.parameter.grad
    return _shard(found, info) if found.parameter.requires_grad else None


def _read_flat(found: _Flattened, info: Any, role: Role) -> Tensor | None:
    if role == "weight":
        return _shard(found, info) if found.flat.requires_grad else None
    gradient: Tensor | None = found.flat.grad
    return None if gradient is None else gradient.narrow(0, info.offset_in_shard, info.numel_in_shard)


def _shard(found: _Flattened, info: Any) -> Tensor:
    """This rank's weights. Between a forward and its backward, the flat parameter may be unsharded."""
    shard: Tensor = getattr(found.flat, "_local_shard", found.flat.data)
    return shard.narrow(0, info.offset_in_shard, info.numel_in_shard)
