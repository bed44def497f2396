"""A selection as a table, for people to read: as text, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lightning_gc.selection.entry import Entry
from lightning_gc.selection.fold import fold
from lightning_gc.selection.table import format_table

_HEADER = ("parameter", "shape", "fan-in dims", "weight vectors", "fan-in", "centralized")
_RIGHT = {3, 4}
_WIDTH = 110  # of a line that lists names; the table is as wide as it has to be
_FULL = "selection.table(full=True) has a row for each parameter."


def text_table(entries: Sequence[Entry], full: bool = False) -> str:
    """The table, without the line that sums it up."""
    if full:
        return format_table(_HEADER, [_row(entry.name, [entry]) for entry in entries], right=_RIGHT)
    rows, left_alone = _folded(entries)
    lines = [format_table(_HEADER, rows, right=_RIGHT)] if rows else []
    digits = max((len(str(count)) for count, _, _ in left_alone), default=0)
    lines += ["left alone"] if left_alone else []
    lines += [_cut(f"  {count:>{digits}}  {reason}: ", names) for count, reason, names in left_alone]
    table = "\n".join(lines)
    return f"{table}\n{_FULL}" if "{" in table or ", ..." in table else table


def html_table(entries: Sequence[Entry], summary: str) -> str:
    """The same in HTML, with the full table folded away under it."""
    rows, left_alone = _folded(entries)
    found = [f"<p>{escape(summary)}</p>", _html(_HEADER, rows)]
    found += [
        _html(("", "left alone because", "parameters"), [(str(n), why, ", ".join(of)) for n, why, of in left_alone])
    ]
    everything = _html(_HEADER, [_row(entry.name, [entry]) for entry in entries])
    return "\n".join([*found, f"<details><summary>Each parameter</summary>\n{everything}\n</details>"])


def _folded(entries: Sequence[Entry]) -> tuple[list[tuple[str, ...]], list[tuple[int, str, list[str]]]]:
    """Rows of what is centralized; and for each reason to leave others alone: how many, the reason, their names."""
    taken = [entry for entry in entries if entry.centralized]
    rows = [
        _row(name, [taken[i] for i in positions])
        for name, positions in fold([e.name for e in taken], [(tuple(e.shape), e.layout) for e in taken])
    ]
    by_reason: dict[str, list[str]] = {}
    for entry in entries:
        if not entry.centralized:
            by_reason.setdefault(entry.reason, []).append(entry.name)
    left_alone = [
        (len(names), reason, [name for name, _ in fold(names, [reason] * len(names))])
        for reason, names in by_reason.items()
    ]
    return rows, left_alone


def _row(name: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    """The cells for parameters that are alike, under a name for them all."""
    entry, layout = entries[0], entries[0].layout
    if layout is None:
        return (name, str(tuple(entry.shape)), "", "", "", f"no: {entry.reason}")
    dims = str(layout.dims) + (f" in {layout.groups} groups" if layout.groups > 1 else "")
    verdict = f"no: {entry.reason}" if entry.reason else f"yes ({layout.source})"
    vectors = sum(e.weight_vectors for e in entries)
    return (name, str(tuple(entry.shape)), dims, f"{vectors:,}", f"{entry.fan_in:,}", verdict)


def _cut(start: str, names: Sequence[str]) -> str:
    """A line that lists as many of the names as it has room for, one at least."""
    line = start + names[0]
    for position, name in enumerate(names[1:], start=2):
        room = _WIDTH - (0 if position == len(names) else len(", ..."))
        if len(line) + len(name) + 2 > room:
            return f"{line}, ..."
        line += f", {name}"
    return line


def _html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f"<table>\n<thead>{line('th', header)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def said_of(entry: Entry) -> str:
    """What is done with a parameter, in words."""
    layout = entry.layout
    if layout is None:
        return f"left alone: {entry.reason}"
    return f"dims {layout.dims}" + (f" in {layout.groups} groups" if layout.groups > 1 else "")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Some of the names, folded, and how many more there are."""
    folded = [name for name, _ in fold(names, [None] * len(names))]
    return ", ".join(folded[:most]) + (f", and {len(folded) - most} more" if len(folded) > most else "")
