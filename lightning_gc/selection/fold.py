"""Names that differ in a number alone, written as one."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

# A number that is a part of a dotted name, or ends one after an underscore (torchvision's `encoder_layer_0`).
_NUMBER = re.compile(r"(?:(?<=^)|(?<=[._]))(\d+)(?=\.|$)")


Parts = list[str | tuple[int, ...]]


def fold(names: Sequence[str], kinds: Sequence[Hashable]) -> list[tuple[str, list[int]]]:
    """Fold three or more names of one kind that differ in a number alone; each with the positions of what it stands for.

    The numbers are written as in a shell's braces: ``{0..23}``, ``{0..22..2}``, ``{0,1,5}``.

    Example:
        >>> fold(["a.0.w", "a.1.w", "a.2.w", "b.w"], ["linear"] * 4)
        [('a.{0..2}.w', [0, 1, 2]), ('b.w', [3])]
    """
    # Texts and numbers alternate in a split name; a number becomes the numbers of the names that are folded.
    rows: list[tuple[Hashable, Parts, list[int]]] = [
        (kind, [(int(part),) if odd % 2 else part for odd, part in enumerate(_NUMBER.split(name))], [position])
        for position, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    for place in range(max((len(parts) for _, parts, _ in rows), default=0) - 2, 0, -2):  # the innermost first
        alike: dict[Hashable, list[tuple[Hashable, Parts, list[int]]]] = {}
        for row in rows:
            kind, parts, _ = row
            alike.setdefault((kind, len(parts), *parts[:place], None, *parts[place + 1 :]), []).append(row)
        rows = []
        for group in alike.values():
            kind, parts, _ = group[0]
            if len(group) < 3 or place >= len(parts):
                rows += group
                continue
            numbers = tuple(n for _, parts, _ in group for n in parts[place] if isinstance(n, int))
            positions = [position for _, _, positions in group for position in positions]
            rows.append((kind, [*parts[:place], numbers, *parts[place + 1 :]], positions))
    rows.sort(key=lambda row: row[2][0])
    return [("".join(map(_written, parts)), positions) for _, parts, positions in rows]


def _written(part: str | tuple[int, ...]) -> str:
    if isinstance(part, str):
        return part
    numbers = sorted(part)
    if len(numbers) == 1:
        return str(numbers[0])
    step = numbers[1] - numbers[0]
    if numbers != list(range(numbers[0], numbers[-1] + 1, step)):
        return f"{{{','.join(map(str, numbers))}}}"
    return f"{{{numbers[0]}..{numbers[-1]}{f'..{step}' if step > 1 else ''}}}"
