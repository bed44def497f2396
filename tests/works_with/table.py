"""The table: rows register themselves, and are written out as a page of the docs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Check = Callable[[str], None]

TARGETS = ("gradient", "clipped_gradient", "update")
PAGE = Path(__file__).parents[2] / "docs" / "works_with.md"


@dataclass(frozen=True)
class Row:
    """One thing that the callback works with.

    Attributes:
        id: Names the row among the tests.
        section: The part of the table that it stands in.
        what: What it is and what happens to it, one sentence in Markdown.
        targets: The targets that it is tested with.
        check: Trains for real with a target, and fails if what the row says does not hold.
        shown_by: Instead of `check`, the test that shows it: ``tests/test_x.py::test_y``.
        packages: Packages that `check` needs besides the test requirements.
        distributed: Whether `check` starts several processes.
    """

    id: str
    section: str
    what: str
    targets: tuple[str, ...]
    check: Check | None = None
    shown_by: str = ""
    packages: tuple[str, ...] = ()
    distributed: bool = False


ROWS: list[Row] = []


def row(
    section: str,
    what: str,
    *,
    targets: tuple[str, ...] = TARGETS,
    packages: tuple[str, ...] = (),
    distributed: bool = False,
) -> Callable[[Check], Check]:
    """Register the decorated function as the check of a row; its name is the row's id."""

    def register(check: Check) -> Check:
        ROWS.append(Row(check.__name__, section, what, targets, check, packages=packages, distributed=distributed))
        return check

    return register


def row_elsewhere(section: str, id: str, what: str, shown_by: str, targets: tuple[str, ...] = TARGETS) -> None:  # noqa: A002
    """Register a row that a test of another file shows."""
    ROWS.append(Row(id, section, what, targets, shown_by=shown_by))


INTRODUCTION = """\
# Works with

What the callback was run with, for real, in a Trainer, by the project's own tests, and with which
[target](which_target.md) (✓; where a target is not marked, it makes no sense there or has no test).
This page is made from the tests (`python -m tests.works_with`), and a test checks that it is up to date. The tests of
a table are folded under it, in the order of its rows; `pytest tests/test_works_with.py -k <name>` runs one again.

"Centralized" means here: the gradient that the optimizer used has zero mean in every weight vector (`"gradient"`,
`"clipped_gradient"`), or no weight vector's mean moved (`"update"`), up to rounding. "Left alone" means that the
parameter trains as it would without the callback.
"""


def document() -> str:
    """The page of the docs."""
    lines = [INTRODUCTION]
    for section in dict.fromkeys(r.section for r in ROWS):
        rows = [r for r in ROWS if r.section == section]
        lines += [f"## {section}\n", "| What | gradient | clipped | update |", "| --- | :-: | :-: | :-: |"]
        lines += [f"| {r.what} | {' | '.join('✓' if t in r.targets else '' for t in TARGETS)} |" for r in rows]
        lines += ["\n<details><summary>The tests</summary>\n"]
        lines += [f"1. `{r.shown_by.split('::')[-1] or r.id}`" for r in rows]
        lines += ["\n</details>\n"]
    return "\n".join(lines)
