"""Trains on two devices of PJRT's CPU plugin: ``python -m tests.xla.two_devices FOLDER TARGET``.

Each rank writes its weights and its logged means to a file in the folder.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import XLAStrategy

from tests.distributed.models import Model
from tests.xla import cpu_plugin  # noqa: F401
from tests.xla.trainings import TRAININGS

import torch_xla  # isort: skip
import torch_xla.core.xla_model as xm  # isort: skip

# The plugin runs its devices in threads of one process.
EXCHANGE = threading.Barrier(2)
COMPILATION = threading.Lock()


def exchange_past_xla() -> None:
    """Meet, broadcast and reduce in the one process: the only collective left is the all-reduce of the gradients.

    On the CPU plugin, collectives between two devices hang unless both run the same programs in the same order, and what
    Lightning exchanges besides comes in no order.
    """
    XLAStrategy.barrier = lambda self, *_, **__: EXCHANGE.wait() if self._launched else None
    XLAStrategy.broadcast = lambda self, obj, src=0: obj
    XLAStrategy.reduce = lambda self, output, group=None, reduce_op="mean": output * 2 if reduce_op == "sum" else output
    xm.rendezvous = lambda *_, **__: EXCHANGE.wait()
    xm.broadcast_master_param = lambda model: None


def compile_in_turn() -> None:
    """Let one thread at a time compile.

    Two that compile the same graph at the same time get two programs, of which each waits for the other's all-reduce for
    ever. In turn, the second finds the program of the first in the cache.
    """
    for name in ("_xla_step_marker", "_xla_sync_multi", "_xla_sync_live_tensors"):
        setattr(torch_xla._XLAC, name, in_turn(getattr(torch_xla._XLAC, name)))
    # Reading a value compiles, too, past the lock: no collective may be pending then.
    xm.all_reduce = then_run(xm.all_reduce)


def in_turn(act: Callable[..., Any]) -> Callable[..., Any]:
    def acting(*args: Any, **kwargs: Any) -> Any:
        # Not with the lock: this waits for the device's last program, and that for the other thread.
        device = torch_xla._XLAC._xla_get_default_device()
        torch_xla._XLAC._xla_wait_device_ops(torch_xla._XLAC._xla_real_devices([device]))
        with COMPILATION:
            return act(*args, **kwargs)

    return acting


def then_run(trace: Callable[..., Any]) -> Callable[..., Any]:
    def running(*args: Any, **kwargs: Any) -> Any:
        traced = trace(*args, **kwargs)
        torch_xla._XLAC._xla_step_marker(torch_xla._XLAC._xla_get_default_device(), [], wait=False)
        return traced

    return running


class Save(Callback):
    """Each rank saves what it has."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Model) -> None:
        weights = {name: p.detach().cpu() for name, p in pl_module.named_parameters()}
        found = {"weights": weights, "logged": pl_module.logged, "device": str(pl_module.device)}
        torch.save(found, Path(self.folder, f"rank{trainer.global_rank}.pt"))


if __name__ == "__main__":
    exchange_past_xla()
    compile_in_turn()
    folder, target = sys.argv[1:]
    training = TRAININGS[target]
    training.fit(training.model(), Save(folder), accelerator="tpu", strategy="xla", devices=2)
