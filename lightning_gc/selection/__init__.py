"""Which parameters are centralized, over which dims, and why the others are not."""

from lightning_gc.selection.selection import Entry, Selection, build_selection, foreign_entry, select

__all__ = ["Entry", "Selection", "build_selection", "foreign_entry", "select"]
