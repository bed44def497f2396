"""Where parameters stand in a module, under which names, and what a filter takes.

A filter is a module class or a name glob. Names are those of the LightningModule, cleaned of the parts
that wrappers (compilation, activation checkpointing, FSDP, precision) put in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

Filter = type[nn.Module] | str

_WRAPPER_PARTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"})


def clean_name(name: str) -> str:
    """Drop the parts of a dotted name that wrappers put in.

    Example:
        >>> clean_name("_forward_module.encoder._orig_mod.weight")
        'encoder.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def class_of(module: nn.Module) -> type:
    """The class that a module was written as, which scripting hides, where that class is imported."""
    if isinstance(module, torch.jit.ScriptModule):
        parts = module._c._type().qualified_name().split(".")
        path, name = [p for p in parts[1:-1] if not p.startswith("___torch_mangle_")], parts[-1]
        written_as = getattr(sys.modules.get(".".join(path)), name, None)
        if isinstance(written_as, type):
            return written_as
    return type(module)


@dataclass(frozen=True)
class Place:
    """One place where a parameter stands; a tied parameter stands in several.

    Attributes:
        name: The qualified name, cleaned.
        owner: The module whose parameter it is. For the originals of a parametrization: the
            parametrized module.
        attribute: Its name in `owner`.
        around: ``(name, module)`` of every module around it, the root first, names cleaned.
        parametrization: For an original of a parametrization: the list it stands in, else None.
    """

    name: str
    owner: nn.Module
    attribute: str
    around: tuple[tuple[str, nn.Module], ...]
    parametrization: ParametrizationList | None = None

    def matches_glob(self, glob: str) -> bool:
        """Whether `glob` takes this name or that of a module around it."""
        return any(fnmatchcase(name, glob) for name in self.names())

    def matches(self, entry: Filter) -> bool:
        """Whether the filter takes the parameter at this place."""
        if isinstance(entry, str):
            return self.matches_glob(entry)
        return any(isinstance(module, entry) or issubclass(class_of(module), entry) for _, module in self.around)

    def names(self) -> Iterator[str]:
        """The names that a glob is held against: the parameter's and those of the modules around it."""
        yield self.name
        if self.parametrization is not None:  # `layer.weight` for `layer.parametrizations.weight.original1`
            layer, _ = self.around[-3]
            yield f"{layer}.{self.attribute}" if layer else self.attribute
        yield from (name for name, _ in self.around if name)


ParametersIn = Callable[[nn.Module], Mapping[str, "nn.Parameter | None"]]


def own_parameters(owner: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """The parameters that stand in a module itself, by name."""
    return owner._parameters


def places(module: nn.Module, parameters_in: ParametersIn = own_parameters) -> dict[nn.Parameter, list[Place]]:
    """Every parameter of a module with all the places it stands in, in order of registration.

    `parameters_in` tells what stands in one module, where a strategy has put something else there.
    """
    found: dict[nn.Parameter, list[Place]] = {}
    modules = dict(module.named_modules(remove_duplicate=False))
    for path, owner in modules.items():
        for attribute, parameter in parameters_in(owner).items():
            if parameter is not None:
                found.setdefault(parameter, []).append(_place(modules, path, owner, attribute))
    return found


def _place(modules: dict[str, nn.Module], path: str, owner: nn.Module, attribute: str) -> Place:
    parts = path.split(".") if path else []
    prefixes = [".".join(parts[:i]) for i in range(len(parts) + 1)]
    around = tuple((clean_name(prefix), modules[prefix]) for prefix in prefixes)
    name = clean_name(f"{path}.{attribute}" if path else attribute)
    if isinstance(owner, ParametrizationList) and len(parts) >= 2 and attribute.startswith("original"):
        # layer . parametrizations . weight . original1
        return Place(name, modules[prefixes[-3]], parts[-1], around, parametrization=owner)
    return Place(name, owner, attribute, around)
