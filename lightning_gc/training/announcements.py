"""What is printed of the selection in one fit."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info

from lightning_gc.selection import Entry, Selection
from lightning_gc.selection.layouts import READ
from lightning_gc.selection.readings import Readings
from lightning_gc.selection.show import listed, said_of

WAITS = " (until the graph of the first loss has been read)"


class Announcements:
    """Prints, from rank zero, a line of what is centralized, and another one whenever more is.

    Args:
        callback: The constructor call, at the start of each line.
        selection: The selection at the start of the fit.
    """

    def __init__(self, callback: str, selection: Selection) -> None:
        self._callback = callback
        self._announced = {entry.name for entry in selection.centralized}
        waits = any(entry.parameter.requires_grad for entry in selection.open)
        rank_zero_info(f"{callback}: {selection.summary()}{WAITS if waits else ''}")

    def read(self, before: Selection, after: Selection, settled: Readings) -> None:
        """Say what the graph has settled."""
        self._announced.update(entry.name for entry in after.centralized)
        was = {entry.parameter: entry for entry in before.open}
        found: dict[str, list[str]] = {}
        for entry in after:
            old = was.get(entry.parameter)
            if old is None or entry.open:
                continue
            reading = settled[entry.parameter]
            if reading.kind == "unread":
                if _is_assumption(old):
                    found.setdefault(f"as assumed before, since it shows nothing of them ({reading.why})", []).append(
                        entry.name
                    )
            else:
                found.setdefault(said_of(entry), []).append(entry.name)
        if found:
            parts = [f"{what}: {listed(names)}" for what, names in found.items()]
            rank_zero_info(f"{self._callback}: {READ} of the loss: {'; '.join(parts)}. {after.summary()}")

    def never_read(self, selection: Selection, tried: Readings, *, bypassed: bool) -> None:
        """Say which assumptions stood until the end, because no graph showed the parameters.

        Args:
            selection: What was selected in the end.
            tried: What the graphs said of those that were looked for.
            bypassed: Whether no backward went through Lightning, so that none was.
        """
        why: dict[str, list[str]] = {}
        for entry in selection.open:
            if not _is_assumption(entry) or not entry.parameter.requires_grad:
                continue
            if entry.parameter in tried:
                why.setdefault(tried[entry.parameter].why, []).append(entry.name)
            elif bypassed:
                why.setdefault("no backward went through Lightning", []).append(entry.name)
        if why:
            parts = [f"{listed(names)} ({reason})" for reason, names in why.items()]
            rank_zero_info(f"{self._callback}: what was assumed stood, since no graph showed: {'; '.join(parts)}.")

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


def _is_assumption(entry: Entry) -> bool:
    return entry.layout is None or entry.layout.assumed
