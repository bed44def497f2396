"""DTensors, as FSDP2 (``fully_shard``) and tensor parallelism hold parameters and gradients.

Where ranks hold whole weight vectors (row shards), each centralizes its own. Where they hold parts of them (column
shards), sums go through one all-reduce for each mesh dim, however many parameters there are. The arithmetic
is on local tensors: DTensor's own would send one message for each parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_gc.engines.engine import Engine
from lightning_gc.engines.mixed import store_of
from lightning_gc.engines.sharded import Piece
from lightning_gc.engines.store import Role, Store
from lightning_gc.equation.dims import grouped
from lightning_gc.equation.traits import accumulation_dtype, is_dtensor, is_expanded
from lightning_gc.selection import Entry
from lightning_gc.selection.graph import Graph, Start


class DTensorEngine(Engine):
    """Modules of which some parameters are DTensors."""

    def check_entries(self, entries: Sequence[Entry]) -> None:
        """See :meth:`Engine.check_entries`."""
        for entry in entries:
            parameter: Any = entry.parameter
            if not is_dtensor(parameter) or entry.layout is None:
                continue
            here, of_mesh = parameter.to_local().device.type, parameter.device_mesh.device_type
            if here != of_mesh and _mesh_dims_through(parameter, entry.layout.dims):
                raise MisconfigurationException(
                    f"GradientCentralization does not work on {entry.name} as it is offloaded: it is on {here} between "
                    f"its uses and placed as {parameter.placements}, which cuts weight vectors, and the process group "
                    f"that would have to add up the ranks' parts of them is that of {of_mesh}. Shard its rows, exclude "
                    "it, train without an offload policy, or remove the callback."
                )

    def leaves(self, module: nn.Module) -> list[Tensor]:
        """See :meth:`Engine.leaves`: FSDP2 gathers each parameter into another one."""
        return [*module.parameters(), *_unsharded(module).values()]

    def starts(self, graph: Graph, parameters: Sequence[nn.Parameter]) -> dict[nn.Parameter, list[Start]]:
        """See :meth:`Engine.starts`."""
        starts = super().starts(graph, parameters)
        gathered = _unsharded(self.strategy.lightning_module)
        for parameter in parameters:
            leaf = gathered.get(parameter)
            if leaf in graph.leaves:
                starts[parameter] = [Start(graph.leaves[leaf], 0, tuple(parameter.shape))]
        return starts

    def make_store(self, entries: Sequence[Entry]) -> Store:
        """See :meth:`Engine.make_store`."""
        device = self.strategy.root_device
        return store_of(entries, [DTensorPiece(e, device) for e in entries if is_dtensor(e.parameter)], device)


class DTensorPiece(Piece):
    """The local tensor of a DTensor."""

    def __init__(self, entry: Entry, device: torch.device) -> None:
        super().__init__(entry, device)
        assert entry.layout is not None
        parameter: Any = entry.parameter
        self._parameter = parameter
        self._dims, self._groups = entry.layout.dims, entry.layout.groups
        mesh, placements = parameter.device_mesh, parameter.placements
        # The dim that each mesh dim shards; None for copies.
        sharded = [getattr(placement, "dim", None) for placement in placements]
        self._group_of_row = _group_of_row(parameter, self._groups) if self._groups > 1 and 0 in sharded else None
        through = _mesh_dims_through(parameter, self._dims)
        if self._group_of_row is not None:
            self._sum_dims: tuple[int, ...] = tuple(d for d in self._dims if d != 0)
        self.groups = tuple(mesh.get_group(i) for i in through)
        self.has_all = all(dim is None for dim in sharded)
        # Of several ranks with copies, or with the same sums, the first is measured.
        here = mesh.get_coordinate()
        in_first_mesh = bool((mesh.mesh == 0).any())
        self.counts_norm = in_first_mesh and all(here[i] == 0 for i, dim in enumerate(sharded) if dim is None)
        self._counts = self.counts_norm and all(here[i] == 0 for i in through)
        with torch.no_grad():
            self.count = self.share(parameter.to_local()).numel() if through else 0

    def tensor(self, role: Role) -> Tensor | None:
        """See :meth:`Piece.tensor`."""
        parameter = self._parameter
        if role == "weight":
            return _local(parameter) if parameter.requires_grad else None
        gradient = parameter.grad
        if gradient is None:
            return None
        if gradient.placements != parameter.placements:
            # A sum that is still to be added up, for one. The optimizer would do the same.
            gradient = parameter.grad = gradient.redistribute(parameter.device_mesh, parameter.placements)
        if is_expanded(_local(gradient)):
            gradient = parameter.grad = gradient.clone(memory_format=torch.contiguous_format)
        return _local(gradient)

    def share(self, tensor: Tensor) -> Tensor:
        """See :meth:`Piece.share`."""
        wide = accumulation_dtype(tensor.dtype)
        if self._group_of_row is not None:
            rows = tensor.sum(self._sum_dims, keepdim=True, dtype=wide) if self._sum_dims else tensor.to(wide)
            sums = rows.new_zeros((self._groups, *rows.shape[1:]))
            return sums.index_add_(0, self._group_of_row, rows).div_(self.entry.fan_in)
        view, dims = grouped(tensor, self._dims, self._groups)
        return view.sum(dims, keepdim=True, dtype=wide).div_(self.entry.fan_in)

    def shared(self, share: Tensor) -> Tensor:
        """See :meth:`Piece.shared`."""
        return share.reshape(-1)

    def set_shared_(self, share: Tensor, summed: Tensor) -> None:
        """See :meth:`Piece.set_shared_`."""
        share.copy_(summed.view_as(share))

    def subtract_(self, tensor: Tensor, means: Tensor) -> None:
        """See :meth:`Piece.subtract_`."""
        if self._group_of_row is not None:
            tensor.sub_(means[self._group_of_row])
        else:
            grouped(tensor, self._dims, self._groups)[0].sub_(means)

    def measured(self, means: Tensor) -> Tensor:
        """See :meth:`Piece.measured`."""
        return means.reshape(-1) if self._counts else means.new_zeros(0)


def _unsharded(module: nn.Module) -> dict[Any, Any]:
    """The parameters that FSDP2 has gathered for a forward, by the sharded ones; none where this torch tells nothing."""
    found = {}
    unit: Any
    for unit in module.modules():
        state = unit._get_fsdp_state() if hasattr(unit, "_get_fsdp_state") else None
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for held in (p for group in groups for p in getattr(group, "fsdp_params", ())):
            gathered = getattr(held, "_unsharded_param", None)
            if gathered is not None:
                found[held.sharded_param] = gathered
    return found


def _mesh_dims_through(parameter: DTensor, dims: Sequence[int]) -> list[int]:
    """The mesh dims whose shards cut weight vectors."""
    return [i for i, placement in enumerate(parameter.placements) if getattr(placement, "dim", None) in dims]


def _local(tensor: DTensor) -> Tensor:
    """The local tensor itself, once communication that fills it is over."""
    local = tensor.to_local()
    return local.wait() if hasattr(local, "wait") and hasattr(local, "elem") else local


def _group_of_row(parameter: DTensor, groups: int) -> Tensor:
    """The group of each local row of a parameter whose dim 0 is sharded and falls into `groups`.

    Raises:
        ValueError: The rows are dealt out in a way that is not known.
    """
    mesh: Any = parameter.device_mesh
    here = mesh.get_coordinate()
    rows = torch.arange(parameter.shape[0])
    on_rows = [i for i, placement in enumerate(parameter.placements) if getattr(placement, "dim", None) == 0]
    # FSDP2 shards what tensor parallelism has sharded already: its strided shards come last.
    for i in sorted(on_rows, key=lambda i: "Strided" in type(parameter.placements[i]).__name__):
        chunks = torch.chunk(rows, mesh.size(i))
        rows = chunks[here[i]] if here[i] < len(chunks) else rows[:0]
    local = parameter.to_local()
    if len(rows) != local.shape[0]:
        raise ValueError(
            f"a parameter of shape {tuple(parameter.shape)} in {groups} groups is placed as {parameter.placements}, "
            "which this library cannot follow. Exclude it."
        )
    return (rows // (parameter.shape[0] // groups)).to(local.device)
