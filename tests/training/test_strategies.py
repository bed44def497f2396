"""Which strategies are refused, and that `pytorch_lightning`'s Trainer is as good as Lightning's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    Strategy,
    XLAStrategy,
)
from torch import nn

from lightning_gc import GradientCentralization
from lightning_gc.engines import Engine
from lightning_gc.engines.deepspeed import DeepSpeedEngine
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

    said = r"EngineStrategy .*single device or with a `ddp`, `xla`, .*remove the callback"
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


class TrainerWith:
    def __init__(self, strategy):
        self.strategy = strategy


@pytest.mark.parametrize("kind", [XLAStrategy, SingleDeviceXLAStrategy])
def test_xla_holds_whole_gradients(kind):
    strategy = object.__new__(kind)  # as much of it as there is without torch_xla
    assert find_engine(strategy) is Engine


def test_deepspeed_is_no_ddp_although_it_derives_from_it():
    strategy = object.__new__(DeepSpeedStrategy)  # the package deepspeed may not be there
    assert isinstance(strategy, DDPStrategy)
    assert find_engine(strategy) is DeepSpeedEngine


def test_the_cpu_offload_of_fsdp_is_refused():
    with pytest.raises(MisconfigurationException, match="CPU offload of FSDP"):
        check_strategy(TrainerWith(FSDPStrategy(cpu_offload=True)), "gradient")


class DeepSpeedZeroOptimizer:
    """As much of DeepSpeed's own as is asked, of what cannot be set up without GPUs or disks made for it."""

    clip_grad = 0.0

    def __init__(self, **kwargs):
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        vars(self).update(kwargs)


class SuperOffloadOptimizer_Stage3(DeepSpeedZeroOptimizer):  # noqa: N801
    pass


class MuonWithAuxAdam:
    pass


def deepspeed_engine(optimizer, hpz=1, autotp=1, experts=False):
    return SimpleNamespace(
        optimizer=optimizer,
        zero_hpz_partition_size=lambda: hpz,
        autotp_size=lambda: autotp,
        has_moe_layers=experts,
        mpu=None,
    )


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (deepspeed_engine(DeepSpeedZeroOptimizer(swap_optimizer=True)), "NVMe offload"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(params_in_nvme_and_cpu=True)), "NVMe offload"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(zenflow=True)), "ZenFlow"),
        (deepspeed_engine(SuperOffloadOptimizer_Stage3()), "SuperOffloadOptimizer_Stage3"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(), hpz=2), "hpZ"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(), autotp=2), "tensor parallelism"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(), experts=True), "mixtures of experts"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(optimizer=MuonWithAuxAdam())), "Muon"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(torch_autocast_gradscaler=object())), "`torch_autocast` in float16"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(fused_adam_legacy=True)), "`legacy_fusion`"),
        (deepspeed_engine(DeepSpeedZeroOptimizer(fused_lamb_legacy=True)), "LAMB in 16 bits without ZeRO"),
    ],
)
def test_what_was_never_run_with_deepspeed_is_refused_by_name(engine, said):
    strategy = SimpleNamespace(deepspeed_engine=engine, root_device=torch.device("cpu"))
    with pytest.raises(MisconfigurationException, match=f"never run with DeepSpeed's {said}.*remove the callback"):
        DeepSpeedEngine(strategy)
