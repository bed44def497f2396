"""Tables, CSV and a plot."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import MEASURED
from benchmarks.step import LOG_DICT, PER_PARAMETER

Row = Mapping[str, Any]

_UNPLOTTED = (MEASURED, PER_PARAMETER, LOG_DICT)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def sets_table(rows: Sequence[Row]) -> str:
    """Gradient sets: each contender's time as a ratio of the authors' line."""
    header = (
        "set",
        "contender",
        "median",
        "÷ authors' line",
        "quartiles",
        "÷ not logging",
        "less log_dict",
        "extra memory",
        "launches",
    )
    return markdown(header, map(_set_cells, rows))


def steps_table(rows: Sequence[Row]) -> str:
    """Whole training steps with and without the callback."""
    header = ("network", "steps", "without", "with", "difference", "inside the hook", "of a step")
    return markdown(header, map(_step_cells, rows))


def reading_table(rows: Sequence[Row]) -> str:
    """The graph of a loss, read once."""
    header = ("network", "operations", "parameters", "of them read", "time", "quartiles")
    return markdown(header, map(_reading_cells, rows))


def _reading_cells(row: Row) -> Sequence[str]:
    quartiles = f"{row['low_ms']:.0f}–{row['high_ms']:.0f} ms"
    counts = (f"{row[name]:,}" for name in ("operations", "parameters", "read"))
    return (row["network"], *counts, f"{row['median_ms']:.0f} ms", quartiles)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Everything that was measured."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot_sets(rows: Sequence[Row], title: str, path: Path) -> None:
    """Bars of the ratios to the authors' line, with their quartiles. Needs matplotlib."""
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(row["set"] for row in rows))
    contenders = [c for c in dict.fromkeys(row["contender"] for row in rows) if c not in _UNPLOTTED]
    figure = Figure(figsize=(max(6, 1.5 * len(sets)), 4.5), layout="constrained")
    axis = figure.add_subplot()
    width = 0.8 / len(contenders)
    for place, contender in enumerate(contenders):
        found = [row for row in rows if row["contender"] == contender]
        x = [sets.index(row["set"]) + (place - (len(contenders) - 1) / 2) * width for row in found]
        height = [row["ratio"] for row in found]
        below = [row["ratio"] - row["ratio_low"] for row in found]
        above = [row["ratio_high"] - row["ratio"] for row in found]
        axis.bar(x, height, width, yerr=(below, above), label=contender, error_kw={"linewidth": 0.6})
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log")
    axis.set_xticks(range(len(sets)), sets, rotation=20)
    axis.set_ylabel("time ÷ authors' line")
    axis.set_title(title, fontsize="small")
    axis.legend(fontsize="small", ncols=3)
    figure.savefig(path)


def _set_cells(row: Row) -> tuple[str, ...]:
    return (
        row["set"],
        row["contender"],
        _duration(row["median_us"]),
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}",
        "" if row["to_ours"] is None else f"{row['to_ours']:.2f}",
        "" if row["to_ours_alone"] is None else f"{row['to_ours_alone']:.2f}",
        _size(row["extra_bytes"]),
        "" if row["launches"] is None else str(row["launches"]),
    )


def _step_cells(row: Row) -> tuple[str, ...]:
    return (
        row["network"],
        str(row["steps"]),
        _duration(row["without_us"]),
        _duration(row["with_us"]),
        f"{row['difference']:+.1%}",
        _duration(row["hook_us"]),
        f"{row['hook_share']:.2%}",
    )


def _duration(microseconds: float) -> str:
    if microseconds < 1e3:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1e3:.3g} ms" if microseconds < 1e6 else f"{microseconds / 1e6:.3g} s"


def _size(size: int) -> str:
    if size < 1 << 10:
        return f"{size} B"
    return f"{size / (1 << 10):.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"
