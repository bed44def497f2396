"""On a GPU: the weights of a CPU, no waiting for the device, and at most two kernels. Skipped where there is none."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from lightning_gc import GradientCentralization, kernels
from tests.models import Classifier, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PLANNED = 4
"""After as many steps, of which every other is logged, nothing is planned any more."""


class Watched(GradientCentralization):
    """The callback, with an error wherever its hook makes the host wait for the device, and its kernels counted."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernels: dict[int, list[str]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step < PLANNED:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                super().on_before_optimizer_step(trainer, pl_module, optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        self.kernels[trainer.global_step] = [event.name for event in events if "Mem" not in event.name]


def train(tmp_path: Any, callback: GradientCentralization, accelerator: str, dtype: str = "32-true") -> Classifier:
    module = Classifier(lr=0.1, momentum=0.9)
    fit(
        module,
        callback,
        default_root_dir=tmp_path,
        accelerator=accelerator,
        devices=1,
        precision=dtype,
        log_every_n_steps=2,
        limit_train_batches=8,
    )
    return copy.deepcopy(module).cpu()


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
def test_the_weights_are_those_of_a_cpu(tmp_path, target):
    gpu, cpu = (
        train(tmp_path, GradientCentralization(target=target), accelerator, "64-true") for accelerator in ("gpu", "cpu")
    )
    for one, other in zip(gpu.parameters(), cpu.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("fused", ["0", "1"])
@pytest.mark.parametrize("log_means", ["off", "total", "per_parameter"])
def test_the_host_never_waits(monkeypatch, tmp_path, log_means, fused):
    monkeypatch.setenv(kernels.VARIABLE, fused)
    callback = Watched(log_means=log_means)
    train(tmp_path, callback, "gpu")
    assert len(callback.kernels) == 8 - PLANNED


def test_the_watch_would_see_it():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones((), device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("fused", "at_most"), [("0", 2 * 3), ("1", 2)])
def test_kernels_of_a_step(monkeypatch, tmp_path, fused, at_most):
    """Two for each of the three parameters; or two for all of one dtype."""
    monkeypatch.setenv(kernels.VARIABLE, fused)
    callback = Watched(log_means="off")
    train(tmp_path, callback, "gpu")
    for names in callback.kernels.values():
        assert 0 < len(names) <= at_most, names


class Residuals(GradientCentralization):
    """The callback, with the largest mean that it leaves, relative to the largest element of its weight vector."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.largest = torch.zeros((), dtype=torch.float64, device="cuda")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        for parameter in pl_module.parameters():
            if parameter.dim() > 1 and parameter.grad is not None and parameter.grad.isfinite().all():
                rows = parameter.grad.double().flatten(1)
                relative = rows.mean(1).abs() / rows.abs().amax(1).clamp_min(1e-30)
                self.largest = torch.maximum(self.largest, relative.max())


@pytest.mark.parametrize(
    ("precision", "at_most"), [("16-mixed", 1e-6), ("bf16-mixed", 1e-6), ("bf16-true", 2**-9), ("16-true", 2**-12)]
)
def test_each_precision_leaves_no_more_than_one_rounding(tmp_path, precision, at_most):
    callback = Residuals()
    train(tmp_path, callback, "gpu", precision)
    assert 0 < callback.largest < at_most


@pytest.mark.parametrize(("optimizer", "options"), [(torch.optim.SGD, {}), (torch.optim.AdamW, {"eps": 1e-2})])
def test_a_fused_optimizer_that_unscales_in_its_step(tmp_path, optimizer, options):
    """Centralizing is linear: the weights are those of the optimizer that is not fused, and so is what is logged."""
    found = {}
    for fused in (True, False):
        module = Classifier(optimizer=optimizer, lr=1e-2, fused=fused, **options)
        trainer = fit(
            module,
            GradientCentralization(),
            default_root_dir=tmp_path,
            accelerator="gpu",
            devices=1,
            precision="16-mixed",
            log_every_n_steps=1,
        )
        found[fused] = [p.detach() for p in module.parameters()], trainer.callback_metrics
    for one, other in zip(found[True][0], found[False][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for name, value in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], value, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_a_module_that_is_compiled_to_cuda_graphs(tmp_path, target):
    """Its gradients may lie in memory that the next replay writes to again; centralized in place before that."""
    weights = {}
    for mode in (None, "reduce-overhead"):
        module = Classifier(lr=0.05)
        if mode:
            module.net.compile(mode=mode)
        options = {"default_root_dir": tmp_path, "accelerator": "gpu", "devices": 1}
        fit(module, GradientCentralization(target=target), **options)
        weights[mode] = [p.detach().clone() for p in module.parameters()]
    for one, other in zip(*weights.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Sharded(Classifier):
    """Sharded by FSDP2, module by module."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for module in self.net:
            if next(module.parameters(), None) is not None:
                fully_shard(module, mesh=self.device_mesh["data_parallel"])


def strategies() -> dict[str, Any]:
    from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

    wrap = {torch.nn.Conv2d, torch.nn.Linear}
    return {
        "ddp": DDPStrategy,
        "fsdp": partial(FSDPStrategy, auto_wrap_policy=wrap, use_orig_params=False),
        "fsdp, original parameters": partial(FSDPStrategy, auto_wrap_policy=wrap, use_orig_params=True),
        "fsdp2": ModelParallelStrategy,
    }


@pytest.mark.parametrize("target", ["gradient", "clipped_gradient", "update"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp, original parameters", "fsdp2"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_process_group_of_nccl(tmp_path, strategy, target):
    """One process: what a strategy holds, and how it is summed, is as with many; the weights are those of a CPU."""
    weights: dict[str, Any] = {}

    class Kept(GradientCentralization):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            state = trainer.strategy.lightning_module_state_dict()
            full = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
            weights.update({k: v.detach().cpu().clone() for k, v in full.items()})

    module = (Sharded if strategy == "fsdp2" else Classifier)(lr=0.05)
    options = {"default_root_dir": tmp_path, "devices": 1, "log_every_n_steps": 2, "use_distributed_sampler": False}
    fit(module, Kept(target=target), accelerator="gpu", strategy=strategies()[strategy](), **options)
    alone = Classifier(lr=0.05)
    fit(alone, GradientCentralization(target=target), accelerator="cpu", **options)
    for name, wanted in alone.state_dict().items():
        torch.testing.assert_close(weights[name], wanted, rtol=1e-3, atol=1e-5)
