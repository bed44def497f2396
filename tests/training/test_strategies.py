"""Which strategies are refused, and that `pytorch_lightning`'s Trainer is as good as Lightning's."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from lightning_gc import GradientCentralization
from lightning_gc.engines import Engine
from lightning_gc.training.strategies import check_strategy, find_engine
from tests.models import Classifier, fit, image_batches, trainer_kwargs


class OfSomeEngine(SingleDeviceStrategy):
    """A strategy that trains as a single device does, under a name that nobody knows."""


class EngineStrategy(Strategy):
    """A strategy that derives from nothing known: as much of it as is used before `setup`."""

    root_device = torch.device("cpu")
    is_global_zero = True

    def reduce(self, tensor, *args, **kwargs):
        return tensor

    def all_gather(self, tensor, *args, **kwargs):
        return tensor

    def broadcast(self, obj, src=0):
        return obj

    def barrier(self, name=None):
        pass

    def model_to_device(self):
        pass


def test_an_unknown_strategy_is_refused_before_anything_is_trained():
    class Untouched(Classifier):
        def configure_optimizers(self):
            raise AssertionError("the error came too late")

    said = r"EngineStrategy .*single device or with a `ddp`, .*remove the callback"
    with pytest.raises(MisconfigurationException, match=said):
        fit(Untouched(), GradientCentralization(), strategy=EngineStrategy(CPUAccelerator()), accelerator="auto")


def test_subclasses_of_known_strategies_are_known():
    module = Classifier()
    fit(module, GradientCentralization(), strategy=OfSomeEngine("cpu"), accelerator="auto", max_steps=1)
    assert module.net[0].weight.grad.mean((1, 2, 3)).abs().max() < 1e-7


def test_what_an_engine_cannot_centralize_is_refused_before_anything_is_trained(monkeypatch):
    class Picky(Engine):
        def check_entries(self, entries):
            raise MisconfigurationException(f"not {entries[0].name}")

    class Untrained(Classifier):
        def training_step(self, batch, batch_idx):
            raise AssertionError("the error came too late")

    monkeypatch.setattr("lightning_gc.training.fit.find_engine", lambda strategy: Picky)
    with pytest.raises(MisconfigurationException, match=r"not net\.0\.weight"):
        fit(Untrained(), GradientCentralization())


def test_pytorch_lightning():
    pl = pytest.importorskip("pytorch_lightning")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            inner = Classifier()
            self.net, self._inner = inner.net, [inner]

        def training_step(self, batch, batch_idx):
            return self._inner[0].training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, same = Module(), Classifier()
    kwargs = trainer_kwargs(log_every_n_steps=4)
    trainer = pl.Trainer(**kwargs, callbacks=[GradientCentralization()])
    trainer.fit(module, image_batches())
    assert trainer.callback_metrics.keys() == {"gc/mean_pre", "gc/mean_post", "gc/removed_norm"}
    fit(same, GradientCentralization())
    for name, value in same.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)


def deepspeed_with(precision="32-true", **zero):
    """As much of the strategy as there is at `setup`, without the package deepspeed."""
    strategy = object.__new__(DeepSpeedStrategy)
    strategy.config = {"zero_optimization": zero} if zero else {}
    strategy._precision_plugin = Precision()
    strategy._precision_plugin.precision = precision
    return strategy


class TrainerWith:
    def __init__(self, strategy):
        self.strategy = strategy


def test_deepspeed_is_no_ddp_although_it_derives_from_it():
    assert isinstance(deepspeed_with(), DDPStrategy)
    assert find_engine(deepspeed_with()).__name__ == "DeepSpeedEngine"


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_deepspeed_without_zero_steps_a_torch_optimizer(target):
    check_strategy(TrainerWith(deepspeed_with()), target)


@pytest.mark.parametrize(
    ("strategy", "target", "said"),
    [
        (deepspeed_with(stage=1), "clipped_gradient", "ZeRO 1 clips gradients inside its own step"),
        (deepspeed_with(stage=3), "update", "ZeRO 3 updates partitions of its own copy"),
        (deepspeed_with(stage=2, offload_optimizer={"device": "cpu"}), "gradient", "`offload_optimizer`"),
        (deepspeed_with(stage=3, offload_param={"device": "nvme"}), "gradient", "`offload_param`"),
        (deepspeed_with(precision="bf16-mixed"), "gradient", "precision='bf16-mixed' needs ZeRO"),
        (FSDPStrategy(cpu_offload=True), "gradient", "CPU offload of FSDP"),
    ],
)
def test_what_an_engine_leaves_no_place_for_is_refused(strategy, target, said):
    with pytest.raises(MisconfigurationException, match=said):
        check_strategy(TrainerWith(strategy), target)


@pytest.mark.parametrize("device", ["none", None])
def test_an_offload_that_is_switched_off_is_none(device):
    offload = {"device": device} if device else None
    check_strategy(TrainerWith(deepspeed_with(stage=2, offload_optimizer=offload)), "gradient")
