"""DeepSpeed: a torch optimizer inside of its own, which steps on partitions of flat weights.

It is stepped for one partition after the other, or for all at once, alike on all ranks, and not at all in a step that
is skipped for an overflow. Torch's step hooks on it are where the callback acts, whatever the stage and target, and
whether the optimizer is on the CPU. Gradients are unscaled and clipped there: only the target ``"gradient"``, where
they are clipped, has to find them before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_gc.engines.engine import Engine
from lightning_gc.engines.fragments import Fragment, FragmentPiece
from lightning_gc.engines.partitioned import PartitionedStore
from lightning_gc.engines.partitions import Partition, has_layout, partitions_of
from lightning_gc.engines.sharded import ShardedStore
from lightning_gc.engines.store import Means, Role, Store
from lightning_gc.engines.target import Target
from lightning_gc.measuring.measurement import Measurement
from lightning_gc.selection import Entry


class DeepSpeedEngine(Engine):
    """The parameters of a ``deepspeed.DeepSpeedEngine``.

    Raises:
        MisconfigurationException: DeepSpeed works in a way that was never tried here.
    """

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy)
        self._engine: Any = strategy.deepspeed_engine
        self._wrapper: Any = self._engine.optimizer
        self._partitions: list[Partition] = []
        if isinstance(self._wrapper, Optimizer):
            return  # ZeRO 0 in 32 bits: one of torch's, on the parameters themselves
        # What was built is asked, not the configuration, which has several spellings for the same.
        for what, is_so in _untried(self._engine, self._wrapper).items():
            if is_so:
                raise MisconfigurationException(
                    f"GradientCentralization was never run with DeepSpeed's {what}, and might silently change nothing. "
                    "Train without it, or remove the callback."
                )
        self._partitions = partitions_of(self._wrapper)
        self._members = [member.parameter for partition in self._partitions for member in partition.members]

    def shape_of(self, parameter: nn.Parameter) -> torch.Size:
        """See :meth:`Engine.shape_of`: ZeRO 3 leaves parameters empty."""
        return getattr(parameter, "ds_shape", parameter.shape)

    def held_by(self, optimizer: Optimizer) -> list[Any]:
        """See :meth:`Engine.held_by`: there are partitions in the groups."""
        return self._members if self._partitions else super().held_by(optimizer)

    def inner_optimizers(self, optimizer: Optimizer) -> Sequence[Optimizer]:
        """See :meth:`Engine.inner_optimizers`."""
        if not self._partitions:
            return [optimizer]
        # ZeRO 3 has a second one for what `offload_optimizer.ratio` leaves on the GPU.
        both = (self._wrapper.optimizer, getattr(self._wrapper, "backup_optimizer", None))
        return [inner for inner in both if inner is not None]

    def target_in_step(self, target: Target) -> Target:
        """See :meth:`Engine.target_in_step`: where nothing is clipped, both gradients are the same.

        Raises:
            MisconfigurationException: They are clipped, and cannot be found before.
        """
        if not self._partitions or target != "gradient":
            return target
        if not self._wrapper.clip_grad:
            return "clipped_gradient"
        for what, is_so in _without_gradients_before_clipping(self._engine, self._wrapper).items():
            if is_so:
                raise MisconfigurationException(
                    "GradientCentralization(target='gradient'): gradients are clipped, and cannot be centralized before "
                    f"that with DeepSpeed's {what}. Use target='clipped_gradient', or don't clip."
                )
        return target

    def make_store(self, entries: Sequence[Entry]) -> Store:
        """See :meth:`Engine.make_store`."""
        if not self._partitions or not entries:
            return super().make_store(entries)
        wanted = {entry.parameter: entry for entry in entries}
        parts = {}
        for partition in self._partitions:
            pieces = [
                self._piece(wanted[member.parameter], partition, index)
                for index, member in enumerate(partition.members)
                if member.parameter in wanted
            ]
            if pieces:
                parts[partition.flat] = ShardedStore(pieces)
        if hasattr(self._wrapper, "norm_for_param_grads"):
            return _OffloadedStore(entries, parts, self.strategy.root_device, self._wrapper)
        return PartitionedStore(entries, parts, self.strategy.root_device)

    def steps_now(self) -> bool:
        """See :meth:`Engine.steps_now`: Lightning announces one for every micro-batch."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def gradient_scale(self, optimizer: Optimizer) -> Any:
        """See :meth:`Engine.gradient_scale`: DeepSpeed's optimizers unscale in their step, before that of torch's."""
        return getattr(optimizer, "loss_scale", None)

    def _piece(self, entry: Entry, partition: Partition, index: int) -> FragmentPiece:
        group, device = partition.group, self.strategy.root_device
        rank = 0 if group is None else torch.distributed.get_rank(group)
        read = partial(partition.read, index)
        return FragmentPiece(
            Fragment(entry, partition.members[index].spans, rank, group, device, read, home=partition.flat.device)
        )


class _OffloadedStore(PartitionedStore):
    """Partitions on the CPU, whose gradients go there in backward, which is also when DeepSpeed takes their norms."""

    def __init__(self, entries: Sequence[Entry], parts: Any, device: torch.device, wrapper: Any) -> None:
        super().__init__(entries, parts, device)
        self._wrapper = wrapper

    def recentre_(self, role: Role, to: Means | None = None) -> bool:
        """See :meth:`Store.recentre_`."""
        self._wait()
        moved = super().recentre_(role, to)
        self._take_norms_again()
        return moved

    def recentre_measured_(self, role: Role, to: Means | None = None) -> Measurement:
        """See :meth:`Store.recentre_measured_`."""
        self._wait()
        measured = super().recentre_measured_(role, to)
        self._take_norms_again()
        return measured

    def _wait(self) -> None:
        # What goes to the CPU in backward may still be on its way.
        getattr(torch, self._device.type).synchronize()

    def _take_norms_again(self) -> None:
        norms = self._wrapper.norm_for_param_grads
        for piece in self.pieces():
            key, gradient = self._wrapper.get_param_id(piece.entry.parameter), piece.tensor("gradient")
            if key in norms and gradient is not None:
                norms[key] = torch.linalg.vector_norm(gradient.to(norms[key].dtype)).to(norms[key].device)


def _untried(engine: Any, wrapper: Any) -> dict[str, bool]:
    """What changes how gradients come to the optimizer, or who holds what of a weight vector; whether it is so."""
    return {
        "NVMe offload": bool(
            getattr(wrapper, "swap_optimizer", False) or getattr(wrapper, "params_in_nvme_and_cpu", False)
        ),
        "ZenFlow": bool(getattr(wrapper, "zenflow", False)),
        # Among them those of MiCS and SuperOffload.
        type(wrapper).__name__: not has_layout(wrapper),
        "hpZ (`zero_hpz_partition_size`)": engine.zero_hpz_partition_size() > 1,
        "tensor parallelism": getattr(engine, "autotp_size", int)() > 1 or engine.mpu is not None,
        "mixtures of experts": bool(engine.has_moe_layers),
        "Muon": "muon" in type(getattr(wrapper, "optimizer", None)).__name__.lower(),
        "`torch_autocast` in float16": getattr(wrapper, "torch_autocast_gradscaler", None) is not None,
        "`legacy_fusion`": bool(getattr(wrapper, "fused_adam_legacy", False)),
        "LAMB in 16 bits without ZeRO": bool(getattr(wrapper, "fused_lamb_legacy", False)),
    }


def _without_gradients_before_clipping(engine: Any, wrapper: Any) -> dict[str, bool]:
    return {
        "BF16_Optimizer (ZeRO 1 in bf16 with `grad_accum_dtype: fp32`)": type(wrapper).__name__ == "BF16_Optimizer",
        "`managed_gradient_accumulation: false`": not getattr(engine, "managed_gradient_accumulation", lambda: True)(),
    }
