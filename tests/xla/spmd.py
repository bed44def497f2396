"""Trains with weights that XLA has sharded over two devices (SPMD): ``python -m tests.xla.spmd FOLDER TARGET``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_gc import GradientCentralization
from tests.models import Classifier, fit
from tests.xla import cpu_plugin

import torch_xla  # isort: skip
import torch_xla.distributed.spmd as spmd  # isort: skip
import torch_xla.runtime  # isort: skip

PLACEMENTS = {"net.1.weight": ("shards", None), "net.3.weight": (None, "shards")}  # its rows; its fan-in


def model() -> Classifier:
    """Two linear layers, whose sizes two devices divide."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    return Classifier(net, optimizer=torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def train(target: str, *callbacks: Callback, **kwargs: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The weights, and what was logged of the last step."""
    module, callback = model(), GradientCentralization(target=target, log_means="per_parameter")
    trainer = fit(module, callback, *callbacks, log_every_n_steps=2, **kwargs)
    weights = {name: parameter.detach().cpu() for name, parameter in module.named_parameters()}
    return weights, {name: value.item() for name, value in trainer.callback_metrics.items()}


class Shard(Callback):
    """Marks the weights, and reads at the end how they are placed."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        mesh = spmd.Mesh(range(2), (2,), ("shards",))
        for name, placement in PLACEMENTS.items():
            spmd.mark_sharding(pl_module.get_parameter(name), mesh, placement)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.placed = {
            name: torch_xla._XLAC._get_xla_sharding_spec(pl_module.get_parameter(name).data) for name in PLACEMENTS
        }


if __name__ == "__main__":
    folder, target = sys.argv[1:]
    torch_xla.runtime.use_spmd()
    # Of all the devices, SPMD makes one.
    cpu_plugin.XLAAccelerator.auto_device_count = staticmethod(lambda: 1)
    shard = Shard()
    weights, logged = train(target, shard, accelerator="tpu")
    torch.save({"weights": weights, "logged": logged, "placed": shard.placed}, Path(folder, "found.pt"))
