"""DeepSpeed: gradients that ZeRO has taken off the parameters, in partitions of its own.

At the end of an accumulation, each rank holds fragments of the averaged gradients, from which DeepSpeed's optimizer
takes its step. ZeRO 1 and 2 cut the flattened parameters anywhere, ZeRO 3 each parameter into equal parts. What
is read here is what DeepSpeed's own ``safe_set_full_grad`` writes to, without its gather of whole gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gc.engines.engine import Engine
from lightning_gc.engines.fragments import Fragment, FragmentPiece, spans_of_chunks
from lightning_gc.engines.mixed import store_of
from lightning_gc.engines.store import Role, Store
from lightning_gc.engines.target import Target
from lightning_gc.engines.tensors import TensorStore
from lightning_gc.selection import Entry


class DeepSpeedEngine(Engine):
    """The parameters of a ``deepspeed.DeepSpeedEngine``.

    Raises:
        MisconfigurationException: DeepSpeed chose an optimizer that is not known here.
    """

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy)
        self._engine: Any = strategy.deepspeed_engine
        self._optimizer: Any = self._engine.optimizer
        kind = type(self._optimizer).__name__
        if hasattr(self._optimizer, "averaged_gradients") or isinstance(self._optimizer, Optimizer):
            return
        raise MisconfigurationException(
            f"GradientCentralization does not know how DeepSpeed's {kind} holds gradients, and would silently change "
            "nothing. Use ZeRO stage 1, 2 or 3 without `grad_accum_dtype`, or remove the callback."
        )

    @staticmethod
    def check(strategy: Any, target: Target) -> None:
        """See :meth:`Engine.check`."""
        zero = (strategy.config or {}).get("zero_optimization") or {}
        for key in ("offload_optimizer", "offload_param"):
            if (zero.get(key) or {}).get("device", "none") != "none":
                raise MisconfigurationException(
                    f"GradientCentralization does not work with DeepSpeed's `{key}`: gradients and their norms are "
                    "then taken during backward to where this callback cannot change them. Train without offload, or "
                    "remove the callback."
                )
        stage = zero.get("stage", 0)
        if stage and target != "gradient":
            why = {
                "clipped_gradient": "clips gradients inside its own step, after which nothing can be done to them",
                "update": "updates partitions of its own copy of the weights inside its own step",
            }[target]
            raise MisconfigurationException(
                f"GradientCentralization(target={target!r}): DeepSpeed ZeRO {stage} {why}. Use target='gradient', or "
                "another strategy (FSDP)."
            )
        if not stage and "32" not in str(strategy.precision_plugin.precision):
            raise MisconfigurationException(
                f"GradientCentralization with DeepSpeed and precision={strategy.precision_plugin.precision!r} needs ZeRO: "
                "without it, DeepSpeed keeps gradients in an optimizer wrapper that is not known here. Use stage 1, 2 or 3."
            )

    def shape_of(self, parameter: nn.Parameter) -> torch.Size:
        """See :meth:`Engine.shape_of`: ZeRO 3 leaves parameters empty."""
        return getattr(parameter, "ds_shape", parameter.shape)

    def held_by(self, optimizer: Optimizer) -> list[Any]:
        """See :meth:`Engine.held_by`: ZeRO puts partitions in the groups."""
        for groups in ("bit16_groups", "fp16_groups"):
            if hasattr(optimizer, groups):
                return [parameter for group in getattr(optimizer, groups) for parameter in group]
        return super().held_by(optimizer)

    def make_store(self, entries: Sequence[Entry]) -> Store:
        """See :meth:`Engine.make_store`."""
        if not entries or not hasattr(self._optimizer, "averaged_gradients"):
            return TensorStore(entries)  # ZeRO 0
        if hasattr(entries[0].parameter, "ds_id"):
            fragments = [self._stage_3(entry) for entry in entries]
        else:
            fragments = self._stage_1_or_2(entries)
        return store_of(entries, [FragmentPiece(fragment) for fragment in fragments], self.strategy.root_device)

    def steps_now(self) -> bool:
        """See :meth:`Engine.steps_now`: Lightning announces one for every micro-batch."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def gradient_scale(self, optimizer: Optimizer) -> Any:
        """See :meth:`Engine.gradient_scale`: ZeRO unscales inside its step."""
        return getattr(optimizer, "loss_scale", None)

    def _stage_1_or_2(self, entries: Sequence[Entry]) -> list[Fragment]:
        spans: list[tuple[int, int]] = []
        for entry in entries:
            mapping = _mapping(entry.parameter)
            address = mapping.lp_fragment_address if mapping else None
            spans.append((address.start, address.start + address.numel) if address else (0, 0))
        # Where others hold theirs follows from paddings that differ between versions: ask, once.
        of_group: dict[Any, list[list[tuple[int, int]]]] = {}
        found = []
        for index, entry in enumerate(entries):
            group = getattr(entry.parameter, "_dp_group", None) or dist.group.WORLD
            if group not in of_group:
                everyone: list[Any] = [None] * dist.get_world_size(group)
                dist.all_gather_object(everyone, spans, group=group)
                of_group[group] = everyone
            of_all = [of_rank[index] for of_rank in of_group[group]]
            read = partial(_read_stage_1_or_2, entry.parameter)
            device = self.strategy.root_device
            found.append(Fragment(entry, of_all, dist.get_rank(group), group, device, read))
        return found

    def _stage_3(self, entry: Entry) -> Fragment:
        parameter: Any = entry.parameter
        group = parameter.ds_process_group
        ranks = dist.get_world_size(group)
        spans = spans_of_chunks(0, entry.shape.numel(), parameter.partition_numel(), ranks)
        rank = dist.get_rank(group)
        sub_group, index = next(
            (i, j)
            for i, members in enumerate(self._optimizer.fp16_groups)
            for j, member in enumerate(members)
            if member is parameter
        )
        numel = spans[rank][1] - spans[rank][0]
        read = partial(_read_stage_3, self._optimizer, sub_group, index, numel)
        return Fragment(entry, spans, rank, group, self.strategy.root_device, read)


def _mapping(parameter: Any) -> Any:
    return getattr(parameter, "_hp_mapping", None)


def _read_stage_1_or_2(parameter: Any, role: Role) -> Tensor | None:
    assert role == "gradient"
    mapping = _mapping(parameter)
    gradients = mapping.gradient_dict.get(mapping.param_group_index)
    if gradients is None:
        return None
    index = parameter._index_in_param_group
    if not gradients[index].is_contiguous():
        gradients[index] = gradients[index].contiguous()
    flat: Tensor = gradients[index].view(-1)
    address = mapping.lp_fragment_address
    return flat if flat.numel() == address.numel else flat.narrow(0, address.start, address.numel)


def _read_stage_3(optimizer: Any, sub_group: int, index: int, numel: int, role: Role) -> Tensor | None:
    assert role == "gradient"
    gradients = optimizer.averaged_gradients.get(sub_group)
    if gradients is None:
        return None
    flat: Tensor = gradients[index].view(-1)
    return flat.narrow(0, 0, numel)  # the last part is padded
