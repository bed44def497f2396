"""What is printed of the selection in one fit."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info

from lightning_gc.selection import Selection


class Announcements:
    """Prints, from rank zero, a line of what is centralized, and another one whenever more is.

    Args:
        callback: The constructor call, at the start of each line.
        selection: The selection at the start of the fit.
    """

    def __init__(self, callback: str, selection: Selection) -> None:
        self._callback = callback
        self._announced = {entry.name for entry in selection.centralized}
        rank_zero_info(f"{callback}: {selection.summary()}")

    def growth(self, selection: Selection) -> None:
        """Say what is centralized that never was before: unfrozen, or given a shape or an optimizer."""
        more = [entry.name for entry in selection.centralized if entry.name not in self._announced]
        if not more:
            return
        # Never taken away again: what `toggle_optimizer` turns off in a step comes back in the next.
        self._announced.update(more)
        names = ", ".join(more[:3]) + (", ..." if len(more) > 3 else "")
        are = "1 more parameter is" if len(more) == 1 else f"{len(more)} more parameters are"
        rank_zero_info(f"{self._callback}: {are} centralized from now on ({names}). {selection.summary()}")
