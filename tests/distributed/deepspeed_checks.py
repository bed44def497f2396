"""What is checked in 2 processes of DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn

from lightning_gc.selection.places import clean_name
from tests.distributed.checks import Check, Training, Weights, gc
from tests.distributed.costs import Counted
from tests.distributed.mixed import InSixteenBits
from tests.distributed.models import Block, Model
from tests.models import trainer_kwargs


class CPUDeepSpeedStrategy(DeepSpeedStrategy):
    """DeepSpeed on its CPU accelerator, which Lightning refuses."""

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        import deepspeed as ds

        ds.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled on the spot
        ds.get_accelerator().is_fp16_supported = lambda: True  # slow, but it is
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        import deepspeed as ds

        # As Lightning does, without the index of a device, which the CPU does not have.
        parameters = [p for p in model.parameters() if p.requires_grad]
        engine, wrapped, _, _ = ds.initialize(
            config=self.config,
            model=model,
            model_parameters=parameters,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, wrapped

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        dist.barrier()


def deepspeed(stage: int, **kwargs: Any) -> Any:
    """What makes the strategy, once there are processes."""

    def make() -> DeepSpeedStrategy:
        return CPUDeepSpeedStrategy(zero_optimization=stage > 0, stage=stage, process_group_backend="gloo", **kwargs)

    return make


def whole_weights(trainer: Trainer, model: Model) -> Weights:
    import deepspeed as ds

    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    found = {}
    for name, parameter in parameters.items():
        with ds.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            found[name] = parameter.detach().clone()
    return found


def check(stage: int, arguments: Any = None, training: dict[str, Any] | None = None, **trainer: Any) -> Check:
    # DeepSpeed gives parameters without a gradient one of zeros. ZeRO knows nothing of frozen ones.
    made = Training(gc() if arguments is None else arguments, **{"zero_unused": True, **(training or {})})
    return Check(made, deepspeed(stage), whole_weights, trainer, model, unlogged="frozen" if stage else "")


def model(training: Training) -> Model:
    made = training.model()
    # Both Lightning and DeepSpeed divide the loss by the number of micro-batches.
    made.loss_factor = float(training.accumulate)
    return made


def whole_gradients(trainer: Trainer, model: Model) -> Weights:
    from deepspeed.utils import safe_get_full_grad

    found = {clean_name(name): safe_get_full_grad(p) for name, p in model.named_parameters() if p.requires_grad}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def in_16_bits(stage: int, precision: str, dtype: torch.dtype, **kwargs: Any) -> InSixteenBits:
    return InSixteenBits(deepspeed(stage, **kwargs), model, whole_gradients, precision, dtype, zero_unused=True)


@dataclass
class Cost:
    """The traffic of a step, in a model of which it is known."""

    stage: int
    size: int
    numbers: int

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        callback = Counted(log_means="total")
        arguments = trainer_kwargs(
            callbacks=[callback],
            strategy=deepspeed(self.stage)(),
            devices=dist.get_world_size(),
            log_every_n_steps=2,
            max_steps=4,
            accumulate_grad_batches=2,
            use_distributed_sampler=False,
        )
        Trainer(**arguments).fit(
            CostModel(self.size), torch.utils.data.DataLoader(torch.rand(64, self.size), batch_size=4)
        )
        counted = [(len(step.sent), step.bytes) for step in callback.steps]
        once = 1 if self.numbers else 0
        step, logged = (once, 4 * self.numbers), (2 * once + 1, 2 * 4 * self.numbers + 5 * 4)
        # Of two micro-batches, the second ends an accumulation; of two of those, the second is logged. Before
        # the first, ranks of ZeRO 1 and 2 ask each other once where their fragments lie.
        assert counted[2:] == [(0, 0), logged, (0, 0), step, (0, 0), logged], counted


class CostModel(Model):
    def __init__(self, size: int) -> None:
        super().__init__(lambda: nn.Sequential(*(Block(size, size) for _ in range(3))))

    def train_dataloader(self) -> Any:
        return None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()


CLIP = {"clip": ("norm", 0.05)}
ADAMW = {"optimizer": "adamw"}
BY_NAME = gc(include=("net.first", "net.up", "net.emb*"), exclude="*.emb*")
BY_CLASS = gc(exclude=(Block, nn.Embedding))

CHECKS: dict[int, dict[str, Any]] = {
    2: {
        **{
            f"zero_{stage}-{name}": check(stage, *arguments)
            for stage in (0, 1, 2, 3)
            for name, arguments in {
                "gradient": (),
                "gradient-adamw": (gc(), ADAMW),
                "gradient-norm": (gc(), CLIP),
                "filters_by_name": (BY_NAME,),
                "filters_by_class": (BY_CLASS,),
            }.items()
        },
        **{f"zero_{stage}-accumulation": check(stage, gc(), {"accumulate": 2}) for stage in (0, 1, 2, 3)},
        **{f"zero_{stage}-bf16-mixed": in_16_bits(stage, "bf16-mixed", torch.bfloat16) for stage in (1, 2, 3)},
        "zero_2-fp16": in_16_bits(2, "16-mixed", torch.float16, initial_scale_power=4),
        "zero_0-clipped_gradient": check(0, gc("clipped_gradient"), CLIP),
        "zero_0-update": check(0, gc("update"), ADAMW),
        # 126 elements, cut at 63, in row 3 of the second weight: one number for all.
        "cost-zero_2": Cost(2, 6, 1),
        # Each weight of 49 cut at 25, in row 3: one number for each.
        "cost-zero_3": Cost(3, 7, 3),
    },
    4: {
        "zero_1-gradient": check(1),
        "zero_2-gradient": check(2),
        "zero_3-gradient": check(3),
    },
}
