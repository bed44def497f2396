"""The data that the study computes is what it says."""

from __future__ import annotations

import pytest
import torch

from tests.examples.paired_study.parts import part

data = part("data")


def test_burgers_solves_its_equation():
    n, viscosity = 256, 0.03
    x = torch.arange(n, dtype=torch.float64) / n
    u0 = torch.stack([torch.sin(2 * torch.pi * x), 0.5 * torch.cos(4 * torch.pi * x) + torch.sin(2 * torch.pi * x)])
    k = 2j * torch.pi * torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)

    def slope(u: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft(k * torch.fft.fft(u)).real

    torch.testing.assert_close(data.burgers(u0, 0.0, viscosity), u0, atol=1e-9, rtol=0)
    step, time = 1e-5, 0.2
    before, u, after = (data.burgers(u0, t, viscosity) for t in (time - step, time, time + step))
    residual = (after - before) / (2 * step) + u * slope(u) - viscosity * slope(slope(u))
    assert u.abs().max() > 0.5
    assert residual.abs().max() < 1e-5


def test_flows_do_not_depend_on_the_grid():
    coarse = data.flows(torch.Generator().manual_seed(1), pairs=40, points=64, held_out=10)
    fine = data.flows(torch.Generator().manual_seed(1), pairs=40, points=128, held_out=10)
    torch.testing.assert_close(coarse.inputs, fine.inputs[:, ::2], atol=1e-2, rtol=0)  # the scale is of all points
    torch.testing.assert_close(coarse.targets, fine.targets[:, ::2], atol=1e-2, rtol=0)


def test_vortices_are_a_flow_without_sources():
    torch.manual_seed(0)
    found = data.vortices(torch.Generator().manual_seed(0))
    assert found.inputs.shape == found.targets.shape == (2_000, 2)
    assert torch.cat([found.targets, found.test_targets]).std() == pytest.approx(1, abs=1e-5)


def test_next_bytes_are_those_that_follow():
    text = bytes(range(65)) * 40
    found = data.next_bytes(text)
    assert torch.equal(found.targets[:, :-1], found.inputs[:, 1:])
    assert torch.equal(found.targets, (found.inputs + 1))
    assert (len(found.inputs), len(found.test_inputs)) == (36, 4)


def test_texts_are_on_this_machine():
    assert len(data.language_reference()) > 300_000
    assert len(data.library_source()) > 600_000


def test_digits_hold_none_of_the_training_out():
    found = data.digits(5, torch.Generator().manual_seed(0))
    assert found.inputs.shape[1:] == (1, 8, 8)
    assert len(found.test_inputs) == 400
    assert set(found.targets.tolist()) == {0, 1, 2, 3, 4}
    assert len(found.inputs) + 400 == 896
