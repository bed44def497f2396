"""Which dims a weight vector spans: the layouts of the layers that are known, as data.

A weight vector is *the incoming weights of one output unit*, so the fan-in dims of a parameter are a
matter of how its layer uses it. Layers are recognised by the qualified names of their class and its
bases, so that no third-party package needs to be imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache

from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from lightning_gc.equation.dims import fan_in_of, resolve_dims
from lightning_gc.selection.places import class_of


@dataclass(frozen=True)
class Layout:
    """The fan-in dims of one parameter.

    Attributes:
        dims: The dims that one weight vector spans, ascending.
        groups: How many groups dim 0 falls into; a weight vector that spans dim 0 stays in its group.
        source: Where this comes from: a class name, ``"fan_in_dims"``, ``"read from the graph"``, or ``"assumed"``.
        third_party: Whether the class is none of torch's own: then the graph, where it can be read, is right.
    """

    dims: tuple[int, ...]
    groups: int = 1
    source: str = "assumed"
    third_party: bool = field(default=False, compare=False)

    @property
    def assumed(self) -> bool:
        """Whether it is assumed rather than known."""
        return self.source == "assumed"


@dataclass(frozen=True)
class LeftAlone:
    """Why a parameter is never centralized.

    Attributes:
        reason: The reason, for people to read.
        assumed: Whether it rests on an assumed layout rather than on a known one.
        third_party: As of a :class:`Layout`.
    """

    reason: str
    assumed: bool = False
    third_party: bool = field(default=False, compare=False)


READ = "read from the graph"


# What the table says of a parameter: explicit dims, or one of these words.
ALL_BUT_FIRST = "all but the first"
TRANSPOSED_CONV = "the first and the kernel dims, within each group"
STACKED_EXPERTS = "the inputs of each expert"
NORMALISATION = "normalisation layer"
BIAS = "bias"
NOT_A_SET = "not a set of weight vectors"

Rule = str | tuple[int, ...]

# (class pattern, {parameter pattern: rule}); the first pair of patterns that matches decides. Where the graph of a loss can
# be read, it says the same of the classes that are not torch's: they are here for `attach` and `select` without a loss, in
# whose loops PyG's layers are mostly trained, and for experts under reentrant checkpointing.
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
    ("transformers.models.*.GptOssExperts", {"*_proj": (1,)}),
    ("transformers.models.*.OpenAIPrivacyFilterExperts", {"*_proj": (1,)}),
    ("transformers.models.*.Llama4TextExperts", {"*_proj": (1,)}),
    ("transformers.models.*.AriaExperts", {"*_proj": (1,)}),
    ("transformers.models.*.AriaGroupedExpertsG[eE][mM][mM]", {"weight": (1,)}),
    ("transformers.models.*Experts", {"*_proj": STACKED_EXPERTS, "weight": (2,)}),
    # (relations, in, out), or (relations, blocks, in, out); the root weight is (in, out).
    ("torch_geometric.*.RGCNConv", {"weight": (-2,), "root": (0,), "comp": NOT_A_SET}),
    ("torch_geometric.*.HeteroLinear", {"weight": (1,)}),
    # Any other module: a bias of several dims, such as one for each expert, is still a bias.
    ("torch.nn.modules.module.Module", {"bias": BIAS, "*_bias": BIAS, "bias_*": BIAS}),
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
    written_as = class_of(module)
    rule, third_party = _known_rule(tuple(f"{c.__module__}.{c.__qualname__}" for c in written_as.__mro__), base)
    # `parametrize` makes up a class ParametrizedLinear for a Linear.
    source = written_as.__name__.removeprefix("Parametrized")
    if rule in (NORMALISATION, NOT_A_SET):
        return LeftAlone(str(rule), third_party=third_party)
    if len(shape) < 2:
        return LeftAlone("fewer than 2 dims")
    if rule == BIAS:
        return LeftAlone(BIAS)
    if rule == STACKED_EXPERTS:
        rule = (_input_dim_of_experts(module),)
    layout = _apply(rule, shape, int(getattr(module, "groups", 1)) if rule == TRANSPOSED_CONV else 1, source)
    if layout is not None:
        return eligible(replace(layout, third_party=third_party), shape)
    if shape[0] == 1:
        return LeftAlone("first dim is 1: not a set of weight vectors", assumed=True)
    return eligible(Layout(tuple(range(1, len(shape)))), shape)


def _apply(rule: Rule | None, shape: Sequence[int], groups: int, source: str) -> Layout | None:
    """The layout that a rule gives to a shape; None if there is no rule, or it was made for another shape."""
    rank = len(shape)
    if rule == ALL_BUT_FIRST:
        return Layout(tuple(range(1, rank)), source=source)
    if rule == TRANSPOSED_CONV and shape[0] % groups == 0:
        return Layout((0, *range(2, rank)), groups, source)
    if isinstance(rule, tuple) and all(-rank <= d < rank for d in rule):
        return Layout(resolve_dims(shape, rule), source=source)
    return None


def _input_dim_of_experts(module: nn.Module) -> int:
    """The dim of `gate_up_proj` and `down_proj` that holds an expert's inputs.

    Some classes had (experts, in, out) in transformers 4.57 and have (experts, out, in) since 5, so the
    shapes decide where they can: `down_proj` gives back as many features as `gate_up_proj` takes.
    """
    up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    if up is None or down is None or up.dim() != 3 or down.dim() != 3:
        return 2
    return 1 if up.shape[1] == down.shape[2] and up.shape[2] != down.shape[1] else 2


def eligible(layout: Layout, shape: Sequence[int]) -> Layout | LeftAlone:
    """`layout`, unless it would leave nothing of the gradient."""
    if 0 in shape:
        return LeftAlone("empty")
    if fan_in_of(shape, layout.dims, layout.groups) < 2:
        return LeftAlone("fan-in is 1: nothing would be left", layout.assumed, layout.third_party)
    return layout


def is_magnitude(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether a tensor of this shape scales one of the `whole` shape, as in weight normalisation."""
    same_rank = tuple(shape) != tuple(whole) and len(shape) == len(whole)
    return same_rank and all(size in (1, of_whole) for size, of_whole in zip(shape, whole, strict=True))


def _before_reparametrization(module: nn.Module, name: str) -> tuple[str, bool]:
    """The name that a parameter had before `torch.nn.utils` split it, and whether it is a magnitude."""
    base = name[:-2] if name.endswith(("_v", "_g")) else name
    if base != name and any(
        isinstance(hook, WeightNorm) and hook.name == base for hook in module._forward_pre_hooks.values()
    ):
        return base, name.endswith("_g")
    return name.removesuffix("_orig"), False


@cache
def _known_rule(classes: tuple[str, ...], name: str) -> tuple[Rule | None, bool]:
    """The table's rule for the parameter `name` of a module whose class and bases are named `classes`.

    And whether it is a rule for a class that is not torch's.
    """
    for qualified in classes:
        for class_pattern, rules in KNOWN_LAYOUTS:
            if not fnmatchcase(qualified, class_pattern):
                continue
            for name_pattern, rule in rules.items():
                if fnmatchcase(name, name_pattern):
                    return rule, not class_pattern.startswith("torch.")
    return None, False
