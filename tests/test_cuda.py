"""On a GPU: the weights of a CPU, no waiting for the device, and at most two kernels. Skipped where there is none."""

from __future__ import annotations

import copy
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
