"""What is checked in 2 processes of DDP: all targets and filters, and that nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

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
        "cost": Cost(),
        "cost-update": Cost({"target": "update", "log_means": "per_parameter"}),
    }
}
