"""Trains with the strategy and number of devices given on the command line; a script, as a user has it.

Every rank writes its weights and its logged means to a file in the folder given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_gc import GradientCentralization

GLOBAL_BATCH = 8
BATCHES = 5


class Net(LightningModule):
    """Conv, ConvTranspose in groups, Embedding, Linear; float64. No BatchNorm: its statistics are each rank's."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2, groups=2)
        self.table = nn.Embedding(3, 5)
        self.head = nn.Linear(4 * 7 * 7 + 5, 3)
        if unused:
            self.unused = nn.Linear(2, 2)
        self.double()

    def training_step(self, batch, batch_idx):
        x, kind, y = batch
        features = self.up(F.relu(self.conv(x))).flatten(1)
        return F.cross_entropy(self.head(torch.cat([features, self.table(kind)], 1)), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        count = GLOBAL_BATCH * BATCHES
        x = torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64)
        kind, y = (torch.randint(0, 3, (count,), generator=generator) for _ in range(2))
        data, ranks = TensorDataset(x, kind, y), self.trainer.world_size
        # Rank r has the samples r, r + 2, ...: a global batch is the same in one process. (Lightning's own
        # sampler would shuffle.)
        sampler = DistributedSampler(data, ranks, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=GLOBAL_BATCH // ranks, sampler=sampler)


class Save(Callback):
    """Each rank saves what it has."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer, pl_module):
        path = Path(self.folder) / f"rank{trainer.global_rank}.pt"
        torch.save({"weights": pl_module.state_dict(), "logged": self.logged}, path)


def main(
    folder: str, strategy: str, devices: int, accumulate: int = 1, unused: bool = False, centralize: bool = True
) -> None:
    trainer = Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=devices,
        max_epochs=2,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        callbacks=[*([GradientCentralization(log_means="per_parameter")] if centralize else []), Save(folder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Net(unused))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), unused="unused" in sys.argv[2])
