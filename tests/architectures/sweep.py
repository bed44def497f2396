"""What is known of parameters against what the graph says of them, on all architectures of transformers that build small.

    python -m tests.architectures.sweep [COUNT]

writes `docs/architectures.md`, of all of them or of so many, drawn at random; each takes some seconds of one core. The models
have random weights: nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import random
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import transformers

from lightning_gc import select
from lightning_gc.selection import Entry
from lightning_gc.selection.graph import Reading
from lightning_gc.selection.layouts import Layout
from lightning_gc.selection.readings import readings_of, same_layout
from tests.architectures.small import architectures, small

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
SECONDS = 180.0
"""An architecture that takes longer is left out."""

SAYS = ("the same", "other dims", "no set of weight vectors", "a set of weight vectors", "nothing")
KNOWN = ("torch's layers", "the table of other packages' layers", "assumed", "left alone, assumed")


@dataclass(frozen=True)
class Found:
    """One parameter: how it is known, and what the graph says.

    Attributes:
        owner: The class of the module it stands in, and its name there.
        shape: Its shape.
        known: One of `KNOWN`.
        says: One of `SAYS`.
        detail: The dims, or the reason, that the graph gives.
    """

    owner: str
    shape: tuple[int, ...]
    known: str
    says: str
    detail: str


def compare(name: str) -> list[Found]:
    """All parameters of a small model of an architecture that have two dims or more, and are no biases or norms."""
    model, loss = small(name)
    owners = {
        p: f"{type(m).__name__}.{attribute}"
        for m in model.modules()
        for attribute, p in m.named_parameters(recurse=False)
    }
    readings = readings_of(model, loss)
    return [
        Found(owners[entry.parameter], tuple(entry.shape), known, *_said(entry, readings.get(entry.parameter)))
        for entry in select(model)
        if (known := _known(entry))
    ]


def _known(entry: Entry) -> str:
    if entry.layout is not None:
        if entry.layout.assumed:
            return "assumed"
        return "the table of other packages' layers" if entry.layout.third_party else "torch's layers"
    return "left alone, assumed" if entry.open else ""


def _said(entry: Entry, reading: Reading | None) -> tuple[str, str]:
    if reading is None or reading.kind == "unread":
        return "nothing", reading.why if reading else "the loss does not lead to it"
    if reading.kind == "summed":
        layout = Layout(reading.dims, reading.groups)
        if entry.layout is None:
            return "a set of weight vectors", f"dims {reading.dims}"
        same = same_layout(layout, entry.layout, entry.shape)
        return ("the same" if same else "other dims"), f"dims {reading.dims}"
    # What an embedding looks up are its weight vectors.
    if reading.kind == "looked up" and entry.layout is not None and not entry.layout.assumed:
        return "the same", reading.why
    return ("the same" if entry.layout is None else "no set of weight vectors"), reading.why


def sweep(names: Sequence[str]) -> Iterator[tuple[str, list[Found] | str]]:
    """For each architecture what was found, or why it didn't run; each in a process of its own."""
    context = multiprocessing.get_context("fork")
    for name in names:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(name, theirs))
        process.start()
        theirs.close()
        found: list[Found] | str = f"took more than {SECONDS:.0f} s"
        if ours.poll(SECONDS):
            try:
                found = ours.recv()
            except EOFError:
                found = "its process ended"
        process.kill()
        process.join()
        yield name, found


def _report(name: str, to: Connection) -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            found: Any = compare(name)
        except Exception as error:  # whatever a model raises of sizes or inputs that are not for it
            found = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    to.send(found)


def page(found: dict[str, list[Found]], missing: dict[str, str], version: str) -> str:
    """The page of the docs."""
    counts = Counter((f.known, f.says) for some in found.values() for f in some)
    total = sum(counts.values())
    tried = len(found) + len(missing)
    of_all = "All of them" if tried == len(architectures()) else f"{tried} of them, drawn at random,"
    lines = [
        "# The graph on transformers' architectures",
        "",
        "<!-- Written by `python -m tests.architectures.sweep`. -->",
        "",
        f"transformers {version} has models of {len(architectures())} architectures. {of_all} were tried,"
        f" and {len(found)} run with random weights, small sizes and inputs made up for them. Of their"
        f" {total:,} parameters of two or more dims that are no biases and in no normalisation layer, the graph of one loss was"
        " [read](choosing_layers.md#what-no-table-knows), and held against what is known or assumed without it:",
        "",
        "| known without the graph as | " + " | ".join(f"the graph says: {says}" for says in SAYS) + " |",
        "| --- |" + " ---: |" * len(SAYS),
        *(f"| {known} | " + " | ".join(f"{counts[known, says]:,}" for says in SAYS) + " |" for known in KNOWN),
        "",
        "What is assumed, or known from the table of other packages' layers and contradicted, by class:",
        "",
        "| parameter | shape | known as | the graph says | in |",
        "| --- | --- | --- | --- | --- |",
        *_rows(found),
        "",
    ]
    return "\n".join(lines)


def _rows(found: dict[str, list[Found]]) -> Iterable[str]:
    seen: dict[tuple[str, ...], list[str]] = defaultdict(list)
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {}
    for name, some in found.items():
        for f in some:
            agrees = f.says in ("the same", "nothing")
            if f.known == KNOWN[0] or (f.known == KNOWN[1] and agrees):
                continue
            row = (f.owner, f.known, f.says + (f": {f.detail}" if f.detail else ""))
            shapes.setdefault(row, f.shape)
            if name not in seen[row]:
                seen[row].append(name)
    for row in sorted(seen):
        names = seen[row]
        shown = ", ".join(names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"| `{row[0]}` | {shapes[row]} | {row[1]} | {row[2]} | {shown} |"


def drawn(count: int | None = None) -> list[str]:
    """The names of so many architectures, or of all, in an order that is always the same."""
    names = architectures()
    random.Random(0).shuffle(names)
    return names[:count]


def main() -> None:
    found: dict[str, list[Found]] = {}
    missing: dict[str, str] = {}
    start = time.monotonic()
    for name, result in sweep(drawn(int(sys.argv[1]) if len(sys.argv) > 1 else None)):
        if isinstance(result, str):
            missing[name] = result
        else:
            found[name] = result
        outcome = result if isinstance(result, str) else f"{len(result)} parameters"
        print(f"{time.monotonic() - start:6.0f} s  {name}: {outcome}", flush=True)
    PAGE.write_text(page(found, missing, transformers.__version__))


if __name__ == "__main__":
    main()
