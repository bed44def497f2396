"""What the user may pass to pick parameters, and the errors for what picks none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_gc.selection.closest import closest_names
from lightning_gc.selection.places import Filter, Place

FilterArgument = Filter | Sequence[Filter]
FanInDims = tuple[tuple[str, int | tuple[int, ...]], ...]


def parse_filters(value: Any, argument: str) -> tuple[Filter, ...]:
    """Check the type of an `include` or `exclude` argument and return it as a tuple.

    Raises:
        TypeError: `value` is not a module class, a string, or a sequence of these.
        ValueError: An entry is an empty string.
    """
    if isinstance(value, Mapping):
        raise TypeError(f"{argument}={value!r} is a mapping. Pass a list of its keys: module classes and strings.")
    single = isinstance(value, str | type | nn.Module | Tensor) or not isinstance(value, Iterable)
    entries = (value,) if single else tuple(value)
    for entry in entries:
        if isinstance(entry, nn.Module):
            raise TypeError(
                f"{argument} holds a module, a {type(entry).__name__}. Pass its class, or its name as a glob."
            )
        if isinstance(entry, Tensor):
            raise TypeError(
                f"{argument} holds a tensor of shape {tuple(entry.shape)}. Pass the name of the parameter, as "
                "named_parameters() gives it."
            )
        if not isinstance(entry, str) and not (isinstance(entry, type) and issubclass(entry, nn.Module)):
            raise TypeError(
                f"{argument}={value!r} holds {entry!r}. Allowed are torch.nn.Module classes and strings: "
                'names or globs, such as "head" or "encoder.*.attn".'
            )
        if entry == "":
            raise ValueError(f"{argument}={value!r} holds an empty string, which matches no name. Remove it.")
    return entries


def parse_fan_in_dims(value: Any) -> FanInDims:
    """Check the type of a `fan_in_dims` argument and return it as pairs.

    Raises:
        TypeError: It is not a mapping from strings to integers or sequences of integers.
    """
    if not isinstance(value, Mapping):
        raise TypeError(
            f"fan_in_dims={value!r} must map name globs to dims, such as {{'*.experts.down_proj': 2, 'proj': [0, 2]}}."
        )
    pairs: list[tuple[str, int | tuple[int, ...]]] = []
    for glob, dims in value.items():
        given = (dims,) if isinstance(dims, int) else dims
        valid = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
        if not isinstance(glob, str) or not valid or not all(type(d) is int for d in given):
            raise TypeError(
                f"fan_in_dims[{glob!r}]={dims!r}: allowed are an integer or a non-empty sequence of integers, by name."
            )
        pairs.append((glob, dims if isinstance(dims, int) else tuple(dims)))
    return tuple(pairs)


def check_matches(entries: Sequence[Filter], argument: str, everything: Sequence[Place]) -> list[str]:
    """Refuse filters that take nothing, and return the names of the classes among them that do.

    A typo must never pass as a filter. A class was imported and can be none, so that one config serves
    models with it and without: it is refused only in an `include` of which no entry matches anything.

    Raises:
        ValueError: It names the entry and the closest names that there are.
    """
    unmatched = [entry for entry in entries if not any(place.matches(entry) for place in everything)]
    for entry in unmatched:
        if isinstance(entry, str):
            raise ValueError(
                f"{argument}: the name {entry!r} matches no parameter of the model. "
                f"{_split_hint(entries)}{closest_names(entry, everything)}"
            )
    names = [entry.__qualname__ for entry in unmatched if isinstance(entry, type)]
    if names and argument == "include" and len(unmatched) == len(entries):
        which = f"the class {names[0]} matches" if len(names) == 1 else f"the classes {', '.join(names)} match"
        owners = sorted({type(place.owner).__name__ for place in everything})
        there_are = (
            f"Parameters stand in modules of: {', '.join(owners)}." if owners else "The model has no parameters."
        )
        raise ValueError(f"include: {which} no parameter of the model. {there_are}")
    return names


def _split_hint(entries: Sequence[Filter]) -> str:
    if len(entries) > 1 and all(isinstance(e, str) and len(e) == 1 for e in entries):
        joined = "".join(str(e) for e in entries)
        return f"Was the string {joined!r} split into characters? Pass [{joined!r}]. "
    return ""
