"""Plain text tables, for people to read."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Lay out rows in columns under a header, two spaces apart; the columns in `right` align right.

    Example:
        >>> print(format_table(("name", "fan-in"), [("conv.weight", "27")], right={1}))
        name         fan-in
        -----------  ------
        conv.weight      27
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
