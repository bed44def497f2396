"""Which parameters are centralized, over which dims, and why the others are not."""

from lightning_gc.selection.entry import Entry
from lightning_gc.selection.layouts import Layout
from lightning_gc.selection.selection import FROZEN, Selection, build_selection, foreign_entry, select

__all__ = ["FROZEN", "Entry", "Layout", "Selection", "build_selection", "foreign_entry", "select"]
