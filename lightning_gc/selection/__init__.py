"""Which parameters are centralized, over which dims, and why the others are not."""

from lightning_gc.selection.entry import Entry
from lightning_gc.selection.layouts import Layout
from lightning_gc.selection.selection import Selection, build_selection, foreign_entry, select

__all__ = ["Entry", "Layout", "Selection", "build_selection", "foreign_entry", "select"]
