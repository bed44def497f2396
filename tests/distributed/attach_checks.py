"""What is checked in 2 processes of loops without a Trainer: `attach` gives what one process with the callback gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

from lightning_gc import attach
from lightning_gc.selection.places import clean_name
from tests.distributed.checks import Outcome, Training, Weights, compare_weights, gc, single_process
from tests.distributed.dtensor_checks import shard_rows, tensor_parallel_but_head
from tests.distributed.models import WRAPPED, Block, batches, make_optimizer

Wrap = Callable[[nn.Module], nn.Module]


def ddp(net: nn.Module) -> nn.Module:
    return DistributedDataParallel(net, find_unused_parameters=True)


def fsdp1(orig: bool) -> Wrap:
    policy = ModuleWrapPolicy(WRAPPED)
    cpu = torch.device("cpu")
    return lambda net: FullyShardedDataParallel(net, auto_wrap_policy=policy, device_id=cpu, use_orig_params=orig)


def dtensors(parallelize: Callable[[nn.Module, Any], None]) -> Wrap:
    def wrap(net: nn.Module) -> nn.Module:
        name = "tensor_parallel" if parallelize is tensor_parallel_but_head else "data_parallel"
        parallelize(net, {name: init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=(name,))})
        return net

    return wrap


def whole_weights(net: nn.Module) -> Weights:
    if isinstance(net, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(net, writeback=False):
            return {clean_name(name): p.detach().clone() for name, p in net.named_parameters()}
    own = net.module if isinstance(net, DistributedDataParallel) else net
    return {
        name: p.full_tensor().detach() if isinstance(p, DTensor) else p.detach() for name, p in own.named_parameters()
    }


@dataclass
class Loop:
    """Train in a plain loop, in several processes, and compare with the callback in one."""

    wrap: Wrap
    target: str
    optimizer: str = "adamw"
    shares_batches: bool = False

    def reference(self) -> Outcome:
        return single_process(Training(gc(self.target, exclude=(Block,)), self.optimizer))

    def run(self, expected: Outcome) -> None:
        net = self.wrap(Training().model().net)
        optimizer = make_optimizer(self.optimizer, net.parameters())
        handle = attach(optimizer, net, target=self.target, exclude=Block)
        assert "conv.weight" in {entry.name for entry in handle.selection.centralized}
        where = (1, 0) if self.shares_batches else (dist.get_world_size(), dist.get_rank())
        for images, tokens, labels in batches(*where):
            optimizer.zero_grad()
            F.cross_entropy(net(images, tokens).float(), labels).backward()
            optimizer.step()
        compare_weights(whole_weights(net), {n.removeprefix("net."): w for n, w in expected.after.items()}, "after")


class OffloadedIsRefused:
    """FSDP1's gradients are on the CPU then: with CPUs alone it would be right, with GPUs nothing could be summed."""

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        net = Training().model().net
        policy, offload = ModuleWrapPolicy(WRAPPED), CPUOffload(offload_params=True)
        device = torch.device("cpu")
        wrapped = FullyShardedDataParallel(
            net, auto_wrap_policy=policy, device_id=device, cpu_offload=offload, use_orig_params=True
        )
        with pytest.raises(ValueError, match="CPU offload"):
            attach(make_optimizer("sgd", wrapped.parameters()), wrapped)


@dataclass
class TensorParallelIsRefused:
    """FSDP1 flattens what tensor parallelism has left on a rank: half of the weight vectors of a row-wise layer."""

    orig: bool

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("data", "tensor"))
        net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False))
        parallelize_module(net, mesh["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        wrapped = FullyShardedDataParallel(
            net, device_mesh=mesh["data"], device_id=torch.device("cpu"), use_orig_params=self.orig
        )
        optimizer = make_optimizer("sgd", wrapped.parameters())
        with pytest.raises(ValueError, match=r"does not work on 0\.weight.*tensor parallelism.*Use FSDP2"):
            attach(optimizer, wrapped)


class DeepSpeedAfterwards:
    """Attached before DeepSpeed puts partitions in the optimizer's groups, it does nothing, and says so."""

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled on the spot
        net = nn.Linear(6, 4)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        attach(optimizer, net, target="update")
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
        }
        engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config, dist_init_required=False)
        engine.backward(engine(torch.rand(4, 6)).square().sum())
        with pytest.warns(
            UserWarning, match=r"SGD takes a step on other parameters.*nothing was centralized.*DeepSpeed"
        ):
            engine.step()


CHECKS: dict[int, dict[str, Any]] = {
    2: {
        "ddp-clipped_gradient": Loop(ddp, "clipped_gradient"),
        "ddp-update": Loop(ddp, "update", "sgd"),
        "fsdp1-clipped_gradient": Loop(fsdp1(True), "clipped_gradient"),
        "fsdp1-update": Loop(fsdp1(True), "update"),
        "fsdp1-flat-update": Loop(fsdp1(False), "update", "sgd"),
        "fsdp1-offloaded": OffloadedIsRefused(),
        "fsdp1-tensor_parallel": TensorParallelIsRefused(True),
        "fsdp1-flat-tensor_parallel": TensorParallelIsRefused(False),
        "deepspeed-afterwards": DeepSpeedAfterwards(),
        "fsdp2-clipped_gradient": Loop(dtensors(shard_rows), "clipped_gradient"),
        "fsdp2-update": Loop(dtensors(shard_rows), "update"),
        "tensor_parallel-clipped_gradient": Loop(dtensors(tensor_parallel_but_head), "clipped_gradient", "sgd", True),
        "tensor_parallel-update": Loop(dtensors(tensor_parallel_but_head), "update", "sgd", True),
    }
}
