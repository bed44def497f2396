"""What is checked in 2 and 4 processes of FSDP2 and tensor parallelism."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_gc import centralize
from lightning_gc.engines.dtensor import DTensorEngine
from lightning_gc.selection import select
from lightning_gc.selection.places import clean_name
from tests.distributed.checks import Check, Training, Weights, gc
from tests.distributed.costs import Counted, Traffic, bytes_of_log
from tests.distributed.mixed import InSixteenBits
from tests.distributed.models import WRAPPED, Block, Model
from tests.models import trainer_kwargs

Parallelize = Callable[[nn.Module, Any], None]


class ParallelModel(Model):
    """Parallelizes its net where Lightning asks for it."""

    parallelize: Parallelize

    def configure_model(self) -> None:
        self.parallelize(self.net, self.device_mesh)


def shard_rows(net: nn.Module, mesh: Any) -> None:
    """FSDP2 over the data parallel mesh."""
    _shard(net, mesh["data_parallel"])


def shard_hybrid(net: nn.Module, mesh: Any) -> None:
    """FSDP2 that shards over 2 ranks and keeps 2 copies."""
    _shard(net, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))


def shard_offloaded(net: nn.Module, mesh: Any) -> None:
    """FSDP2 with parameters and gradients on the CPU between uses."""
    _shard(net, mesh["data_parallel"], offload_policy=CPUOffloadPolicy(pin_memory=False))


def shard_columns(net: nn.Module, mesh: Any, **kwargs: Any) -> None:
    """FSDP2 that cuts weights between columns."""
    fully_shard(net, mesh=mesh["data_parallel"], shard_placement_fn=lambda p: Shard(p.dim() - 1), **kwargs)


def shard_columns_offloaded(net: nn.Module, mesh: Any) -> None:
    shard_columns(net, mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))


def shard_even_columns(net: nn.Module, mesh: Any) -> None:
    """The same unit by unit, where columns divide evenly."""
    size = mesh["data_parallel"].size()
    _shard(net, mesh["data_parallel"], shard_placement_fn=lambda p: Shard(0 if p.shape[-1] % size else p.dim() - 1))


def _shard(net: nn.Module, mesh: Any, **kwargs: Any) -> None:
    for module in list(net.modules()):
        if type(module) in WRAPPED:
            fully_shard(module, mesh=mesh, **kwargs)
    fully_shard(net, mesh=mesh, **kwargs)


def tensor_parallel(net: nn.Module, mesh: Any, without: Sequence[str] = ()) -> None:
    """Rows and columns, also fewer of them than ranks; convolutions and tied layers stay as they are."""
    plan = {
        "first.linear": ColwiseParallel(output_layouts=Replicate()),
        "frozen.linear": ColwiseParallel(output_layouts=Replicate()),
        "narrow": RowwiseParallel(input_layouts=Replicate()),
        "head": RowwiseParallel(input_layouts=Replicate()),
        "embedding": ColwiseParallel(output_layouts=Replicate()),
    }
    kept = {name: style for name, style in plan.items() if name not in without}
    parallelize_module(net, mesh["tensor_parallel"], kept)


def tensor_parallel_but_head(net: nn.Module, mesh: Any) -> None:
    """The same without the layer of fewer columns than ranks, whose gradient torch's optimizers refuse as it comes."""
    tensor_parallel(net, mesh, without=("head",))


def both(net: nn.Module, mesh: Any) -> None:
    """Tensor parallelism, and FSDP2 of what it left of each tensor."""
    tensor_parallel(net, mesh)
    shard_rows(net, mesh)


def whole_weights(trainer: Trainer, model: Model) -> Weights:
    return {
        clean_name(name): (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def check(
    parallelize: Parallelize,
    sizes: tuple[int, int],
    arguments: Any = None,
    training: dict[str, Any] | None = None,
    **trainer: Any,
) -> Check:
    def strategy() -> ModelParallelStrategy:
        return ModelParallelStrategy(*sizes)

    made = Training(gc() if arguments is None else arguments, **(training or {}))
    return Check(made, strategy, whole_weights, trainer, parallel(parallelize))


def parallel(parallelize: Parallelize) -> Callable[[Training], Model]:
    def model(made: Training) -> Model:
        module = made.model()
        module.__class__ = type("Parallel", (ParallelModel,), {"parallelize": staticmethod(parallelize)})
        return module

    return model


def whole_gradients(trainer: Trainer, model: Model) -> Weights:
    gradients = {clean_name(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for name, g in gradients.items()}


def in_16_bits(parallelize: Parallelize, sizes: tuple[int, int], precision: str, dtype: torch.dtype) -> InSixteenBits:
    return InSixteenBits(
        lambda: ModelParallelStrategy(*sizes), parallel(parallelize), whole_gradients, precision, dtype
    )


@dataclass
class Placed:
    """Give parameters in some placements known gradients; centralize; compare with the whole ones."""

    mesh: Sequence[int]
    placements: Sequence[Placement]
    dtype: torch.dtype = torch.float32
    gradient: Sequence[Placement] | None = None
    net: Callable[[], nn.Module] = lambda: nn.Linear(7, 5)
    all_reduces: int = 0

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        torch.manual_seed(0)
        mesh = init_device_mesh("cpu", tuple(self.mesh))
        net = nn.Sequential(self.net(), self.net()).to(self.dtype)
        wholes = []
        for layer in net:
            whole = (torch.randn(layer.weight.shape) + 5).to(self.dtype)
            wholes.append(whole)
            layer.weight = nn.Parameter(distribute_tensor(layer.weight.data, mesh, self.placements))
            gradient = distribute_tensor(whole.clone(), mesh, self.placements)
            if self.gradient is not None:
                summand = whole.clone() if dist.get_rank() == 0 else torch.zeros_like(whole)
                gradient = DTensor.from_local(summand, mesh, self.gradient)
            layer.weight.grad = gradient
        entries = [entry for entry in select(net) if entry.layout is not None]
        store = DTensorEngine(SimpleNamespace(root_device=torch.device("cpu"))).make_store(entries)
        with Traffic() as traffic:
            assert store.recentre_("gradient")
        if self.gradient is None:
            assert len(traffic.sent) == self.all_reduces, traffic.sent
        layout = entries[0].layout
        for layer, whole in zip(net, wholes, strict=True):
            wanted = centralize(whole.double(), layout.dims, groups=layout.groups)
            got = layer.weight.grad.full_tensor().double()
            rtol = 0.51 * torch.finfo(self.dtype).eps if self.dtype.itemsize == 2 else 1e-5
            torch.testing.assert_close(got, wanted, rtol=rtol, atol=2e-6)
            layer.weight.grad = distribute_tensor(whole.clone(), mesh, self.placements)
        self._check_measurement(store, wholes, layout)

    def _check_measurement(self, store: Any, wholes: list[Tensor], layout: Any) -> None:
        """Over all ranks, each weight vector and each element is measured once."""
        measured = store.recentre_measured_("gradient")
        sums = [measured.vectors.sum(), measured.before.sum(), measured.squared_norm.sum()]
        store.sum_over_ranks_(sums)
        count = 2 * store.entries[0].weight_vectors
        means = [(w.double() - centralize(w.double(), layout.dims, groups=layout.groups)).abs().sum() for w in wholes]
        wanted = [count, sum(means).item() / store.entries[0].fan_in, sum(w.double().square().sum() for w in wholes)]
        for got, value in zip(sums, wanted, strict=True):
            torch.testing.assert_close(got.item(), float(value), rtol=1e-5, atol=0)


@dataclass
class Cost:
    """The traffic of a step, in a model of which it is known."""

    parallelize: Parallelize
    sizes: tuple[int, int]
    numbers: int
    gc: dict[str, Any] = field(default_factory=dict)

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        callback = Counted(**{"log_means": "total", **self.gc})
        of_log = bytes_of_log(self.gc, parameters=3)
        model = CostModel()
        model.__class__ = type("Parallel", (CostModel,), {"parallelize": staticmethod(self.parallelize)})
        arguments = trainer_kwargs(
            callbacks=[callback],
            strategy=ModelParallelStrategy(*self.sizes),
            devices=dist.get_world_size(),
            log_every_n_steps=2,
            max_steps=4,
            use_distributed_sampler=False,
        )
        Trainer(**arguments).fit(model, torch.utils.data.DataLoader(torch.rand(64, 8), batch_size=4))
        assert [step.logged for step in callback.steps] == [False, True, False, True]
        for step in callback.steps:
            once = 1 if self.numbers else 0
            assert len(step.sent) == step.collectives == (2 * once + 1 if step.logged else once), step
            assert step.bytes == (2 * 4 * self.numbers + of_log if step.logged else 4 * self.numbers), step


class CostModel(ParallelModel):
    def __init__(self) -> None:
        super().__init__(lambda: nn.Sequential(*(Block(8, 8) for _ in range(3))))

    def train_dataloader(self) -> Any:
        return None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()


def columns(net: nn.Module, mesh: Any) -> None:
    plan = {f"{i}.linear": RowwiseParallel(input_layouts=Replicate()) for i in range(3)}
    parallelize_module(net, mesh["tensor_parallel"], plan)


RAW = {"raw": True}
CLIP = {"clip": ("value", 0.02)}
ADAMW = {"optimizer": "adamw"}
BY_NAME = gc(include=("net.first", "net.up", "net.emb*"), exclude="*.emb*")
BY_CLASS = gc(exclude=(Block, nn.Conv2d))


def up() -> nn.Module:
    return nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False)


CHECKS: dict[int, dict[str, Any]] = {
    2: {
        "fsdp2-gradient": check(shard_rows, (2, 1)),
        "fsdp2-clipped_gradient": check(shard_rows, (2, 1), gc("clipped_gradient"), CLIP),
        "fsdp2-clipped_gradient-norm": check(shard_rows, (2, 1), gc("clipped_gradient"), {"clip": ("norm", 0.05)}),
        "fsdp2-gradient-norm": check(shard_rows, (2, 1), gc(), {"clip": ("norm", 0.05)}),
        "fsdp2-update": check(shard_rows, (2, 1), gc("update"), ADAMW),
        "fsdp2-filters_by_name": check(shard_rows, (2, 1), BY_NAME),
        "fsdp2-filters_by_class": check(shard_rows, (2, 1), BY_CLASS),
        "fsdp2-accumulation": check(shard_rows, (2, 1), gc(), {"accumulate": 2}),
        "fsdp2-offload-gradient": check(shard_offloaded, (2, 1)),
        "fsdp2-offload-clipped_gradient": check(shard_offloaded, (2, 1), gc("clipped_gradient"), CLIP),
        "fsdp2-offload-update": check(shard_offloaded, (2, 1), gc("update"), ADAMW),
        "tensor_parallel-gradient": check(tensor_parallel, (1, 2)),
        # Not clipped: torch clips no mix of tensors and DTensors.
        "tensor_parallel-clipped_gradient": check(tensor_parallel, (1, 2), gc("clipped_gradient")),
        "tensor_parallel-update": check(tensor_parallel, (1, 2), gc("update"), ADAMW),
        "tensor_parallel-filters_by_name": check(tensor_parallel, (1, 2), BY_NAME),
        "tensor_parallel-accumulation": check(tensor_parallel, (1, 2), gc("update"), {"accumulate": 2}),
        "fsdp2-read": check(shard_rows, (2, 1), gc(), RAW),
        "fsdp2-read-columns": check(shard_even_columns, (2, 1), gc("update"), RAW),
        "fsdp2-offload-read": check(shard_offloaded, (2, 1), gc(), RAW),
        "tensor_parallel-read": check(tensor_parallel, (1, 2), gc(), RAW),
        "placed-rows": Placed([2], [Shard(0)]),
        "placed-rows-bfloat16": Placed([2], [Shard(0)], torch.bfloat16),
        "placed-columns": Placed([2], [Shard(1)], all_reduces=1),
        "placed-columns-bfloat16": Placed([2], [Shard(1)], torch.bfloat16, all_reduces=1),
        "placed-columns-float16": Placed([2], [Shard(1)], torch.float16, all_reduces=1),
        "placed-copies": Placed([2], [Replicate()]),
        "placed-summands": Placed([2], [Replicate()], gradient=[Partial()]),
        "placed-summands-of_shards": Placed([2], [Shard(0)], gradient=[Partial()]),
        "placed-groups": Placed([2], [Shard(0)], net=up, all_reduces=1),
        "placed-groups-outputs": Placed([2], [Shard(1)], net=up),
        "fsdp2-bf16-mixed": in_16_bits(shard_rows, (2, 1), "bf16-mixed", torch.float32),
        "fsdp2-bf16-true": in_16_bits(shard_rows, (2, 1), "bf16-true", torch.bfloat16),
        "tensor_parallel-bf16-mixed": in_16_bits(tensor_parallel, (1, 2), "bf16-mixed", torch.float32),
        "tensor_parallel-bf16-true": in_16_bits(tensor_parallel, (1, 2), "bf16-true", torch.bfloat16),
        "cost-rows": Cost(shard_rows, (2, 1), 0),
        # Three weights of eight rows in two halves of their columns.
        "cost-columns": Cost(columns, (1, 2), 24),
        "cost-fsdp2-columns": Cost(shard_columns, (2, 1), 24),
        "cost-fsdp2-columns-offload": Cost(shard_columns_offloaded, (2, 1), 24),
        "cost-rows-update": Cost(shard_rows, (2, 1), 0, {"target": "update"}),
        "cost-columns-update": Cost(columns, (1, 2), 24, {"target": "update"}),
        "cost-columns-per_parameter": Cost(columns, (1, 2), 24, {"log_means": "per_parameter"}),
    },
    4: {
        "fsdp2-gradient": check(shard_rows, (4, 1)),
        "fsdp2-update": check(shard_rows, (4, 1), gc("update"), ADAMW),
        "hybrid-gradient": check(shard_hybrid, (4, 1)),
        "hybrid-clipped_gradient": check(shard_hybrid, (4, 1), gc("clipped_gradient"), CLIP),
        "hybrid-update": check(shard_hybrid, (4, 1), gc("update"), ADAMW),
        "tensor_parallel-gradient": check(tensor_parallel, (1, 4)),
        "tensor_parallel-update": check(tensor_parallel_but_head, (1, 4), gc("update"), ADAMW),
        "both-gradient": check(both, (2, 2)),
        "both-clipped_gradient": check(both, (2, 2), gc("clipped_gradient"), CLIP),
        "both-update": check(both, (2, 2), gc("update"), ADAMW),
        "both-filters_by_name": check(both, (2, 2), BY_NAME),
        "fsdp2-read": check(shard_rows, (4, 1), gc(), RAW),
        "both-read": check(both, (2, 2), gc("update"), RAW),
        "placed-2d-rows_columns": Placed([2, 2], [Shard(0), Shard(1)], all_reduces=1),
        "placed-2d-columns_columns": Placed([2, 2], [Shard(1), Shard(1)], all_reduces=2),
        "placed-2d-copies_columns": Placed([2, 2], [Replicate(), Shard(1)], all_reduces=1),
        "placed-2d-rows_rows": Placed([2, 2], [Shard(0), Shard(0)]),
        "placed-fewer_rows": Placed([4], [Shard(0)], net=lambda: nn.Linear(7, 3)),
        "placed-fewer_columns": Placed([4], [Shard(1)], net=lambda: nn.Linear(3, 7), all_reduces=1),
        "placed-groups": Placed([4], [Shard(0)], net=up, all_reduces=1),
        "placed-2d-groups": Placed([2, 2], [Shard(0), Shard(0)], net=up, all_reduces=2),
    },
}
