"""What is checked in 2 and 4 processes of FSDP1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lightning_gc import centralize
from lightning_gc.engines.fsdp import FSDPEngine
from lightning_gc.selection import build_selection
from lightning_gc.selection.places import clean_name
from tests.distributed.checks import Check, Told, Training, Weights, gc
from tests.distributed.costs import Counted, bytes_of_log
from tests.distributed.mixed import InSixteenBits
from tests.distributed.models import WRAPPED, Block, Model, Net
from tests.models import trainer_kwargs


class CPUFSDPStrategy(FSDPStrategy):
    """FSDP on the CPU: Lightning passes the index of a device, which the CPU does not have."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        wrapped = FullyShardedDataParallel(
            module=model,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=torch.device("cpu"),
            **self.kwargs,
        )
        self.kwargs.pop("auto_wrap_policy", None)  # it is wrapped by now
        return super()._setup_model(wrapped)  # what is left to do: activation checkpointing


def fsdp(sharding: str = "FULL_SHARD", orig: bool = True, wrap: Any = WRAPPED, mesh: Any = None, **kwargs: Any) -> Any:
    """What makes the strategy, once there are processes."""

    def make() -> FSDPStrategy:
        given = dict(kwargs)
        if mesh is not None:
            given["device_mesh"] = init_device_mesh("cpu", mesh)
        if wrap is not None:
            given["auto_wrap_policy"] = wrap
        return CPUFSDPStrategy(sharding_strategy=sharding, use_orig_params=orig, **given)

    return make


def whole_weights(trainer: Trainer, model: Model) -> Weights:
    with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):
        return {clean_name(name): p.detach().clone() for name, p in model.named_parameters()}


def check(arguments: Any = None, training: dict[str, Any] | None = None, **strategy: Any) -> Check:
    made = Training(gc() if arguments is None else arguments, **(training or {}))
    return Check(made, fsdp(**strategy), whole_weights)


def whole_gradients(trainer: Trainer, model: Model) -> Weights:
    with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False, with_grads=True):
        return {clean_name(name): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def in_16_bits(precision: str, dtype: torch.dtype) -> InSixteenBits:
    return InSixteenBits(fsdp(), Training.model, whole_gradients, precision, dtype)


@dataclass
class Shards:
    """Give the shards of a wrapped net known gradients; centralize; compare with the whole gradients centralized."""

    dtype: torch.dtype
    strategy: dict[str, Any] = field(default_factory=dict)
    channels_last: bool = False

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        torch.manual_seed(0)
        net = Net().to(self.dtype)
        net.frozen.requires_grad_(True)
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)
        strategy = fsdp(**self.strategy)()
        shapes = {name: p.shape for name, p in net.named_parameters()}
        gradients = {name: (torch.randn(s) + 5).to(self.dtype) for name, s in shapes.items()}
        kwargs = {k: v for k, v in strategy.kwargs.items() if k != "auto_wrap_policy"}
        strategy.model = FullyShardedDataParallel(
            net, device_id=torch.device("cpu"), auto_wrap_policy=ModuleWrapPolicy(WRAPPED), **kwargs
        )
        strategy.parallel_devices = [torch.device("cpu")] * dist.get_world_size()
        engine = FSDPEngine(strategy)
        selection = build_selection(net, (), (), (), engine.shape_of, engine.parameters_in)
        for handle in {m._handle for m in strategy.model.modules() if getattr(m, "_handle", None)}:
            scatter(handle, gradients, net)
        store = engine.make_store([entry for entry in selection if entry.layout is not None])
        assert store.recentre_("gradient")
        compare_shards(strategy.model, net, gradients, {e.name: e for e in store.entries}, self.dtype)
        # Each weight vector is measured by one rank.
        count = store.recentre_measured_("gradient").vectors.sum(0, keepdim=True)
        dist.all_reduce(count)
        assert count.item() == sum(e.weight_vectors for e in store.entries)


def scatter(handle: Any, gradients: dict[str, Tensor], net: nn.Module) -> None:
    """Set the gradient of a flat parameter's shard, as the reduce-scatter of a backward would."""
    flat = handle.flat_param
    names = {id(module): clean_name(name) for name, module in net.named_modules()}
    flat.grad = torch.zeros_like(flat)
    for index, ((attribute, module, _), info) in enumerate(
        zip(flat._param_infos, flat._shard_param_infos, strict=True)
    ):
        if not info.in_shard:
            continue
        name = f"{names[id(module)]}.{attribute}".lstrip(".")
        whole = gradients[name]
        if not flat._contiguities[index]:
            whole = whole.to(memory_format=torch.channels_last)
            ordered = whole.as_strided((whole.numel(),), (1,))
        else:
            ordered = whole.reshape(-1)
        part = ordered[info.intra_param_start_idx : info.intra_param_end_idx + 1]
        flat.grad[info.offset_in_shard : info.offset_in_shard + info.numel_in_shard] = part
    if flat._params is not None:
        handle._use_sharded_grad_views()


def compare_shards(
    model: Any, net: nn.Module, gradients: dict[str, Tensor], taken: dict[str, Any], dtype: torch.dtype
) -> None:
    names = {id(module): clean_name(name) for name, module in net.named_modules()}
    seen = 0
    for handle in {m._handle for m in model.modules() if getattr(m, "_handle", None)}:
        flat = handle.flat_param
        for index, ((attribute, module, _), info) in enumerate(
            zip(flat._param_infos, flat._shard_param_infos, strict=True)
        ):
            name = f"{names[id(module)]}.{attribute}".lstrip(".")
            if not info.in_shard:
                continue
            seen += 1
            wanted = gradients[name]
            if name in taken:
                layout = taken[name].layout
                wanted = centralize(wanted.double(), layout.dims, groups=layout.groups)
            if not flat._contiguities[index]:
                wanted = wanted.to(memory_format=torch.channels_last)
                wanted = wanted.as_strided((wanted.numel(),), (1,))
            wanted = wanted.reshape(-1)[info.intra_param_start_idx : info.intra_param_end_idx + 1]
            start = info.offset_in_shard
            got = flat._params[index].grad if flat._params is not None else flat.grad[start : start + len(wanted)]
            # 16 bits: centralized in float32 and rounded once, which is half a unit in the last place.
            rtol = 0.51 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
            torch.testing.assert_close(
                got.double(), wanted.double(), rtol=rtol, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}"
            )
    assert seen


@dataclass
class Cost:
    """The traffic of a step, in a model of which it is known."""

    strategy: dict[str, Any]
    blocks: int
    bytes_each: int
    gc: dict[str, Any] = field(default_factory=dict)

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        callback = Counted(**{"log_means": "total", **self.gc})
        of_log = bytes_of_log(self.gc, parameters=3)
        model = CostModel(self.blocks)
        trainer = Trainer(
            **trainer_kwargs(
                callbacks=[callback],
                strategy=fsdp(**self.strategy)(),
                devices=dist.get_world_size(),
                log_every_n_steps=2,
                max_steps=4,
                use_distributed_sampler=False,
            )
        )
        trainer.fit(model, torch.utils.data.DataLoader(torch.rand(64, 7), batch_size=4))
        assert [step.logged for step in callback.steps] == [False, True, False, True]
        for step in callback.steps:
            # One all-reduce for all units; to log, one more after, and one of five sums.
            split = self.blocks * self.bytes_each
            once = 1 if split else 0
            assert len(step.sent) == step.collectives == (2 * once + 1 if step.logged else once), step
            assert step.bytes == (2 * split + of_log if step.logged else split), step


class CostModel(Model):
    def __init__(self, blocks: int) -> None:
        super().__init__(lambda: nn.Sequential(*(Block(7, 7) for _ in range(blocks))))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()


RAW = {"raw": True}
CLIP = {"clip": ("value", 0.02)}
ADAMW = {"optimizer": "adamw"}
ZERO = {"zero_unused": True}
WEIGHT_NORM = {"weight_norm": True}
BY_NAME = gc(include=("net.first", "net.up", "net.emb*"), exclude="*.emb*")
BY_CLASS = gc(exclude=(Block, nn.Embedding))

CHECKS: dict[int, dict[str, Any]] = {
    2: {
        "full_shard-gradient": check(gc()),
        "full_shard-gradient-flat": check(gc(), orig=False),
        "full_shard-clipped_gradient": check(gc("clipped_gradient"), CLIP),
        "full_shard-clipped_gradient-flat": check(gc("clipped_gradient"), CLIP, orig=False),
        "full_shard-update": check(gc("update"), ADAMW),
        "full_shard-update-flat": check(gc("update"), ADAMW, orig=False),
        "full_shard-update-sgd": check(gc("update")),
        "full_shard-filters_by_name": check(BY_NAME),
        "full_shard-filters_by_name-flat": check(BY_NAME, orig=False),
        "full_shard-filters_by_class": check(BY_CLASS),
        "full_shard-filters_by_class-flat": check(BY_CLASS, orig=False),
        "full_shard-accumulation": check(gc(), {"accumulate": 2}),
        "full_shard-accumulation-flat": check(gc("update"), {"accumulate": 2}, orig=False),
        # Which of the two is the magnitude is told by whole shapes, and shards have others.
        "full_shard-weight_norm": check(gc(), WEIGHT_NORM),
        "full_shard-weight_norm-flat": check(gc(), WEIGHT_NORM, orig=False),
        "full_shard-one_unit": check(gc(), ZERO, wrap=None),
        "full_shard-activation_checkpointing": check(gc(), activation_checkpointing_policy={Block}),
        "shard_grad_op-gradient": check(gc(), sharding="SHARD_GRAD_OP"),
        "shard_grad_op-update-flat": check(gc("update"), ADAMW, sharding="SHARD_GRAD_OP", orig=False),
        "shard_grad_op-clipped_gradient": check(gc("clipped_gradient"), CLIP, sharding="SHARD_GRAD_OP"),
        "shard_grad_op-update": check(gc("update"), ADAMW, sharding="SHARD_GRAD_OP"),
        "shard_grad_op-gradient-flat": check(gc(), sharding="SHARD_GRAD_OP", orig=False),
        "shard_grad_op-clipped_gradient-flat": check(
            gc("clipped_gradient"), CLIP, sharding="SHARD_GRAD_OP", orig=False
        ),
        "no_shard-clipped_gradient-flat": check(gc("clipped_gradient"), CLIP, sharding="NO_SHARD", orig=False),
        "no_shard-clipped_gradient": check(gc("clipped_gradient"), CLIP, sharding="NO_SHARD"),
        "no_shard-gradient": check(gc(), sharding="NO_SHARD"),
        "no_shard-gradient-flat": check(gc(), sharding="NO_SHARD", orig=False),
        "no_shard-update": check(gc("update"), ADAMW, sharding="NO_SHARD"),
        "no_shard-update-flat": check(gc("update"), ADAMW, sharding="NO_SHARD", orig=False),
        # One that no rank has a gradient of, and one that rank 1 alone has anything of.
        "told": Told(Training(gc(include="net.unused")), fsdp(), "unused.linear.weight) had a gradient"),
        "told-not": Told(Training(gc(include="net.head"), **ZERO), fsdp(wrap=None), ""),
        "full_shard-read": check(gc(), RAW),
        "full_shard-read-flat": check(gc("update"), RAW, orig=False),
        "full_shard-read-accumulation": check(gc("clipped_gradient"), {**RAW, "accumulate": 2}),
        "no_shard-read": check(gc(), RAW, sharding="NO_SHARD"),
        "shards-float32": Shards(torch.float32),
        "shards-bfloat16": Shards(torch.bfloat16),
        "shards-bfloat16-flat": Shards(torch.bfloat16, {"orig": False}),
        "shards-float16": Shards(torch.float16),
        "shards-channels_last": Shards(torch.float32, {"orig": False}, channels_last=True),
        "bf16-mixed": in_16_bits("bf16-mixed", torch.float32),
        "bf16-true": in_16_bits("bf16-true", torch.bfloat16),
        # Linear(7, 7): 49 elements, 3 of padding, 7 and 1, cut at 30, in row 4: one number for each unit.
        "cost": Cost({"wrap": {Block}}, blocks=3, bytes_each=4),
        "cost-update": Cost({"wrap": {Block}}, 3, 4, {"target": "update"}),
        "cost-per_parameter": Cost({"wrap": {Block}}, 3, 4, {"log_means": "per_parameter"}),
        # 49 and 7 elements, cut at 28, between rows 3 and 4: nothing to send.
        "cost-flat": Cost({"wrap": {Block}, "orig": False}, blocks=3, bytes_each=0),
    },
    4: {
        "full_shard-gradient": check(gc()),
        "full_shard-gradient-flat": check(gc(), orig=False),
        "full_shard-clipped_gradient": check(gc("clipped_gradient"), CLIP),
        "full_shard-update": check(gc("update"), ADAMW),
        "full_shard-update-flat": check(gc("update"), ADAMW, orig=False),
        "full_shard-filters_by_name-flat": check(BY_NAME, orig=False),
        "full_shard-filters_by_class": check(BY_CLASS),
        "full_shard-one_unit": check(gc("update"), ZERO, wrap=None),
        "hybrid_shard-gradient": check(gc(), sharding="HYBRID_SHARD", mesh=(2, 2)),
        "hybrid_shard-gradient-flat": check(gc(), sharding="HYBRID_SHARD", mesh=(2, 2), orig=False),
        "hybrid_shard-clipped_gradient-flat": check(
            gc("clipped_gradient"), CLIP, sharding="HYBRID_SHARD", mesh=(2, 2), orig=False
        ),
        "hybrid_shard-update-flat": check(gc("update"), ADAMW, sharding="HYBRID_SHARD", mesh=(2, 2), orig=False),
        "hybrid_shard-update": check(gc("update"), ADAMW, sharding="HYBRID_SHARD", mesh=(2, 2)),
        "hybrid_shard-clipped_gradient": check(gc("clipped_gradient"), CLIP, sharding="HYBRID_SHARD", mesh=(2, 2)),
        "full_shard-read": check(gc(), RAW),
        "hybrid_shard-read-flat": check(gc(), RAW, sharding="HYBRID_SHARD", mesh=(2, 2), orig=False),
        "shards-float32": Shards(torch.float32),
        "shards-bfloat16-flat": Shards(torch.bfloat16, {"orig": False}),
        "shards-channels_last": Shards(torch.float32, channels_last=True),
        # Cut at 15, 30 and 45: three numbers for each unit, and not all seven rows.
        "cost": Cost({"wrap": {Block}}, blocks=3, bytes_each=12),
    },
}
