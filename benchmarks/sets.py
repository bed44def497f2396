"""Gradient sets: time and memory of one optimizer step's centralizing, against the floor and other code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import AUTHORS, BARE, MEASURED, Compiled, OptaxUnderJit, references
from benchmarks.shapes import SETS, GradientSet
from benchmarks.step import BETWEEN, LOG_DICT, OURS, PLAIN, PLAIN_TOTAL, TOTAL, in_trainer
from benchmarks.timing import (
    Clock,
    Contender,
    Quartiles,
    differences,
    interleave,
    launches,
    peak_extra_memory,
    ratios,
)

Row = dict[str, Any]

PAIRS = {TOTAL: OURS, BETWEEN: OURS, MEASURED: OURS, LOG_DICT: OURS, PLAIN_TOTAL: PLAIN}
"""What is also compared with something other than the authors' line."""


def run(
    names: Sequence[str],
    device: torch.device,
    folder: Path,
    *,
    rounds: int,
    seconds: float,
    clock: Clock,
    compiled: bool = False,
) -> list[Row]:
    """One row for each set and contender."""
    rows: list[Row] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        gradient_set = SETS[name]()

        def measure(
            gradients: list[tuple[Tensor, tuple[int, ...]]],
            ours: dict[str, Contender],
            gradient_set: GradientSet = gradient_set,
        ) -> None:
            contenders = references(gradients) | ours
            if compiled:
                contenders["torch.compile"] = Compiled(gradients)
            rows.extend(compare(gradient_set, contenders, device, rounds=rounds, seconds=seconds, clock=clock))

        in_trainer(gradient_set, device, measure, folder)
    return rows


def compare(
    gradient_set: GradientSet,
    contenders: dict[str, Contender],
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
    clock: Clock,
) -> list[Row]:
    """Time the contenders in turns; every ratio is that of the authors' line in the same round."""
    memory = {name: _memory(call, device) for name, call in contenders.items()}
    sync = torch.cuda.synchronize if device.type == "cuda" else _nothing
    samples = interleave(contenders, rounds=rounds, seconds=seconds, sync=sync, clock=clock)
    rows = []
    for name, seconds_each in samples.items():
        time, ratio = Quartiles.of(seconds_each), ratios(seconds_each, samples[AUTHORS])
        rows.append(
            {
                "set": gradient_set.name,
                "tensors": len(gradient_set.layers),
                "elements": gradient_set.elements,
                "dtype": str(gradient_set.dtype).removeprefix("torch."),
                "contender": name,
                "rounds": len(seconds_each),
                "median_us": time.median * 1e6,
                "low_us": time.low * 1e6,
                "high_us": time.high * 1e6,
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "to_ours": ratios(seconds_each, samples[PAIRS[name]]).median if name in PAIRS else None,
                "to_ours_alone": _without_lightning(samples) if name == TOTAL else None,
                "over_bare_us": differences(seconds_each, samples[BARE]).median * 1e6 if name == OURS else None,
                "fastest_us": min(seconds_each) * 1e6,
                "extra_bytes": memory[name],
                "launches": launches(contenders[name]) if device.type == "cuda" else None,
                "compile_s": contenders[name].seconds if isinstance(contenders[name], Compiled) else None,
            }
        )
    return rows


def _without_lightning(samples: dict[str, list[float]]) -> float:
    """How much longer a step takes that logs, less what Lightning takes to log three values."""
    rounds = zip(samples[TOTAL], samples[LOG_DICT], samples[OURS], strict=True)
    measuring = [total - (logs_constants - ours) for total, logs_constants, ours in rounds]
    return ratios(measuring, samples[OURS]).median


def _memory(call: Contender, device: torch.device) -> int:
    call()  # what is planned and kept is not counted: it does not grow from step to step
    if isinstance(call, OptaxUnderJit):
        return call.peak_extra_memory()
    return peak_extra_memory(call, device)


def _nothing() -> None:
    """A CPU has nothing to wait for."""


def python_time(rows: Sequence[Row]) -> list[str]:
    """What the hook takes beyond its arithmetic, set by set, where that is all in one dtype's two calls."""
    bare = {row["set"]: row["fastest_us"] for row in rows if row["contender"] == BARE}
    return [
        f"- {row['set']}: the hook takes {row['over_bare_us']:.0f} µs more than its arithmetic in a bare loop "
        f"(at the fastest of both: {row['fastest_us'] - bare[row['set']]:.0f} µs)"
        for row in rows
        if row["over_bare_us"] is not None and row["dtype"] == "float32" and row["elements"] < 10_000_000
    ]
