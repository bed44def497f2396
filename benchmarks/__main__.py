"""Run the benchmarks: ``python -m benchmarks`` on a CPU, ``python -m benchmarks --device cuda`` on a GPU."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables, and write CSV and a plot."""
    options = _parse(arguments)
    if options.device == "cpu":
        _limit_threads(options.threads)
    import torch

    from benchmarks import environment, reading, report, sets, steps
    from benchmarks.timing import CLOCKS

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*environment.describe(device), f"clock: {options.clock}"]
    print("\n".join(f"- {line}" for line in lines))
    if options.sets:
        rows = sets.run(
            options.sets,
            device,
            folder,
            rounds=options.rounds,
            seconds=options.seconds,
            clock=CLOCKS[options.clock],
            compiled=options.compile,
        )
        table = report.sets_table(rows)
        print(f"\n{table}\n")
        print("\n".join(sets.python_time(rows)))
        report.write_csv(rows, folder / f"sets-{device.type}.csv")
        report.plot_sets(rows, lines[0], folder / f"sets-{device.type}.svg")
    if options.networks:
        rows = steps.run(options.networks, device, folder, chunks=options.chunks, clock=CLOCKS[options.clock])
        print(f"\n{report.steps_table(rows)}")
        report.write_csv(rows, folder / f"steps-{device.type}.csv")
    if options.reading:
        rows = reading.run(options.reading, clock=CLOCKS[options.clock])
        print(f"\n{report.reading_table(rows)}")
        report.write_csv(rows, folder / "reading.csv")


def _limit_threads(threads: int) -> None:
    """Hold torch and XLA to as many threads; both read this before they start."""
    if "torch" in sys.modules and threads == 1:
        sys.modules["torch"].set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:
        os.environ.setdefault(
            "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=1"
        )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    from benchmarks.networks import NETWORKS, READ
    from benchmarks.shapes import SETS

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU (default: 1)")
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS), help="gradient sets")
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS), help="networks")
    parser.add_argument("--reading", nargs="*", choices=list(READ), default=list(READ), help="graphs that are read")
    parser.add_argument("--rounds", type=int, default=200, help="the most rounds for a gradient set")
    parser.add_argument("--seconds", type=float, default=20, help="seconds for a gradient set, after seven rounds")
    parser.add_argument("--chunks", type=int, default=6, help="runs of the Trainer with, and without, the callback")
    clock_help = "wall, or process: processor time alone, for one thread on a machine with other work (default: wall)"
    parser.add_argument("--clock", choices=["wall", "process"], default="wall", help=clock_help)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile (needs a C++ compiler)")
    parser.add_argument("--output", default="build/benchmarks", help="folder for CSV and plot")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
