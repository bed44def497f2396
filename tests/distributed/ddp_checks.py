"""What is checked in 2 processes of DDP: all targets and filters, and that nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lightning_gc import GradientCentralization
from tests.distributed.checks import Check, Training, gc
from tests.distributed.costs import Counted
from tests.distributed.models import Block, Model
from tests.models import trainer_kwargs


def check(arguments: Any = None, training: dict[str, Any] | None = None, **strategy: Any) -> Check:
    made = Training(gc() if arguments is None else arguments, **(training or {}))
    given = {"find_unused_parameters": not made.zero_unused, **strategy}
    return Check(made, lambda: DDPStrategy(process_group_backend="gloo", **given))


@dataclass
class Cost:
    """Every process has whole gradients, the same ones: nothing is sent, on logged steps neither."""

    gc: dict[str, Any] = field(default_factory=dict)

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        callback = Counted(**self.gc)
        arguments = trainer_kwargs(
            callbacks=[callback], strategy="ddp", devices=dist.get_world_size(), log_every_n_steps=2, max_steps=4
        )
        Trainer(**arguments).fit(CostModel(), torch.utils.data.DataLoader(torch.rand(64, 7), batch_size=4))
        assert [(step.logged, step.collectives, step.sent) for step in callback.steps] == [
            (logged, 0, []) for logged in (False, True, False, True)
        ]


class CostModel(Model):
    def __init__(self) -> None:
        super().__init__(lambda: nn.Sequential(*(Block(7, 7) for _ in range(3))))

    def train_dataloader(self) -> Any:
        return None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()


class Expert(Model):
    """Only the first rank has tokens for its second expert, a matrix (in, out)."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.ParameterDict({"mine": torch.randn(7, 5), "others": torch.randn(7, 5)}))

    def train_dataloader(self) -> Any:
        return None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        out = torch.tanh(batch @ self.net["mine"])
        return (out + torch.tanh(batch @ self.net["others"]) if self.global_rank == 0 else out).square().mean()


class OfOneRank:
    """What one rank has read holds for all."""

    def reference(self) -> None:
        return None

    def run(self, expected: None) -> None:
        callback = GradientCentralization()
        kept: dict[str, Any] = {}

        class Keep(Callback):
            def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
                kept.update((e.name, (e.layout.dims, e.layout.source)) for e in callback.selection)

        arguments = trainer_kwargs(
            callbacks=[callback, Keep()], strategy=ddp_unused(), devices=dist.get_world_size(), max_steps=2
        )
        Trainer(**arguments).fit(Expert(), torch.utils.data.DataLoader(torch.rand(64, 3, 7), batch_size=4))
        assert kept == dict.fromkeys(("net.mine", "net.others"), ((0,), "read from the graph"))


def ddp_unused() -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)


def compiled(training: Training) -> Model:
    """The backend traces and changes nothing: no compiler is needed."""
    model = training.model()
    model.net.compile(backend="aot_eager")
    return model


RAW = {"raw": True}
NORM = {"clip": ("norm", 0.05)}
ADAMW = {"optimizer": "adamw"}

CHECKS: dict[int, dict[str, Any]] = {
    2: {
        "gradient": check(),
        "gradient-norm": check(gc(), NORM),
        "clipped_gradient": check(gc("clipped_gradient"), NORM),
        "update": check(gc("update"), ADAMW),
        "filters_by_name": check(gc(include=("net.first", "net.up", "net.emb*"), exclude="*.emb*")),
        "filters_by_class": check(gc(exclude=(Block, nn.Embedding))),
        "accumulation": check(gc("update"), {"accumulate": 2}),
        "bucket_views": check(gc(), gradient_as_bucket_view=True),
        "static_graph": check(gc(), {"zero_unused": True}, static_graph=True),
        "read": check(gc("update"), RAW),
        "read-compiled": Check(Training(gc(), raw=True), ddp_unused, model=compiled),
        "read-of_one_rank": OfOneRank(),
        "cost": Cost(),
        "cost-update": Cost({"target": "update", "log_means": "per_parameter"}),
    }
}
