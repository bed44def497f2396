"""Which strategies are refused, and that `pytorch_lightning`'s Trainer is as good as Lightning's."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from lightning_gc import GradientCentralization
from lightning_gc.strategies import check_strategy
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

    said = r"EngineStrategy .*single device or with a `ddp` strategy, or remove the callback"
    with pytest.raises(MisconfigurationException, match=said):
        fit(Untouched(), GradientCentralization(), strategy=EngineStrategy(CPUAccelerator()), accelerator="auto")


def test_subclasses_of_known_strategies_are_known():
    module = Classifier()
    fit(module, GradientCentralization(), strategy=OfSomeEngine("cpu"), accelerator="auto", max_steps=1)
    assert module.net[0].weight.grad.mean((1, 2, 3)).abs().max() < 1e-7


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


def test_deepspeed_is_no_ddp_although_it_derives_from_it():
    deepspeed = pytest.importorskip("lightning.pytorch.strategies.deepspeed")

    class Mine:
        strategy = object.__new__(deepspeed.DeepSpeedStrategy)

    assert isinstance(Mine.strategy, DDPStrategy)
    with pytest.raises(MisconfigurationException, match="DeepSpeedStrategy holds gradients"):
        check_strategy(Mine())
