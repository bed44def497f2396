"""What is checked in 2 processes of DeepSpeed."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn

from lightning_gc.engines.partitioned import PartitionedStore
from lightning_gc.engines.partitions import Partition
from lightning_gc.selection.places import clean_name
from tests.distributed.checks import Check, Recorder, Told, Training, Weights, gc, max_difference
from tests.distributed.costs import CountedInside
from tests.distributed.deepspeed_hooks import Hooks
from tests.distributed.mixed import InSixteenBits, MastersInSixteenBits
from tests.distributed.models import Block, Model, OneSize
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


def deepspeed(stage: int, zero: Any = None, config: Any = None, **kwargs: Any) -> Any:
    """What makes the strategy, once there are processes; `zero` and `config` go into DeepSpeed's own configuration."""

    def make() -> DeepSpeedStrategy:
        made = CPUDeepSpeedStrategy(zero_optimization=stage > 0, stage=stage, process_group_backend="gloo", **kwargs)
        if zero:
            made.config["zero_optimization"].update(zero)
            made.config["zero_force_ds_cpu_optimizer"] = False  # DeepSpeed's own would be compiled on the spot
        made.config.update(config or {})
        return made

    return make


def whole_weights(trainer: Trainer, model: Model) -> Weights:
    import deepspeed as ds

    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    found = {}
    for name, parameter in parameters.items():
        with ds.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            found[name] = parameter.detach().clone()
    return found


def check(stage: int, arguments: Any = None, training: dict[str, Any] | None = None, **zero: Any) -> Check:
    # DeepSpeed gives parameters without a gradient one of zeros. ZeRO knows nothing of frozen ones.
    made = Training(gc() if arguments is None else arguments, **{"zero_unused": True, **(training or {})})
    return Check(made, deepspeed(stage, zero), whole_weights, model=model, unlogged="frozen" if stage else "")


def model(training: Training) -> Model:
    made = training.model()
    # Both Lightning and DeepSpeed divide the loss by the number of micro-batches.
    made.loss_factor = float(training.accumulate)
    return made


def whole_gradients(trainer: Trainer, model: Model) -> Weights:
    from deepspeed.utils import safe_get_full_grad

    found = {clean_name(name): safe_get_full_grad(p) for name, p in model.named_parameters() if p.requires_grad}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def whole_masters(trainer: Trainer, model: Model) -> Weights:
    from deepspeed.utils import safe_get_full_fp32_param

    wrapper = trainer.strategy.deepspeed_engine.optimizer
    if hasattr(wrapper, "fp32_groups"):  # ZeRO 0 in 16 bits: whole ones
        pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
        copies = {p: copy for of, to in pairs for p, copy in zip(of, to, strict=True)}
        read = copies.get
    else:
        read = safe_get_full_fp32_param
    found = {clean_name(name): read(p) for name, p in model.named_parameters() if p.requires_grad}
    return {name: master.detach().float().clone() for name, master in found.items()}


def in_16_bits(stage: int, precision: str, dtype: torch.dtype, **kwargs: Any) -> InSixteenBits:
    # Clipped, though by nothing: the gradients are to be found before.
    return InSixteenBits(
        deepspeed(stage, **kwargs), model, whole_gradients, precision, dtype, zero_unused=True, clip=("norm", 1e6)
    )


def masters(
    stage: int, precision: str, target: str, skips: bool = False, config: Any = None, **kwargs: Any
) -> MastersInSixteenBits:
    # ZeRO 0 in 16 bits takes a step with gradients of zeros when it is set up, which fills the momentum with decay.
    optimizer = "sgd" if target == "update" and stage else "sgd_without_decay"
    strategy = deepspeed(stage, config=config, **kwargs)
    return MastersInSixteenBits(strategy, model, whole_masters, precision, gc(target), optimizer, skips)


@dataclass
class Cost:
    """The traffic of a step, in a model of which it is known."""

    stage: int
    size: int
    numbers: int

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        callback = CountedInside(log_means="total")
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
        # Of two micro-batches, the second ends an accumulation; of two of those, the second is logged.
        assert counted == [step, logged] * 2, counted


@dataclass
class Refused:
    """Before training starts, by name and with what to do."""

    training: Training
    strategy: Any
    says: str
    precision: str

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        module = self.training.model()
        module.training_step = lambda *_: pytest.fail("the error came too late")
        with pytest.raises(MisconfigurationException, match=self.says):
            self.training.fit(module, strategy=self.strategy(), devices=dist.get_world_size(), precision=self.precision)


@dataclass
class Resumed:
    """Trained on from a checkpoint in the middle, the weights are those of one run, bit for bit."""

    stage: int
    gc: Any

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        folder: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(folder)
        path = Path(folder[0], "middle.ckpt")
        whole = self._fit(max_epochs=2)
        self._fit(max_epochs=1, save=path)
        resumed = self._fit(max_epochs=2, ckpt_path=path)
        assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
        # And they would be others without the callback from there on.
        without = self._fit(max_epochs=2, ckpt_path=path, callback=False)
        assert max_difference(without, whole) > 1e-4
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(folder[0])

    def _fit(self, max_epochs: int, save: Any = None, ckpt_path: Any = None, callback: bool = True) -> Weights:
        recorder = Recorder(whole_weights)
        training = Training(self.gc if callback else None, "adamw_in_groups", zero_unused=True)
        module = training.model()
        trainer = training.fit(
            module,
            recorder,
            ckpt_path=ckpt_path,
            strategy=deepspeed(self.stage)(),
            devices=dist.get_world_size(),
            max_epochs=max_epochs,
        )
        if save:
            trainer.save_checkpoint(save)
        return recorder.after


class CostModel(Model):
    def __init__(self, size: int) -> None:
        super().__init__(lambda: nn.Sequential(*(Block(size, size) for _ in range(3))))

    def train_dataloader(self) -> Any:
        return None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()


TARGETS = ("gradient", "clipped_gradient", "update")
RAW = {"raw": True}
CLIP = {"clip": ("norm", 0.05)}
ADAMW = {"optimizer": "adamw"}
GROUPS = {"optimizer": "adamw_in_groups"}
BY_NAME = gc(include=("net.first", "net.up", "net.emb*"), exclude="*.emb*")
BY_CLASS = gc(exclude=(Block, nn.Embedding))
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OFFLOAD_BOTH = {**OFFLOAD, "offload_param": {"device": "cpu"}}


def cells(stage: int, name: str = "", **zero: Any) -> dict[str, Check]:
    """Every target, with and without clipping, in param groups, some with accumulation, of one configuration."""
    made = {
        "gradient": check(stage, gc(), ADAMW, **zero),
        "gradient-norm": check(stage, gc(), {**GROUPS, **CLIP}, **zero),
        "clipped_gradient": check(stage, gc("clipped_gradient"), {**GROUPS, **CLIP, "accumulate": 2}, **zero),
        "update": check(stage, gc("update"), {**GROUPS, **CLIP}, **zero),
    }
    return {f"zero_{stage}-{name}{cell}": check for cell, check in made.items()}


CHECKS: dict[int, dict[str, Any]] = {
    2: {
        **{name: cell for stage in (0, 1, 2, 3) for name, cell in cells(stage).items()},
        **{name: cell for s in (1, 2) for name, cell in cells(s, "round_robin-", round_robin_gradients=True).items()},
        # Each parameter would fit in the place of any other.
        **{
            f"zero_{s}-round_robin-one_size": check(s, gc(), {"net": OneSize}, round_robin_gradients=True)
            for s in (1, 2)
        },
        **cells(2, "aligned-", parameter_alignment=True),
        # Four sub-groups, two of which hold one parameter alone.
        **cells(3, "sub_groups-", sub_group_size=150),
        **{name: cell for s in (1, 2, 3) for name, cell in cells(s, "offload-", **OFFLOAD).items()},
        **cells(3, "offload_both-", **OFFLOAD_BOTH),
        "zero_2-offload-older_spelling": check(2, gc(), ADAMW, cpu_offload=True),
        "zero_3-offload-older_spelling": check(3, gc(), ADAMW, cpu_offload=True),
        **{
            f"zero_{stage}-{name}": check(stage, *arguments)
            for stage in (0, 1, 2, 3)
            for name, arguments in {
                "filters_by_name": (BY_NAME,),
                "filters_by_class": (BY_CLASS,),
                "accumulation": (gc(), {"accumulate": 2}),
            }.items()
        },
        **{f"zero_{s}-resumed": Resumed(s, gc("update")) for s in (1, 2, 3)},
        **{f"zero_{stage}-read": check(stage, gc(), RAW) for stage in (0, 1, 2, 3)},
        **{f"zero_{stage}-bf16-mixed": in_16_bits(stage, "bf16-mixed", torch.bfloat16) for stage in (1, 2, 3)},
        "zero_2-fp16": in_16_bits(2, "16-mixed", torch.float16, initial_scale_power=4),
        **{f"zero_{s}-bf16-{t}": masters(s, "bf16-mixed", t) for s in (0, 1, 2, 3) for t in TARGETS[1:]},
        **{
            f"zero_{s}-fp16-{t}": masters(s, "16-mixed", t, skips=True, initial_scale_power=18, hysteresis=1)
            for s, t in ((1, "clipped_gradient"), (2, "update"), (3, "update"))
        },
        **{
            f"bf16_optimizer-{t}": masters(1, "bf16-mixed", t, config={"data_types": {"grad_accum_dtype": "fp32"}})
            for t in TARGETS
        },
        **{
            f"zero_{stage}-told-{name}": Told(
                Training(gc(), **ADAMW, **clip, zero_unused=True),
                deepspeed(stage),
                "had a gradient in an optimizer step",
                model,
                # DeepSpeed holds gradients where nobody looks for them, as it did with `cpu_offload` once.
                lambda: patch.object(Partition, "read", lambda *_: None),
            )
            for stage in (2, 3)
            for name, clip in (("in_step", {}), ("before_clipping", CLIP))
        },
        **{
            # It steps on something else than what was found to hold the parameters.
            f"zero_3-told-{target}": Told(
                Training(gc(target), **ADAMW, zero_unused=True),
                deepspeed(3),
                said,
                model,
                lambda: patch.object(PartitionedStore, "moved_by", lambda *_: []),
            )
            for target, said in (("gradient", "had a gradient"), ("update", "was found among the weights"))
        },
        "zero_2-told-not": Told(Training(gc(), zero_unused=True), deepspeed(2), "", model),
        "bf16_optimizer-gradient-norm": Refused(
            Training(gc(), clip=("norm", 0.05)),
            deepspeed(1, config={"data_types": {"grad_accum_dtype": "fp32"}}),
            "gradients are clipped.*BF16_Optimizer.*Use target='clipped_gradient'",
            "bf16-mixed",
        ),
        **{
            f"zero_{stage}-hooks-{ends}": Hooks(deepspeed(stage), target, ends)
            for stage, target in ((2, "gradient"), (3, "update"))
            for ends in ("fitted_twice", "exception", "learning_rate_finder", "batch_size_finder")
        },
        # 126 elements, cut at 63, in row 3 of the second weight: one number for all.
        "cost-zero_2": Cost(2, 6, 1),
        # Each weight of 49 cut at 25, in row 3: one number for each.
        "cost-zero_3": Cost(3, 7, 3),
    },
    4: {
        f"zero_{stage}-{target}": check(stage, gc(target), {**GROUPS, **CLIP})
        for stage in (1, 2, 3)
        for target in ("gradient", "update")
    },
}
