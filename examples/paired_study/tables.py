"""What is written of comparisons: CSV files, and tables in Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from paired_study.comparisons import Comparison


class Metric(NamedTuple):
    """What a number is called, and how many decimals are shown of it."""

    title: str
    digits: int


def details(comparisons: Iterable[Comparison], metrics: Mapping[str, Metric]) -> str:
    """One table for each metric, with confidence intervals and p-values."""
    lines = []
    for metric, (title, digits) in metrics.items():
        lines += [
            f"### {title[0].upper()}{title[1:]}",
            "",
            "| setting | arm | seeds | without (sd) | with (sd) | difference [95% CI] | p | p, Holm |",
            "| --- | --- | --: | --: | --: | --: | --: | --: |",
        ]
        for c in comparisons:
            if c.metric == metric:
                interval = "" if math.isnan(c.low) else f" [{c.low:+.{digits + 1}f}, {c.high:+.{digits + 1}f}]"
                lines.append(
                    f"| {c.setting} | {c.arm} | {c.seeds} | {c.without:.{digits}f} ({c.without_sd:.{digits}f}) "
                    f"| {c.with_:.{digits}f} ({c.with_sd:.{digits}f}) | {c.difference:+.{digits + 1}f}{interval} "
                    f"| {p_value(c.p)} | {p_value(c.p_holm)} |"
                )
        lines.append("")
    return "\n".join(lines)


def p_value(value: float) -> str:
    """With three decimals; empty if there is none."""
    if math.isnan(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_equals(value: float) -> str:
    """For a sentence: "p = 0.012" or "p < 0.001"."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows that all have the columns of the first."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(file: Path) -> list[dict[str, str]]:
    """Rows as `write_csv` wrote them."""
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_comparisons(file: Path, comparisons: Sequence[Comparison]) -> None:
    """A row for each."""
    write_csv(file, [asdict(c) for c in comparisons])


def read_comparisons(file: Path) -> list[Comparison]:
    """What `write_comparisons` wrote."""
    texts = ("setting", "arm", "metric")
    return [
        Comparison(**{k: v if k in texts else int(v) if k == "seeds" else float(v) for k, v in row.items()})
        for row in read_csv(file)
    ]
