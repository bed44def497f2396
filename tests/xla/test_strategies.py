"""Which of Lightning's strategies for XLA are served."""

from __future__ import annotations

import pytest
import torch
import torch_xla
from lightning.fabric.strategies import XLAFSDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceXLAStrategy
from torch import nn
from torch_xla.distributed.fsdp import XlaFullyShardedDataParallel

from lightning_gc import attach
from lightning_gc.engines import Engine
from lightning_gc.training.strategies import find_engine
from tests.models import trainer_kwargs


def test_what_lightning_takes_for_one_device_is_served():
    strategy = Trainer(**trainer_kwargs(accelerator="tpu")).strategy
    assert type(strategy) is SingleDeviceXLAStrategy
    assert find_engine(strategy) is Engine


def test_xlafsdp_is_refused_by_name():
    """Lightning has this strategy for Fabric alone."""
    with pytest.raises(MisconfigurationException, match="does not know how XLAFSDPStrategy holds gradients"):
        find_engine(XLAFSDPStrategy())


@pytest.mark.parametrize("on_dim_0", [False, True])
def test_what_xlafsdp_wraps_is_refused_by_name(on_dim_0):
    net = XlaFullyShardedDataParallel(nn.Linear(4, 8).to(torch_xla.device()), shard_param_on_dim_0=on_dim_0)
    with pytest.raises(ValueError, match="attach\\(\\) does not serve XlaFullyShardedDataParallel"):
        attach(torch.optim.SGD(net.parameters(), lr=0.1), net)
