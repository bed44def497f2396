"""The dims that the user gave, by glob."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from lightning_gc.equation.dims import resolve_dims
from lightning_gc.selection.filters import FanInDims
from lightning_gc.selection.layouts import Layout
from lightning_gc.selection.places import Place


class GivenDims:
    """Gives parameters the dims of a `fan_in_dims` argument, and remembers which globs were of no use."""

    def __init__(self, fan_in_dims: FanInDims) -> None:
        self._pairs = fan_in_dims
        self._used: set[str] = set()
        self._skipped: dict[str, str] = {}

    def layout(self, shape: Sequence[int], found: Sequence[Place], never: bool) -> Layout | None:
        """The layout that the first glob that takes a parameter gives it; None if none does.

        `never`: what is known of it says that it is never centralized, as of a bias. Only a glob that takes
        it by its own name means it then: ``"head"`` means the weights in the head.

        Raises:
            ValueError: The dims do not fit the shape.
        """
        for glob, dims in self._pairs:
            if not any(place.matches_glob(glob) for place in found):
                continue
            if never and not any(fnmatchcase(place.name, glob) for place in found):
                self._skipped.setdefault(glob, found[0].name)
                continue
            self._used.add(glob)
            try:
                return Layout(resolve_dims(shape, dims), source="fan_in_dims")
            except ValueError as error:
                raise ValueError(
                    f"fan_in_dims[{glob!r}] for {found[0].name!r}: {error} Correct the dims, or narrow the glob."
                ) from None
        return None

    def check_all_were_of_use(self) -> None:
        """Refuse a glob that took modules in which nothing is eligible.

        Raises:
            ValueError: It names one such parameter.
        """
        for glob, name in self._skipped.items():
            if glob not in self._used:
                raise ValueError(
                    f"fan_in_dims[{glob!r}] takes only parameters that are never centralized (biases, normalisation "
                    f"layers), such as {name!r}. Name that parameter itself if you mean it, or correct the glob."
                )
