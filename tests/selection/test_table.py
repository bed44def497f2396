"""Plain text tables."""

from __future__ import annotations

from lightning_gc.selection.table import format_table


def test_columns_are_as_wide_as_their_widest_cell():
    table = format_table(("a", "header"), [("longer", "1"), ("x", "22")], right={1})
    assert table.splitlines() == ["a       header", "------  ------", "longer       1", "x           22"]


def test_no_rows():
    assert format_table(("a", "bc"), []) == "a  bc\n-  --"


def test_no_trailing_blanks():
    assert all(line == line.rstrip() for line in format_table(("a", "b"), [("x", ""), ("yyy", "z")]).splitlines())
