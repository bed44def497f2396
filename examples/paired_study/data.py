"""The data of the tasks that are not images: computed here, or on every machine that has Python and scikit-learn."""

from __future__ import annotations

import argparse
import difflib
import doctest
import inspect
import locale
import pickle
import pydoc
import pydoc_data.topics
import subprocess
import tarfile
import typing
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

CONTEXT = 64  # bytes
MODULES = (argparse, difflib, doctest, inspect, locale, pickle, pydoc, subprocess, tarfile, typing)


@dataclass(frozen=True)
class Data:
    """Inputs and targets for training, and others that are held out."""

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


def language_reference() -> bytes:
    """Python's own language reference, what `help("topics")` shows: some 460,000 bytes."""
    return "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)).encode()


def library_source() -> bytes:
    """The source of ten modules of Python's standard library: some 800,000 bytes."""
    return "\n".join(map(inspect.getsource, MODULES)).encode()


def next_bytes(text: bytes) -> Data:
    """Pieces of `CONTEXT` bytes, and for each of these the next byte; every tenth of the first 5,000 is held out."""
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    pieces = values[: len(values) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    place = torch.arange(len(pieces))
    held_out = (place % 10 == 9) & (place < 5_000)
    inputs, targets = pieces[:, :-1], pieces[:, 1:]
    return Data(inputs[~held_out], targets[~held_out], inputs[held_out], targets[held_out])


def vortices(generator: torch.Generator, count: int = 6, points: int = 2_000) -> Data:
    """The velocity of a plane flow around Lamb-Oseen vortices, `(N, 2)`, at random places `(N, 2)` of [-1, 1]^2.

    A vortex at c of circulation G and core radius R turns the fluid at distance r from c with the velocity
    G / (2 pi r) (1 - exp(-r^2 / R^2)). Both components are divided by their common standard deviation.
    """
    centers = torch.rand(count, 2, generator=generator) * 1.6 - 0.8
    circulations = torch.randn(count, generator=generator)
    radii = 0.1 + 0.2 * torch.rand(count, generator=generator)
    places = torch.rand(2 * points, 2, generator=generator) * 2 - 1
    away = places[:, None] - centers
    squared = away.square().sum(-1)
    speed_by_distance = circulations / (2 * torch.pi * squared) * -torch.expm1(-squared / radii**2)
    velocity = (torch.stack([-away[..., 1], away[..., 0]], -1) * speed_by_distance[..., None]).sum(1)
    velocity = velocity / velocity.std()
    return Data(places[:points], velocity[:points], places[points:], velocity[points:])


def burgers(u0: Tensor, time: float, viscosity: float) -> Tensor:
    """The solution of Burgers' equation, u_t + u u_x = viscosity u_xx, with period 1, at a later time.

    By the Cole-Hopf transformation u = -2 viscosity (log phi)_x, where phi solves the heat equation, which
    multiplies its Fourier coefficients by exp(-viscosity k^2 time): exact but for the grid.

    Args:
        u0: The initial values on an even grid, `(N, points)`, each of mean zero; in float64.
        time: How much later.
        viscosity: More than zero.
    """
    k = 2 * torch.pi * torch.fft.fftfreq(u0.shape[-1], 1 / u0.shape[-1], dtype=u0.dtype)
    integral = torch.fft.fft(u0) / torch.where(k == 0, 1, 1j * k)
    integral[..., 0] = 0
    phi = torch.fft.fft(torch.exp(torch.fft.ifft(integral).real / (-2 * viscosity))) * torch.exp(
        -viscosity * k**2 * time
    )
    slope = torch.fft.ifft(1j * k * phi).real
    return -2 * viscosity * slope / torch.fft.ifft(phi).real


def flows(generator: torch.Generator, pairs: int = 2_500, points: int = 64, held_out: int = 500) -> Data:
    """Random smooth initial conditions of Burgers' equation, `(N, points)`, and what has become of each at t = 0.05."""
    x = torch.arange(4 * points, dtype=torch.float64) / (4 * points)  # solved on a grid four times as fine
    waves = torch.arange(1, 5)[:, None] * 2 * torch.pi * x
    amplitudes = torch.randn(2, pairs, 4, generator=generator, dtype=torch.float64) / torch.arange(1, 5)
    u0 = amplitudes[0] @ waves.sin() + amplitudes[1] @ waves.cos()
    later = burgers(u0, time=0.05, viscosity=0.02)
    inputs, targets = u0[:, ::4].float(), later[:, ::4].float()
    inputs, targets = inputs / inputs.std(), targets / targets.std()
    return Data(inputs[held_out:], targets[held_out:], inputs[:held_out], targets[:held_out])


def digits(low: int, generator: torch.Generator, held_out: int = 400) -> Data:
    """scikit-learn's handwritten digits `low` to `low + 4`, `(N, 1, 8, 8)`, as classes 0 to 4."""
    bunch = load_digits()
    chosen = (bunch.target >= low) & (bunch.target < low + 5)
    images = torch.tensor(bunch.images[chosen], dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target[chosen]).long() - low
    order = torch.randperm(len(labels), generator=generator)
    train, test = order[held_out:], order[:held_out]
    return Data(images[train], labels[train], images[test], labels[test])
