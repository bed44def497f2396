"""How DeepSpeed lays parameters out in the flat tensors that its torch optimizer steps on.

Each of its optimizers wraps one of torch's. What that one holds are partitions: flat tensors, in which this rank's
elements of some parameters stand one after the other. Its gradients come to be there when DeepSpeed takes a step, unscaled
and clipped. Before, they are in parts of DeepSpeed's own, or in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch.distributed as dist
from torch import Tensor

from lightning_gc.engines.fragments import spans_of_chunks
from lightning_gc.engines.store import Role


@dataclass(frozen=True)
class Member:
    """A parameter in a partition.

    Attributes:
        parameter: The parameter, as the model has it.
        spans: For each rank, its first element there, and the one after the last.
        start: Where this rank's elements start in the partition.
        numel: How many there are.
    """

    parameter: Any
    spans: Sequence[tuple[int, int]]
    start: int
    numel: int


class Partition:
    """One flat tensor, and the parameters that are in it.

    Args:
        flat: This rank's part of the weights.
        members: The parameters, in order.
        group: The process group that they are cut among; None if each rank holds all of them.
        parts: This rank's gradients before they are flat, member by member; None where there are none.
    """

    def __init__(
        self, flat: Tensor, members: Sequence[Member], group: Any, parts: Callable[[], Sequence[Tensor | None] | None]
    ) -> None:
        self.flat, self.members, self.group = flat, members, group
        self._parts = parts

    def read(self, index: int, role: Role) -> Tensor | None:
        """This rank's elements of a member's weight or gradient, one-dimensional; None where there are none."""
        member = self.members[index]
        whole = self.flat if role == "weight" else self.flat.grad
        if whole is not None:
            return whole.detach().view(-1).narrow(0, member.start, member.numel)
        parts = self._parts()
        part = None if parts is None else parts[index]
        # What ZeRO 3 pads a part with comes last.
        return None if part is None else part.view(-1).narrow(0, 0, member.numel)


def partitions_of(wrapper: Any) -> list[Partition]:
    """The partitions of one of DeepSpeed's optimizers, in the order in which they are stepped on.

    Raises:
        KeyError: It is none of those whose layout is known.
    """
    return list(_LAYOUTS[type(wrapper).__name__](wrapper))


def has_layout(wrapper: Any) -> bool:
    """Whether the layout of one of DeepSpeed's optimizers is known."""
    return type(wrapper).__name__ in _LAYOUTS


def _stage_1_or_2(zero: Any) -> Iterator[Partition]:
    # The order is not the parameters' own with `round_robin_gradients`, nor are they next to each other with
    # `parameter_alignment`, which older versions don't have.
    offsets = getattr(zero, "round_robin_bit16_offsets", None)
    for i, flat in enumerate(zero.single_partition_of_fp32_groups):
        parameters = zero.round_robin_bit16_groups[i]
        group = zero.real_dp_process_group[i]
        members = _in_chunks(parameters, offsets[i] if offsets else None, flat.numel(), group)
        yield Partition(flat, members, group, _listed(zero, i, members))


def _averaged(zero: Any, i: int) -> Any:
    return zero.averaged_gradients.get(i)


def _listed(zero: Any, i: int, members: Sequence[Member]) -> Callable[[], list[Tensor | None] | None]:
    def parts() -> list[Tensor | None] | None:
        """DeepSpeed lists those that this rank has anything of, with padding between and after them."""
        listed = _averaged(zero, i)
        if listed is None:
            return None
        held = [index for index, gradient in enumerate(listed) if not getattr(gradient, "_zero_padding", False)]
        for index in held:
            listed[index] = listed[index].contiguous()
        following = iter(held)
        return [listed[next(following)] if member.numel else None for member in members]

    return parts


def _stage_3(zero: Any) -> Iterator[Partition]:
    for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
        parameters = zero.fp16_groups[i]
        group = parameters[0].ds_process_group
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        members = []
        starts = _end_to_end([parameter.partition_numel() for parameter in parameters])
        for parameter, start in zip(parameters, starts, strict=True):
            spans = spans_of_chunks(0, parameter.ds_numel, parameter.partition_numel(), ranks)
            members.append(Member(parameter, spans, start, spans[rank][1] - spans[rank][0]))
        yield Partition(flat, members, group, partial(_averaged, zero, i))


def _bf16(wrapper: Any) -> Iterator[Partition]:
    for i, flat in enumerate(wrapper.fp32_groups_flat_partition):
        group = wrapper.real_dp_process_group[i]
        yield Partition(flat, _in_chunks(wrapper.bf16_groups[i], None, flat.numel(), group), group, lambda: None)


def _fp16(wrapper: Any) -> Iterator[Partition]:
    for flat, parameters in zip(wrapper.fp32_groups_flat, wrapper.fp16_groups, strict=True):
        yield _whole(flat, parameters)


def _fp16_unfused(wrapper: Any) -> Iterator[Partition]:
    for copies, parameters in zip(wrapper.fp32_groups, wrapper.fp16_groups, strict=True):
        for copy, parameter in zip(copies, parameters, strict=True):
            yield _whole(copy, [parameter])


def _whole(flat: Tensor, parameters: Sequence[Any]) -> Partition:
    def parts() -> list[Tensor | None]:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.contiguous()
        return [parameter.grad for parameter in parameters]

    starts = _end_to_end([parameter.numel() for parameter in parameters])
    members = [Member(p, [(0, p.numel())], start, p.numel()) for p, start in zip(parameters, starts, strict=True)]
    return Partition(flat, members, None, parts)


def _in_chunks(parameters: Sequence[Any], starts: Sequence[int] | None, chunk: int, group: Any) -> list[Member]:
    """Parameters one after the other, or at `starts`, in an array that the ranks of `group` hold in chunks."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    members = []
    if starts is None:
        starts = _end_to_end([parameter.numel() for parameter in parameters])
    for parameter, start in zip(parameters, starts, strict=True):
        spans = spans_of_chunks(start, parameter.numel(), chunk, ranks)
        numel = spans[rank][1] - spans[rank][0]
        members.append(Member(parameter, spans, max(start - rank * chunk, 0) if numel else 0, numel))
    return members


def _end_to_end(numels: Sequence[int]) -> list[int]:
    return list(accumulate(numels, initial=0))[:-1]


_LAYOUTS: dict[str, Callable[[Any], Iterator[Partition]]] = {
    "DeepSpeedZeroOptimizer": _stage_1_or_2,
    "DeepSpeedZeroOptimizer_Stage3": _stage_3,
    "BF16_Optimizer": _bf16,
    "FP16_Optimizer": _fp16,
    "FP16_UnfusedOptimizer": _fp16_unfused,
}
