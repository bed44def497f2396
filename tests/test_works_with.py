"""Every row of the table, with every target that it is meant for; and the page of the docs that shows the table."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.works_with import ROWS, Row, document
from tests.works_with.table import PAGE


def _parameters() -> list:
    marks = {True: [pytest.mark.distributed], False: []}
    return [
        pytest.param(row, target, id=f"{row.id}-{target}", marks=marks[row.distributed])
        for row in ROWS
        if row.check
        for target in row.targets
    ]


@pytest.mark.parametrize(("row", "target"), _parameters())
def test_works_with(row: Row, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for package in row.packages:
        pytest.importorskip(package)
    row.check(target)


def test_ids_are_distinct():
    ids = [row.id for row in ROWS]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("row", [row for row in ROWS if row.shown_by], ids=lambda row: row.id)
def test_the_test_that_a_row_names_exists(row: Row):
    path, name = row.shown_by.split("::")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert callable(getattr(module, name))


def test_the_page_of_the_docs_is_this_table():
    assert PAGE.read_text() == document(), "run `python -m tests.works_with`"
