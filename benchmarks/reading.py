"""The time to read autograd's graph of a loss, once, for all parameters of a network: as if none were known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.networks import READ
from benchmarks.timing import Clock, Quartiles
from lightning_gc.selection.graph import Graph
from lightning_gc.selection.readings import readings_of

ROUNDS = 9


def run(names: Sequence[str], *, clock: Clock) -> list[dict[str, Any]]:
    """One row for each network, on the CPU, where the graph is read for any device."""
    return [_row(name, clock) for name in names]


def _row(name: str, clock: Clock) -> dict[str, Any]:
    torch.manual_seed(0)
    module, (x, y) = READ[name].build(), READ[name].batch()
    samples = []
    for _ in range(ROUNDS):
        loss = F.cross_entropy(module(x), y)
        start = clock()
        readings = readings_of(module, loss)
        samples.append(clock() - start)
    quartiles = Quartiles.of(samples)
    return {
        "network": name,
        "parameters": len(readings),
        "operations": len(Graph(loss, list(module.parameters()))),
        "read": sum(reading.kind != "unread" for reading in readings.values()),
        "low_ms": quartiles.low * 1e3,
        "median_ms": quartiles.median * 1e3,
        "high_ms": quartiles.high * 1e3,
    }
