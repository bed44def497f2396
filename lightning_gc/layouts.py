"""Which dims a weight vector spans: the layouts of the layers that are known, as data.

A weight vector is *the incoming weights of one output unit*, so the fan-in dims of a parameter are a
matter of how its layer uses it. Layers are recognised by the qualified names of their class and its
bases, so that no third-party package needs to be imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from torch import nn

from lightning_gc.dims import fan_in_of, resolve_dims


@dataclass(frozen=True)
class Layout:
    """The fan-in dims of one parameter.

    Attributes:
        dims: The dims that one weight vector spans, ascending.
        groups: How many groups dim 0 falls into; a weight vector that spans dim 0 stays in its group.
        source: Where this comes from: a class name, ``"fan_in_dims"``, or ``"assumed"``.
    """

    dims: tuple[int, ...]
    groups: int = 1
    source: str = "assumed"


@dataclass(frozen=True)
class LeftAlone:
    """Why a parameter is never centralized."""

    reason: str


# What the table says of a parameter: explicit dims, or one of these words.
ALL_BUT_FIRST = "all but the first"
TRANSPOSED_CONV = "the first and the kernel dims, within each group"
NORMALISATION = "normalisation layer"
BIAS = "bias"
NOT_A_SET = "not a set of weight vectors"

Rule = str | tuple[int, ...]

# (class pattern, {parameter pattern: rule}); the first pair of patterns that matches decides.
KNOWN_LAYOUTS: tuple[tuple[str, dict[str, Rule]], ...] = (
    ("torch.nn.modules.linear.Linear", {"weight": ALL_BUT_FIRST}),
    ("torch.nn.modules.linear.Bilinear", {"weight": ALL_BUT_FIRST}),
    ("torch.nn.modules.conv._ConvTransposeNd", {"weight": TRANSPOSED_CONV}),
    ("torch.nn.modules.conv._ConvNd", {"weight": ALL_BUT_FIRST}),
    ("torch.nn.modules.rnn.RNN*Base", {"weight_*": ALL_BUT_FIRST}),
    (
        "torch.nn.modules.activation.MultiheadAttention",
        {"*_proj_weight": ALL_BUT_FIRST, "bias_[kv]": NOT_A_SET},
    ),
    ("torch.nn.modules.sparse.Embedding*", {"weight": ALL_BUT_FIRST}),
    ("torch.nn.modules.batchnorm.*", {"*": NORMALISATION}),
    ("torch.nn.modules.instancenorm.*", {"*": NORMALISATION}),
    ("torch.nn.modules.normalization.*", {"*": NORMALISATION}),
    ("transformers.pytorch_utils.Conv1D", {"weight": (0,)}),
    # Stacked experts: (experts, in, out) in these, (experts, out, in) in all the others.
    ("transformers.models.*.GptOssExperts", {"*_bias": BIAS, "*_proj": (1,)}),
    ("transformers.models.*.OpenAIPrivacyFilterExperts", {"*_bias": BIAS, "*_proj": (1,)}),
    ("transformers.models.*.Llama4TextExperts", {"*_proj": (1,)}),
    ("transformers.models.*.AriaExperts", {"*_proj": (1,)}),
    ("transformers.models.*Experts", {"*_bias": BIAS, "*_proj": (2,), "weight": (2,)}),
    # (relations, in, out), or (relations, blocks, in, out); the root weight is (in, out).
    ("torch_geometric.*.RGCNConv", {"weight": (-2,), "root": (0,), "comp": NOT_A_SET}),
    ("torch_geometric.*.HeteroLinear", {"weight": (1,)}),
)


def find_layout(module: nn.Module, name: str, shape: Sequence[int]) -> Layout | LeftAlone:
    """The layout of the parameter `name` of `module`, or why it is never centralized.

    Args:
        module: The module that owns the parameter.
        name: The parameter's name in that module. The names that weight normalisation and spectral
            normalisation give the originals (``weight_v``, ``weight_orig``) stand for the weight.
        shape: The shape of the whole parameter, also where only a shard of it is at hand.
    """
    base, is_magnitude = _before_reparametrization(module, name)
    if is_magnitude:
        return LeftAlone("magnitude of a normalised weight")
    rule = _known_rule(tuple(type(module).__mro__), base)
    # `parametrize` makes up a class ParametrizedLinear for a Linear.
    source = type(module).__name__.removeprefix("Parametrized") if rule else "assumed"
    if rule in (NORMALISATION, BIAS, NOT_A_SET):
        return LeftAlone(str(rule))
    if len(shape) < 2:
        return LeftAlone("fewer than 2 dims")
    if rule == TRANSPOSED_CONV:
        dims = (0, *range(2, len(shape)))
        return eligible(Layout(dims, int(module.groups), source), shape)  # type: ignore[arg-type]
    if isinstance(rule, tuple):
        return eligible(Layout(resolve_dims(shape, rule), source=source), shape)
    if rule is None and shape[0] == 1:
        return LeftAlone("first dim is 1: not a set of weight vectors")
    return eligible(Layout(tuple(range(1, len(shape))), source=source), shape)


def eligible(layout: Layout, shape: Sequence[int]) -> Layout | LeftAlone:
    """`layout`, unless it would leave nothing of the gradient."""
    if 0 in shape:
        return LeftAlone("empty")
    if fan_in_of(shape, layout.dims, layout.groups) < 2:
        return LeftAlone("fan-in is 1: nothing would be left")
    return layout


def _before_reparametrization(module: nn.Module, name: str) -> tuple[str, bool]:
    """The name that a parameter had before `torch.nn.utils` split it, and whether it is a magnitude."""
    for suffix, sibling in (("_v", "_g"), ("_g", "_v")):
        base = name.removesuffix(suffix)
        if base != name and base + sibling in module._parameters:
            return base, suffix == "_g"
    return name.removesuffix("_orig"), False


@cache
def _known_rule(classes: tuple[type, ...], name: str) -> Rule | None:
    """The table's rule for the parameter `name` of a module whose class has the MRO `classes`."""
    for cls in classes:
        qualified = f"{cls.__module__}.{cls.__qualname__}"
        for class_pattern, rules in KNOWN_LAYOUTS:
            if not fnmatchcase(qualified, class_pattern):
                continue
            for name_pattern, rule in rules.items():
                if fnmatchcase(name, name_pattern):
                    return rule
    return None
