"""Timing that holds on a noisy machine: contenders take turns, and are compared round by round."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Contender = Callable[[], object]

Clock = Callable[[], float]
"""Seconds since some time: elapsed, or of processor time of this process."""

CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "process": time.process_time}


@dataclass(frozen=True)
class Quartiles:
    """The quartiles of some samples."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Quartiles:
        """Of at least one sample."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"))


def interleave(
    contenders: Mapping[str, Contender],
    *,
    rounds: int,
    seconds: float,
    sync: Callable[[], None],
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of one call of each contender, round by round: sample i of all of them is of round i.

    In every round each contender has its turn, in an order drawn anew. A turn begins with a call that is
    not timed, and repeats quick calls until they take a millisecond. It ends after `rounds` rounds or, once there are seven, after `seconds`.

    Args:
        contenders: What is timed, by name.
        rounds: The most rounds.
        seconds: The time after which no round is begun.
        sync: Waits for the device.
        clock: Times the turns.
    """
    repeats = {name: _repeats(call, sync, clock) for name, call in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    order = random.Random(0)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for turn in range(rounds):
            if turn >= 7 and time.perf_counter() - start > seconds:
                break
            order.shuffle(names)
            for name in names:
                contenders[name]()  # so that all find the caches in the state in which they leave them
                samples[name].append(_time(contenders[name], repeats[name], sync, clock))
    finally:
        if was_enabled:
            gc.enable()
    return samples


def ratios(samples: Sequence[float], base: Sequence[float]) -> Quartiles:
    """The quartiles of the ratios of the two, round by round."""
    return Quartiles.of([a / b for a, b in zip(samples, base, strict=True)])


def differences(samples: Sequence[float], base: Sequence[float]) -> Quartiles:
    """The quartiles of the differences of the two, round by round."""
    return Quartiles.of([a - b for a, b in zip(samples, base, strict=True)])


def peak_extra_memory(call: Contender, device: torch.device) -> int:
    """The most bytes that torch holds at any time in one call, beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def launches(call: Contender) -> int:
    """How many kernels one call launches on a GPU; copies from the host are none."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    found = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum("Mem" not in event.name for event in found)


def _repeats(call: Contender, sync: Callable[[], None], clock: Clock) -> int:
    _time(call, 1, sync, clock)  # the first call plans, compiles, allocates
    _time(call, 1, sync, clock)
    return max(1, min(1000, round(1e-3 / max(1e-9, _time(call, 1, sync, clock)))))


def _time(call: Contender, repeats: int, sync: Callable[[], None], clock: Clock) -> float:
    sync()
    start = clock()
    for _ in range(repeats):
        call()
    sync()
    return (clock() - start) / repeats
