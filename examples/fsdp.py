"""Train a small transformer whose parameters, gradients and optimizer states are sharded over several devices.

`python examples/fsdp.py` starts two processes (``--devices`` for more): on GPUs with FSDP (``strategy="fsdp"``), on
the CPU, which Lightning's FSDP does not support, with FSDP2 (``--engine fsdp2``, also for GPUs). No process holds a whole
gradient. The callback adds up, over the processes, only the sums of those weight vectors that a cut between two
processes runs through.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_gc import GradientCentralization

VOCABULARY, LENGTH = 32, 24


class Reverser(LightningModule):
    """A transformer encoder that learns to write a sequence backwards."""

    def __init__(self, size: int, layers: int, shards: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, size)
        self.positions = nn.Parameter(torch.randn(1, LENGTH, size) / 10)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(size, 4, 2 * size, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(size, VOCABULARY)
        self._shards = shards

    def configure_model(self) -> None:
        """Shard layer by layer, where Lightning leaves it to the module (FSDP2)."""
        if not self._shards:
            return
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for layer in self.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        (tokens,) = batch
        loss = F.cross_entropy(self(tokens).flatten(0, 1), tokens.flip(1).flatten())
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def make_strategy(engine: str, devices: int) -> Any:
    """FSDP or FSDP2, a unit for each layer."""
    if engine == "fsdp":
        return FSDPStrategy(auto_wrap_policy={nn.TransformerEncoderLayer})
    return ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what was removed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2, help="processes, each with a GPU if there are (default: 2)")
    parser.add_argument("--engine", choices=("auto", "fsdp", "fsdp2"), default="auto", help="default: fsdp on GPUs")
    parser.add_argument("--target", default="gradient", help="'gradient', 'clipped_gradient' or 'update'")
    parser.add_argument("--steps", type=int, default=60, help="default: 60")
    parser.add_argument("--size", type=int, default=64, help="of the hidden states (default: 64)")
    parser.add_argument("--layers", type=int, default=2, help="default: 2")
    options = parser.parse_args(arguments)
    on_gpus = torch.cuda.device_count() >= options.devices
    engine = options.engine if options.engine != "auto" else ("fsdp" if on_gpus else "fsdp2")
    if engine == "fsdp" and not on_gpus:
        parser.error(f"--engine fsdp needs {options.devices} GPUs; use --engine fsdp2")

    seed_everything(0)
    model = Reverser(options.size, options.layers, shards=engine == "fsdp2")
    data = TensorDataset(torch.randint(0, VOCABULARY, (4096, LENGTH)))
    callback = GradientCentralization(exclude=nn.Embedding, target=options.target, log_means="per_parameter")
    trainer = Trainer(
        strategy=make_strategy(engine, options.devices),
        accelerator="gpu" if on_gpus else "cpu",
        devices=options.devices,
        max_steps=options.steps,
        callbacks=[callback],
        log_every_n_steps=10,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))

    if trainer.is_global_zero:
        held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
        print(
            f"{engine}: {trainer.world_size} processes on {trainer.strategy.root_device.type}; this one holds {held:,} elements"
        )
        for name, value in trainer.callback_metrics.items():
            print(f"{name:60} {value.item():.3e}")


if __name__ == "__main__":
    main()
