"""16-bit gradients on XLA: means in float32, one rounding, and what is logged of them measured."""

from __future__ import annotations

import pytest
import torch
import torch_xla
import torch_xla.debug.metrics as metrics
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_gc import GradientCentralization, centralize, centralize_
from tests.models import Classifier, fit
from tests.oracle import to_numpy
from tests.recorder import Recorder, selected_dims
from tests.recording import expected

NARROW = [torch.bfloat16, torch.float16]
STEPS = 2


def one_rounding(before: Tensor, after: Tensor, dims: tuple[int, ...]) -> Tensor:
    """How large the mean of a weight vector can be after each of its elements was rounded once.

    Plus what float32 loses of the mean before.
    """
    u = torch.finfo(after.dtype).eps / 2
    return u * after.double().abs().mean(dims) + torch.finfo(torch.float32).eps * before.double().abs().mean(dims)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("offset", [0.0, 26.0, 1000.0])
@pytest.mark.parametrize("in_place", [False, True])
def test_each_element_is_rounded_once(dtype, offset, in_place):
    """The offsets are those of the CPU's test: a mean of 26 times the spread is what classifiers have."""
    before = (torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)) + offset).to(dtype)
    on_xla = before.to(torch_xla.device())
    after = (centralize_(on_xla) if in_place else centralize(on_xla)).cpu()
    assert after.dtype == dtype
    assert (after.double().mean(1).abs() <= one_rounding(before, after, (1,))).all()
    exact = before.double() - before.double().mean(1, keepdim=True)
    slack = torch.finfo(torch.float32).eps * before.double().abs().mean()
    assert ((after.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 2 * slack).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_large_gradients_take_no_larger_program(dtype):
    """XLA has no use for the blocks that a CPU goes through."""
    nodes = []
    for rows in (8, 1 << 13):
        gradient = torch.ones(rows, 512, dtype=dtype, device=torch_xla.device())
        torch_xla.sync()
        before = metrics.metric_data("TensorsGraphSize")[1]
        centralize_(gradient)
        torch_xla.sync()
        nodes.append(metrics.metric_data("TensorsGraphSize")[1] - before)
    assert 3 < nodes[0] == nodes[1]


class Narrow(Classifier):
    """Parameters and gradients of 16 bits, and inputs whose mean is many times their spread, as after a ReLU."""

    def __init__(self, dtype: torch.dtype) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        super().__init__(net, lr=0.01, weight_decay=0.5)
        self.to(dtype)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self((x + 4).to(self.dtype)).float(), y)


def train(dtype: torch.dtype, target: str) -> tuple[Narrow, Recorder, dict[str, float]]:
    """Train for a few steps; return also what was logged of the last."""
    module, recorder = Narrow(dtype), Recorder()
    callback = GradientCentralization(target=target, log_means="per_parameter")
    trainer = fit(module, recorder, callback, max_steps=STEPS, log_every_n_steps=1, accelerator="tpu")
    return module, recorder, {name: value.item() for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    ("dtype", "target"),
    [(torch.bfloat16, "gradient"), (torch.bfloat16, "clipped_gradient"), (torch.float16, "gradient")],
)
def test_gradients_have_means_of_one_rounding_and_it_is_logged(dtype, target):
    module, recorder, logged = train(dtype, target)
    layouts = selected_dims(module)
    assert len(layouts) == 2
    assert len(recorder.used) == STEPS
    for raw, used in zip(recorder.raw, recorder.used, strict=True):
        for name, (dims, _) in layouts.items():
            before, after = raw[name].cpu(), used[name].cpu()
            assert after.dtype == dtype
            assert (after.double().mean(dims).abs() <= one_rounding(before, after, dims)).all()
    last = [
        {name: to_numpy(gradient) for name, gradient in steps[-1].items()} for steps in (recorder.raw, recorder.used)
    ]
    wanted = {f"gc/{name}": value for name, value in expected(*last, layouts).items()}
    assert logged == pytest.approx(wanted, rel=1e-3)


def test_updates_keep_the_means_of_the_weights():
    """To one rounding of the weights in each step, as on the CPU; the weight decay alone would move them further."""
    module, recorder, _ = train(torch.bfloat16, "update")
    u = torch.finfo(torch.bfloat16).eps / 2 + torch.finfo(torch.float32).eps
    for name, (dims, _) in selected_dims(module).items():
        first, last = (recorder.weights[k][name].cpu().double() for k in (0, STEPS))
        drift = (last - first).mean(dims).abs()
        assert (drift <= STEPS * u * torch.maximum(first.abs(), last.abs()).mean(dims) * 1.5).all()
        assert (last - first).abs().max() > 1e-3


def test_bf16_true_comes_too_late_once_xla_was_used():
    module = Classifier(lr=0.01)
    fit(module, GradientCentralization(log_means="off"), max_steps=1, accelerator="tpu", precision="bf16-true")
    weight = module.net[0].weight.detach().cpu()
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())
