"""Every precision: means in float32 at least, one rounding, the unscaled gradient, Inf and NaN passed on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lightning_gc import GradientCentralization, centralize, centralize_
from tests import oracle
from tests.models import Classifier, fit
from tests.recorder import Recorder, selected_dims

TARGETS = ["gradient", "clipped_gradient", "update"]


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def with_scaler(scale: float = 1024.0) -> MixedPrecision:
    """16-mixed with a real scaler on CPU, where `precision="16-mixed"` would mean bf16-mixed without one."""
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


# --- the bound, on one tensor -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fan_in", [64, 1000, 28_672])
@pytest.mark.parametrize("offset", [0.0, 26.0, 1000.0])
@pytest.mark.parametrize("in_place", [False, True])
def test_residual_mean_is_at_most_one_rounding(dtype: torch.dtype, fan_in: int, offset: float, in_place: bool):
    """abs(mean after) ≤ u · mean(abs(after)), each element rounded once, plus what float32 loses of the mean before.

    The latter, 2 ε₃₂ · mean(abs(before)) (of the sum, of 1 / n, and of their product), is less than one rounding of a
    16-bit element for an offset of up to 2^14 times the spread. `u` is half the distance from 1 to the next number of
    the type.
    """
    generator = torch.Generator().manual_seed(fan_in)
    before = (torch.randn(6, fan_in, generator=generator) + offset).to(dtype)
    after = centralize_(before.clone()) if in_place else centralize(before)
    wide_before, wide_after = before.double(), after.double()
    bound = unit_roundoff(dtype) * wide_after.abs().mean(1)
    bound += 2 * torch.finfo(torch.float32).eps * wide_before.abs().mean(1)
    assert (wide_after.mean(1).abs() <= bound).all()
    # Each element is the exact one, rounded once.
    exact = torch.from_numpy(oracle.centralized(before[:1, :64].contiguous(), (1,)))
    got = centralize(before[:1, :64].contiguous()).double()
    error = (got - exact).abs()
    assert (error <= unit_roundoff(dtype) * exact.abs() + 2 * torch.finfo(torch.float32).eps * (offset + 4)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_in_16_bits_would_break_the_bound(dtype: torch.dtype):
    before = (torch.randn(6, 28_672, generator=torch.Generator().manual_seed(0)) + 26).to(dtype)
    naive = (before - before.mean(1, keepdim=True)).double()
    assert (naive.mean(1).abs() > 2 * unit_roundoff(dtype) * naive.abs().mean(1)).any()


# --- the Trainer's precisions -------------------------------------------------------------------------------------

PRECISIONS: dict[str, dict[str, Any]] = {
    "32-true": {"precision": "32-true"},
    "64-true": {"precision": "64-true"},
    "bf16-true": {"precision": "bf16-true"},
    "16-true": {"precision": "16-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "16-mixed": {},  # with a scaler
}


def arguments_of(precision: str) -> dict[str, Any]:
    return {"plugins": [with_scaler()]} if precision == "16-mixed" else PRECISIONS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", ["gradient", "clipped_gradient"])
def test_used_gradient_is_the_exact_one_rounded_once(precision: str, target: str):
    module, recorder = Classifier(lr=0.01), Recorder()
    fit(module, recorder, GradientCentralization(target=target), max_steps=3, **arguments_of(precision))
    expected_dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
    dtype = module.net[0].weight.dtype
    assert dtype == expected_dtype.get(precision, torch.float32)
    assert len(recorder.used) == 3
    u, wide = unit_roundoff(dtype), torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for raw, used in zip(recorder.raw, recorder.used, strict=True):
        for name, (dims, groups) in selected_dims(module).items():
            exact = torch.from_numpy(oracle.centralized(raw[name], dims, groups))
            slack = 4 * wide * float(raw[name].abs().max()) + torch.finfo(dtype).smallest_normal * u
            assert ((used[name].double() - exact).abs() <= u * exact.abs() + slack).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_update_keeps_the_means_of_the_weights(precision: str):
    """To one rounding of the weights in each step; without the callback the weight decay alone moves them further."""
    steps, recorder = 4, Recorder()
    module = Classifier(lr=0.1, weight_decay=0.5)
    fit(module, recorder, GradientCentralization(target="update"), max_steps=steps, **arguments_of(precision))
    u = unit_roundoff(module.net[0].weight.dtype) + torch.finfo(torch.float32).eps * (precision != "64-true")
    moved = 0.0
    for name, (dims, _) in selected_dims(module).items():
        first, last = (recorder.weights[k][name].double() for k in (0, steps))
        drift = (last - first).mean(dims).abs()
        assert (drift <= steps * u * torch.maximum(first.abs(), last.abs()).mean(dims) * 1.5).all()
        moved = max(moved, float((last - first).abs().max()))
    assert moved > 1e-2


# --- the scaler ---------------------------------------------------------------------------------------------------


class Overflowing(Classifier):
    """The loss of batch 1 is Inf or NaN."""

    def __init__(self, bad: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bad = bad

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.bad if batch_idx == 1 else loss


class EachBatch(Recorder):
    """Also the weights and the logged values after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.after_batch: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, *_: Any) -> None:
        self.after_batch.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})
        self.logged.append({name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("gc/")})


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"optimizer": torch.optim.SGD, "lr": 0.1},
    "fused SGD": {"optimizer": torch.optim.SGD, "lr": 0.1, "fused": True},
    "fused Adam": {"optimizer": torch.optim.Adam, "lr": 0.01, "fused": True},
    "fused Adagrad": {"optimizer": torch.optim.Adagrad, "lr": 0.1, "fused": True},
}


@pytest.mark.parametrize(("name", "bad"), [*((name, float("inf")) for name in OPTIMIZERS), ("SGD", float("nan"))])
@pytest.mark.parametrize("target", TARGETS)
def test_overflow_skips_one_step_and_poisons_nothing(target: str, name: str, bad: float):
    module, recorder, plugin = Overflowing(bad, **OPTIMIZERS[name]), EachBatch(), with_scaler()
    fused = "fused" in name
    assert getattr(module.configure_optimizers(), "_step_supports_amp_scaling", False) == fused
    fit(module, recorder, GradientCentralization(target=target), max_steps=4, log_every_n_steps=1, plugins=[plugin])
    assert plugin.scaler.get_scale() == 512.0
    after = recorder.after_batch
    assert all(torch.equal(after[0][n], after[1][n]) for n in after[0]), "the step was not skipped"
    assert any(not torch.equal(after[1][n], after[2][n]) for n in after[0])
    assert all(p.isfinite().all() for p in module.parameters())
    if target != "update":
        # A clean run of the same batches but the second: the steps after the skipped one are right.
        for name_, (dims, groups) in selected_dims(module).items():
            used = recorder.used[-1][name_]
            assert max(abs(m) for m in oracle.means_of(oracle.to_numpy(used), dims, groups)) < 1e-6 * (1 + 512 * fused)
    for logged in (recorder.logged[2], recorder.logged[3]):
        assert all(value == value and abs(value) < 10 for value in logged.values()), logged
        assert logged["gc/mean_post"] < 1e-6


@pytest.mark.parametrize("name", ["SGD", "fused Adam"])
@pytest.mark.parametrize("target", TARGETS)
def test_logged_values_do_not_depend_on_the_scale(target: str, name: str):
    """They are of the unscaled gradient, also where the optimizer unscales inside its step."""
    logged = []
    for scale in (1.0, 1024.0):
        recorder = EachBatch()
        fit(
            Classifier(**OPTIMIZERS[name]),
            recorder,
            GradientCentralization(target=target),
            max_steps=1,
            log_every_n_steps=1,
            plugins=[with_scaler(scale)],
        )
        logged.append(recorder.logged[0])
    assert logged[0]["gc/mean_pre"] > 1e-5
    for quantity in logged[0].keys() - {"gc/mean_post"}:
        # The 16-bit backward pass itself depends on the scale: that leaves 1 %, not a factor of 1,024.
        assert logged[1][quantity] == pytest.approx(logged[0][quantity], rel=1e-2)


@pytest.mark.parametrize("name", ["fused SGD", "fused Adam"])
def test_fused_and_plain_optimizers_take_the_same_step(name: str):
    weights = []
    for fused in (False, True):
        arguments = {**OPTIMIZERS[name], "fused": fused}
        module = Classifier(**arguments)
        fit(module, GradientCentralization(), max_steps=2, plugins=[with_scaler()])
        weights.append([p.detach() for p in module.parameters()])
    for plain, fused_weight in zip(*weights, strict=True):
        torch.testing.assert_close(plain, fused_weight, rtol=1e-3, atol=1e-5)


def test_infinity_stays_not_finite():
    """A scaler that looks after centralizing must still see it."""
    for bad in (float("inf"), float("-inf"), float("nan")):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            gradient = torch.randn(3, 70).to(dtype)
            gradient[1, 4] = bad
            centralized = centralize_(gradient.clone())
            assert not centralized[1, 4].isfinite()
            assert centralized[[0, 2]].isfinite().all(), "other weight vectors are not touched by it"
