"""What a name that matches nothing may have been meant for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import product

from torch import nn

from lightning_gc.selection.places import Place, class_of


def closest_names(entry: str, everything: Sequence[Place]) -> str:
    """A hint for an entry that matches no parameter: the closest names there are, or the class that was meant."""
    names = list(dict.fromkeys(name for place in everything for name in place.names()))
    last = entry.rsplit(".", 1)[-1]
    classes = {class_of(module).__name__ for place in everything for _, module in place.around}
    beside = _classes_beside(entry)
    is_class = last in classes or bool(beside)
    close = [glob for glob in _corrected(entry, names) if any(place.matches_glob(glob) for place in everything)]
    close += get_close_matches(last if is_class else entry, names, n=5, cutoff=0.3) or names[:5]
    shown = list(dict.fromkeys(close))[:5]
    hint = f"The closest names are: {', '.join(map(repr, shown))}." if shown else "The model has no parameters."
    if beside and last not in beside:  # from YAML, where what can be imported arrives as a class
        like = {name.lower(): name for name in beside}
        found = get_close_matches(last.lower(), like, n=1)
        there_is = f" The closest class there is {entry.removesuffix(last)}{like[found[0]]}." if found else ""
        return f"The class {entry} cannot be imported.{there_is} {hint}"
    if is_class:
        config = "(in a config: its import path, such as torch.nn.Linear)"
        return f"To filter by class, pass the class {entry} itself, not a string {config}. {hint}"
    lower = {name.lower(): name for name in classes}
    if meant := get_close_matches(entry.lower(), lower, n=1, cutoff=0.8):
        return f"Was the class {lower[meant[0]]} meant? Pass it itself, not a string. {hint}"
    return hint


def _classes_beside(entry: str) -> set[str]:
    """The module classes in the Python module that a dotted name would be imported from, where that is imported."""
    path = entry.rpartition(".")[0]
    inside = vars(sys.modules[path]) if path in sys.modules else {}
    return {name for name, value in inside.items() if isinstance(value, type) and issubclass(value, nn.Module)}


def _corrected(entry: str, names: Iterable[str]) -> list[str]:
    """The entry with each part that stands in no name replaced by the closest parts that do; wildcards stay.

    Without this, the closest names to ``enc.layrs.*`` are ``enc.layers.9`` and its like, and never ``enc.layers.*``.
    """
    parts = sorted({part for name in names for part in name.split(".")})
    choices = [
        [part] if part in parts or re.search(r"[*?\[]", part) else get_close_matches(part, parts, n=2)
        for part in entry.split(".")
    ]
    return [".".join(chosen) for chosen in product(*choices)]
