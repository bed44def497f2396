"""Which parameters are centralized, over which dims, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_gc.selection.entry import Entry
from lightning_gc.selection.filters import (
    FanInDims,
    FilterArgument,
    check_matches,
    parse_fan_in_dims,
    parse_filters,
)
from lightning_gc.selection.given import GivenDims
from lightning_gc.selection.layouts import Layout, LeftAlone, eligible, find_layout, is_magnitude
from lightning_gc.selection.places import Filter, ParametersIn, Place, own_parameters, places
from lightning_gc.selection.readings import Readings, as_read, readings_of
from lightning_gc.selection.show import html_table, text_table

ShapeOf = Callable[[nn.Parameter], torch.Size]
ShapesIn = Callable[[nn.Module], list[torch.Size]]

FROZEN = "frozen: it requires no gradient"
LAZY = "lazy: not initialised yet"


class Selection(Sequence[Entry]):
    """The parameters of a module, each with its fan-in dims or the reason why it is left alone.

    ``str(selection)`` is a table of them, ``selection.table(full=True)`` one with a row for each, and
    ``selection.summary()`` one line.

    Attributes:
        unmatched: The names of the classes in `include` and in `exclude` in which no parameter stands.
        open: The entries of which the graph of a loss may still say otherwise.
    """

    def __init__(self, entries: Iterable[Entry], unmatched: Mapping[str, Sequence[str]] = {}) -> None:
        self._entries = tuple(entries)
        self.unmatched = unmatched
        self.open = [entry for entry in self._entries if entry.open]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        return self._entries[index]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def centralized(self) -> list[Entry]:
        """The entries that are centralized."""
        return [entry for entry in self if entry.centralized]

    @property
    def assumed(self) -> list[Entry]:
        """The centralized entries to check, because their fan-in dims are assumed rather than known."""
        return [e for e in self.centralized if e.layout is not None and e.layout.assumed]

    def without_parameters(self) -> Selection:
        """The same to read, without the parameters, so that it keeps no model alive."""
        return Selection([replace(entry, parameter=None) for entry in self], self.unmatched)  # type: ignore[arg-type]

    def summary(self) -> str:
        """One line: how much is centralized, now and later, and which fan-in dims are assumed."""
        taken = self.centralized
        frozen, lazy = (sum(entry.reason == reason for entry in self) for reason in (FROZEN, LAZY))
        later = f", {frozen} more once they are unfrozen" if frozen else ""
        later += f", up to {lazy} more once their shapes are known" if lazy else ""
        elements, total = sum(e.shape.numel() for e in taken), sum(e.shape.numel() for e in self)
        line = (
            f"{len(taken)} of {len(self)} parameters are centralized{' now' if later else ''}{later}: "
            f"{sum(e.weight_vectors for e in taken):,} weight vectors, {elements:,} of {total:,} elements ({elements / max(1, total):.1%})"
        )
        if self.assumed:
            line += f"; fan-in dims are assumed, please check: {', '.join(e.name for e in self.assumed)}"
        for argument, names in self.unmatched.items():
            if names:
                line += f"; no parameter stands in: {', '.join(names)} ({argument})"
        return line

    def table(self, full: bool = False) -> str:
        """A table of what is centralized, and a line for each reason why the others are left alone.

        Args:
            full: A row for each parameter, where otherwise those that differ in a number of their names
                alone share one: ``layers.{0..23}.weight`` is ``layers.0.weight`` to ``layers.23.weight``.
        """
        return f"{text_table(self, full)}\n{self.summary()}"

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """What notebooks show."""
        return html_table(self, self.summary())

    def __repr__(self) -> str:
        return f"Selection({len(self.centralized)} of {len(self)} parameters centralized)"


def select(
    module: nn.Module,
    include: FilterArgument = (),
    exclude: FilterArgument = (),
    fan_in_dims: Mapping[str, int | Sequence[int]] = {},
    loss: Tensor | None = None,
) -> Selection:
    """Which parameters of `module` Gradient Centralization applies to, over which dims.

    Args:
        module: Any module; no training and no Trainer is needed.
        include: Module classes and/or name globs; empty: everything eligible. A class takes every
            parameter in a module of that class, at any depth. A glob (`fnmatch`, case-sensitive) takes a
            parameter when it matches its qualified name or that of any module around it.
        exclude: The same; `exclude` wins. A class that the model does not have is named in the summary.
        fan_in_dims: ``{name glob: dims}``: the fan-in dims of parameters whose layout is not known or
            differs. Overrides everything; of several globs that match, the first decides.
        loss: A loss of the module, on which backward was not called yet: what its graph says of parameters
            whose layout is not known stands in place of an assumption. The callback does the same with the
            first losses of a training.

    Returns:
        The selection; print it to see a table.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A glob matches nothing (the closest names are given), or no class in `include` does; or
            dims are out of range; or `loss` has no graph.

    Example:
        >>> from lightning_gc import select
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
        >>> print(select(model, exclude="3"))
        parameter  shape         fan-in dims  weight vectors  fan-in  centralized
        ---------  ------------  -----------  --------------  ------  ------------
        0.weight   (8, 3, 3, 3)  (1, 2, 3)                 8      27  yes (Conv2d)
        left alone
          2  fewer than 2 dims: 0.bias, 3.bias
          2  normalisation layer: 1.weight, 1.bias
          1  excluded by '3': 3.weight
        1 of 6 parameters are centralized: 8 weight vectors, 216 of 330 elements (65.5%)

        Of a layer of no known class a loss tells more, here that it is ``(in, out)``:

        >>> import torch
        >>> class Right(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.randn(8, 5))
        ...     def forward(self, x):
        ...         return x @ self.weight
        >>> right = Right()
        >>> select(right)[0].layout.dims, select(right)[0].layout.source
        ((1,), 'assumed')
        >>> read = select(right, loss=right(torch.randn(4, 8)).sum())
        >>> read[0].layout.dims, read[0].layout.source
        ((0,), 'read from the graph')
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"select() takes a torch.nn.Module, got {type(module).__name__}.")
    return build_selection(
        module,
        parse_filters(include, "include"),
        parse_filters(exclude, "exclude"),
        parse_fan_in_dims(fan_in_dims),
        readings={} if loss is None else readings_of(module, loss),
    )


def build_selection(
    module: nn.Module,
    include: tuple[Filter, ...],
    exclude: tuple[Filter, ...],
    fan_in_dims: FanInDims,
    shape_of: ShapeOf = lambda parameter: parameter.shape,
    parameters_in: ParametersIn = own_parameters,
    readings: Readings = MappingProxyType({}),
) -> Selection:
    """:func:`select` on parsed arguments.

    For parameters that a strategy shards, `shape_of` gives the whole shape, and `parameters_in` what
    stands in a module where the strategy has put something else there. `readings` is what the graph said
    of parameters, the last word on them even where it said nothing.
    """

    def shapes_in(owner: nn.Module) -> list[torch.Size]:
        return [shape_of(parameter) for parameter in parameters_in(owner).values() if parameter is not None]

    standing = places(module, parameters_in)
    everything = [place for found in standing.values() for place in found]
    globs = tuple(glob for glob, _ in fan_in_dims)
    check_matches(globs, "fan_in_dims", everything)
    unmatched = {name: check_matches(f, name, everything) for name, f in (("include", include), ("exclude", exclude))}
    entries, given = [], GivenDims(fan_in_dims)
    for parameter, found in standing.items():
        if isinstance(parameter, UninitializedParameter):
            entries.append(Entry(found[0].name, parameter, torch.Size(), reason=LAZY))
            continue
        shape = shape_of(parameter)
        judged = _judge(parameter, shape, found, given, shapes_in)
        if parameter in readings:
            judged = as_read(judged, readings[parameter], shape)
        why_not = _filtered_out(found, include, exclude)
        is_open = (judged.assumed or judged.third_party) and parameter not in readings and not why_not
        entries.append(_entry(found[0].name, parameter, shape, judged, why_not, is_open))
    given.check_all_were_of_use()
    return Selection(entries, unmatched)


def foreign_entry(name: str, parameter: nn.Parameter) -> Entry:
    """The entry of a parameter that an optimizer holds but the module does not: by the default rule."""
    judged = find_layout(nn.Module(), name, parameter.shape)
    if not (parameter.is_floating_point() or parameter.is_complex()):
        judged = LeftAlone(f"{parameter.dtype} is not floating point or complex")
    return _entry(name, parameter, parameter.shape, judged)


def _judge(
    parameter: nn.Parameter, shape: torch.Size, found: Sequence[Place], given: GivenDims, shapes_in: ShapesIn
) -> Layout | LeftAlone:
    if not (parameter.is_floating_point() or parameter.is_complex()):
        return LeftAlone(f"{parameter.dtype} is not floating point or complex")
    judged = [_judge_place(shape, place, shapes_in) for place in found]
    # A tied parameter is what the best-known of its layers says it is.
    known = min(judged, key=lambda j: (j.assumed, j.third_party))
    layout = given.layout(shape, found, never=isinstance(known, LeftAlone) and not known.assumed)
    return known if layout is None else eligible(layout, shape)


def _judge_place(shape: torch.Size, place: Place, shapes_in: ShapesIn) -> Layout | LeftAlone:
    around = place.parametrization
    if around is not None and is_magnitude(shape, max(shapes_in(around), key=math.prod)):
        return LeftAlone("magnitude of a normalised weight")
    return find_layout(place.owner, place.attribute, shape)


def _filtered_out(found: Sequence[Place], include: Sequence[Filter], exclude: Sequence[Filter]) -> str:
    """Why the filters leave a parameter alone; empty if they do not."""
    for entry in exclude:
        if any(place.matches(entry) for place in found):
            return f"excluded by {entry.__name__ if isinstance(entry, type) else repr(entry)}"
    if include and not any(place.matches(entry) for entry in include for place in found):
        return "not included"
    return ""


def _entry(
    name: str,
    parameter: nn.Parameter,
    shape: torch.Size,
    judged: Layout | LeftAlone,
    why_not: str = "",
    is_open: bool = False,
) -> Entry:
    if isinstance(judged, LeftAlone):
        return Entry(name, parameter, shape, None, judged.reason, is_open)
    if why_not:
        return Entry(name, parameter, shape, None, why_not)
    return Entry(name, parameter, shape, judged, "" if parameter.requires_grad else FROZEN, is_open)
