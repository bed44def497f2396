"""The fan-in dims of each layer: the design's table, with the real layers."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_gc import select
from lightning_gc.selection.layouts import Layout, LeftAlone, find_layout

NORM = "normalisation layer"
ONE_DIM = "fewer than 2 dims"
FAN_IN_1 = "fan-in is 1: nothing would be left"
NOT_A_SET = "not a set of weight vectors"
FIRST_IS_1 = f"first dim is 1: {NOT_A_SET}"
MAGNITUDE = "magnitude of a normalised weight"


def judged(module: nn.Module) -> dict[str, tuple[int, ...] | tuple[tuple[int, ...], int] | str]:
    """By parameter name: fan-in dims (and groups, if there are several), or why it is left alone."""
    found = {}
    for entry in select(module):
        if entry.layout is None:
            found[entry.name] = entry.reason
        else:
            found[entry.name] = (
                (entry.layout.dims, entry.layout.groups) if entry.layout.groups > 1 else entry.layout.dims
            )
    return found


def sources(module: nn.Module) -> set[str]:
    return {entry.layout.source for entry in select(module).centralized}


LINEAR = {"weight": (1,), "bias": ONE_DIM}
TORCH_LAYERS = [
    pytest.param(nn.Linear(4, 3), LINEAR, id="Linear"),
    pytest.param(nn.Linear(4, 1), LINEAR, id="Linear to one output"),
    pytest.param(nn.Linear(1, 4), {"weight": FAN_IN_1, "bias": ONE_DIM}, id="Linear from one input"),
    pytest.param(nn.Bilinear(4, 5, 3), {"weight": (1, 2), "bias": ONE_DIM}, id="Bilinear"),
    pytest.param(nn.Conv1d(4, 6, 3), {"weight": (1, 2), "bias": ONE_DIM}, id="Conv1d"),
    pytest.param(nn.Conv2d(4, 6, 3, bias=False), {"weight": (1, 2, 3)}, id="Conv2d"),
    pytest.param(nn.Conv3d(4, 6, 3, bias=False), {"weight": (1, 2, 3, 4)}, id="Conv3d"),
    pytest.param(nn.Conv2d(4, 6, 3, groups=2, bias=False), {"weight": (1, 2, 3)}, id="Conv2d, groups"),
    pytest.param(nn.Conv2d(4, 4, 3, groups=4, bias=False), {"weight": (1, 2, 3)}, id="Conv2d, depthwise"),
    pytest.param(nn.Conv2d(4, 4, 1, groups=4, bias=False), {"weight": FAN_IN_1}, id="Conv2d, depthwise 1x1"),
    pytest.param(nn.ConvTranspose1d(4, 6, 3), {"weight": (0, 2), "bias": ONE_DIM}, id="ConvTranspose1d"),
    pytest.param(nn.ConvTranspose2d(4, 6, 3, bias=False), {"weight": (0, 2, 3)}, id="ConvTranspose2d"),
    pytest.param(nn.ConvTranspose3d(4, 6, 3, bias=False), {"weight": (0, 2, 3, 4)}, id="ConvTranspose3d"),
    pytest.param(
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), {"weight": ((0, 2, 3), 2)}, id="ConvTranspose2d, groups"
    ),
    pytest.param(
        nn.ConvTranspose1d(4, 4, 3, groups=4, bias=False), {"weight": ((0, 2), 4)}, id="ConvTranspose1d, depthwise"
    ),
    pytest.param(nn.ConvTranspose2d(1, 6, 1, bias=False), {"weight": FAN_IN_1}, id="ConvTranspose2d, fan-in 1"),
    pytest.param(nn.ConvTranspose2d(1, 6, 3, bias=False), {"weight": (0, 2, 3)}, id="ConvTranspose2d, one input"),
    pytest.param(
        nn.RNN(4, 5),
        {"weight_ih_l0": (1,), "weight_hh_l0": (1,), "bias_ih_l0": ONE_DIM, "bias_hh_l0": ONE_DIM},
        id="RNN",
    ),
    pytest.param(
        nn.GRU(4, 5, num_layers=2, bidirectional=True, bias=False),
        {f"weight_{kind}_l{layer}{way}": (1,) for layer in (0, 1) for way in ("", "_reverse") for kind in ("ih", "hh")},
        id="GRU, two layers, both ways",
    ),
    pytest.param(
        nn.LSTM(4, 5, proj_size=3, bias=False),
        {"weight_ih_l0": (1,), "weight_hh_l0": (1,), "weight_hr_l0": (1,)},
        id="LSTM with projection",
    ),
    *[
        pytest.param(cell(4, 5, bias=False), {"weight_ih": (1,), "weight_hh": (1,)}, id=cell.__name__)
        for cell in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
    ],
    pytest.param(
        nn.MultiheadAttention(4, 2),
        {"in_proj_weight": (1,), "in_proj_bias": ONE_DIM, "out_proj.weight": (1,), "out_proj.bias": ONE_DIM},
        id="MultiheadAttention",
    ),
    pytest.param(
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False, add_bias_kv=True),
        {
            "q_proj_weight": (1,),
            "k_proj_weight": (1,),
            "v_proj_weight": (1,),
            "bias_k": NOT_A_SET,
            "bias_v": NOT_A_SET,
            "out_proj.weight": (1,),
        },
        id="MultiheadAttention, separate projections, bias_k",
    ),
    pytest.param(nn.Embedding(7, 4), {"weight": (1,)}, id="Embedding"),
    pytest.param(nn.Embedding(1, 4), {"weight": (1,)}, id="Embedding of one"),
    pytest.param(nn.EmbeddingBag(7, 4), {"weight": (1,)}, id="EmbeddingBag"),
    *[
        pytest.param(norm, {"weight": NORM, "bias": NORM}, id=type(norm).__name__)
        for norm in (
            nn.BatchNorm1d(4),
            nn.BatchNorm2d(4),
            nn.BatchNorm3d(4),
            nn.SyncBatchNorm(4),
            nn.InstanceNorm1d(4, affine=True),
            nn.InstanceNorm2d(4, affine=True),
            nn.InstanceNorm3d(4, affine=True),
            nn.GroupNorm(2, 4),
            nn.LayerNorm((3, 4, 5)),
        )
    ],
    *([pytest.param(nn.RMSNorm((3, 4)), {"weight": NORM}, id="RMSNorm")] if hasattr(nn, "RMSNorm") else []),  # 2.4
    pytest.param(nn.PReLU(5), {"weight": ONE_DIM}, id="PReLU"),
    pytest.param(
        nn.AdaptiveLogSoftmaxWithLoss(8, 10, [4]),
        {"head.weight": (1,), "tail.0.0.weight": (1,), "tail.0.1.weight": (1,)},
        id="AdaptiveLogSoftmaxWithLoss",
    ),
]


@pytest.mark.parametrize(("module", "expected"), TORCH_LAYERS)
def test_torch_layers(module, expected):
    assert judged(module) == expected
    assert "assumed" not in sources(module)


@pytest.mark.parametrize(("module", "expected"), TORCH_LAYERS)
def test_a_subclass_is_what_its_base_is(module, expected):
    """Recognised by any of its bases: a user's own Linear is a Linear."""
    module.__class__ = type("Mine", (type(module),), {"__module__": "my.package"})
    assert judged(module) == expected
    assert "assumed" not in sources(module)


class Odd(nn.Module):
    """Parameters directly on a module of no known class."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, 16, 8))
        self.scale = nn.Parameter(torch.zeros(4, 1, 1))
        self.vector = nn.Parameter(torch.zeros(4))
        self.scalar = nn.Parameter(torch.zeros(()))
        self.matrix = nn.Parameter(torch.zeros(4, 8))
        self.empty = nn.Parameter(torch.zeros(4, 0))
        self.listed = nn.ParameterList([torch.zeros(3, 2), torch.zeros(5)])
        self.keyed = nn.ParameterDict({"a": torch.zeros(3, 2, 2), "b": torch.zeros(1, 2)})


def test_any_other_module():
    assert judged(Odd()) == {
        "cls_token": FIRST_IS_1,
        "positions": FIRST_IS_1,
        "scale": FAN_IN_1,
        "vector": ONE_DIM,
        "scalar": ONE_DIM,
        "matrix": (1,),
        "empty": "empty",
        "listed.0": (1,),
        "listed.1": ONE_DIM,
        "keyed.a": (1, 2),
        "keyed.b": FIRST_IS_1,
    }
    assert sources(Odd()) == {"assumed"}


def test_biases_of_several_dims():
    assert judged(named("my.Experts", bias=(3, 4), up_bias=(3, 4), bias_u=(3, 4), biased=(3, 4))) == {
        "bias": "bias",
        "up_bias": "bias",
        "bias_u": "bias",
        "biased": (1,),
    }


class TestParametrizations:
    """The originals stand for the parametrized module's own parameter."""

    LAYERS = (
        pytest.param(lambda: nn.Linear(4, 3, bias=False), (1,), id="Linear"),
        pytest.param(lambda: nn.Conv2d(4, 6, 3, bias=False), (1, 2, 3), id="Conv2d"),
        pytest.param(lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), ((0, 2, 3), 2), id="ConvTranspose2d"),
    )

    @pytest.mark.parametrize(("make", "dims"), LAYERS)
    @pytest.mark.parametrize("dim", [0, 1, None])
    def test_weight_norm(self, make, dims, dim):
        module = parametrizations.weight_norm(make(), dim=dim)
        expected = ONE_DIM if dim is None else MAGNITUDE
        assert judged(module) == {
            "parametrizations.weight.original0": expected,
            "parametrizations.weight.original1": dims,
        }
        assert sources(module) == {type(make()).__name__}

    @pytest.mark.parametrize(("make", "dims"), LAYERS)
    @pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.orthogonal])
    def test_of_the_same_shape(self, make, dims, wrap):
        module = wrap(make())
        assert judged(module) == {"parametrizations.weight.original": dims}
        assert sources(module) == {type(make()).__name__}

    @pytest.mark.parametrize(("make", "dims"), LAYERS)
    @pytest.mark.parametrize("dim", [0, 1])
    def test_deprecated_weight_norm(self, make, dims, dim):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = nn.utils.weight_norm(make(), dim=dim)
        assert judged(module) == {"weight_g": MAGNITUDE, "weight_v": dims}

    def test_deprecated_weight_norm_of_an_lstm(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = nn.utils.weight_norm(nn.LSTM(3, 4, bias=False), "weight_hh_l0")
        assert judged(module) == {"weight_ih_l0": (1,), "weight_hh_l0_g": MAGNITUDE, "weight_hh_l0_v": (1,)}

    @pytest.mark.parametrize(("make", "dims"), LAYERS)
    def test_deprecated_spectral_norm(self, make, dims):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = nn.utils.spectral_norm(make())
        assert judged(module) == {"weight_orig": dims}

    @pytest.mark.parametrize(("make", "dims"), LAYERS)
    def test_pruning(self, make, dims):
        from torch.nn.utils import prune

        assert judged(prune.random_unstructured(make(), "weight", 0.5)) == {"weight_orig": dims}

    def test_names_that_only_look_like_it(self):
        """`_v` and `_g` are common ends of names."""
        module = nn.Module()
        module.proj_v = nn.Parameter(torch.zeros(3, 4))
        module.proj_g = nn.Parameter(torch.zeros(3, 4))
        assert judged(module) == {"proj_v": (1,), "proj_g": (1,)}

    def test_an_original_of_another_rank_than_the_layer_expects(self):
        """A factor of a transposed convolution is no transposed convolution: nothing breaks, it is assumed."""

        class Product(nn.Module):
            def forward(self, a, b):
                return (a @ b).reshape(4, 3, 1, 1)

            def right_inverse(self, weight):
                return torch.ones(5, 2), torch.ones(2, 12)

        module = nn.ConvTranspose2d(4, 6, 1, groups=2, bias=False)
        nn.utils.parametrize.register_parametrization(module, "weight", Product(), unsafe=True)
        assert judged(module)["parametrizations.weight.original0"] == (1,)
        assert sources(module) >= {"assumed"}

    def test_on_a_bias_and_a_norm(self):
        module = nn.LayerNorm((3, 4))
        nn.utils.parametrize.register_parametrization(module, "weight", nn.Identity())
        assert judged(module)["parametrizations.weight.original"] == NORM


def named(qualified: str, **parameters: tuple[int, ...]) -> nn.Module:
    """A module of a class that carries this qualified name, with parameters of these shapes."""
    path, name = qualified.rsplit(".", 1)
    module = type(name, (nn.Module,), {"__module__": path})()
    for attribute, shape in parameters.items():
        setattr(module, attribute, nn.Parameter(torch.zeros(shape)))
    return module


class TestTorchGeometric:
    """Not installed here: by classes that carry the qualified names, with that package's shapes."""

    def test_rgcn(self):
        module = named("torch_geometric.nn.conv.rgcn_conv.RGCNConv", weight=(3, 4, 5), root=(4, 5), bias=(5,))
        assert judged(module) == {"weight": (1,), "root": (0,), "bias": ONE_DIM}
        assert sources(module) == {"RGCNConv"}

    def test_rgcn_of_bases(self):
        module = named("torch_geometric.nn.conv.rgcn_conv.RGCNConv", weight=(2, 4, 5), comp=(3, 2), root=(4, 5))
        assert judged(module) == {"weight": (1,), "comp": NOT_A_SET, "root": (0,)}

    def test_rgcn_of_blocks(self):
        module = named("torch_geometric.nn.conv.rgcn_conv.RGCNConv", weight=(3, 2, 4, 5))
        assert judged(module) == {"weight": (2,)}

    def test_fast_rgcn_by_its_base(self):
        base = type("RGCNConv", (nn.Module,), {"__module__": "torch_geometric.nn.conv.rgcn_conv"})
        module = type("FastRGCNConv", (base,), {"__module__": "torch_geometric.nn.conv.rgcn_conv"})()
        module.weight = nn.Parameter(torch.zeros(3, 4, 5))
        assert judged(module) == {"weight": (1,)}

    def test_hetero_linear(self):
        module = named("torch_geometric.nn.dense.linear.HeteroLinear", weight=(3, 4, 5), bias=(3, 5))
        assert judged(module) == {"weight": (1,), "bias": "bias"}


class TestTransformers:
    """With the classes of the installed package, small ones from their configs."""

    @staticmethod
    def experts(path: str, name: str, config: str, **sizes: int) -> nn.Module:
        pytest.importorskip("transformers")
        from importlib import import_module

        module = import_module(f"transformers.models.{path}.modeling_{path}")
        configs = import_module(f"transformers.models.{path}.configuration_{path}")
        return getattr(module, name)(getattr(configs, config)(**sizes))

    def test_conv1d_of_gpt2(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=6)
        found = judged(transformers.GPT2LMHeadModel(config))
        assert found["transformer.h.0.attn.c_attn.weight"] == (0,)
        assert found["transformer.h.0.mlp.c_fc.weight"] == (0,)
        assert found["transformer.h.0.mlp.c_fc.bias"] == ONE_DIM
        assert found["transformer.h.0.ln_1.weight"] == NORM
        assert found["transformer.wte.weight"] == (1,)  # tied to lm_head.weight

    @pytest.mark.parametrize(
        ("path", "name", "config", "sizes", "dim"),
        [
            ("mixtral", "MixtralExperts", "MixtralConfig", {"num_local_experts": 3}, 2),
            ("gpt_oss", "GptOssExperts", "GptOssConfig", {"num_local_experts": 3}, 1),
            ("llama4", "Llama4TextExperts", "Llama4TextConfig", {"num_local_experts": 3}, 1),
            ("qwen3_moe", "Qwen3MoeExperts", "Qwen3MoeConfig", {"num_experts": 3, "moe_intermediate_size": 6}, 2),
            ("aria", "AriaExperts", "AriaTextConfig", {"moe_num_experts": 3, "num_attention_heads": 2}, 1),
        ],
    )
    def test_stacked_experts(self, path, name, config, sizes, dim):
        module = self.experts(path, name, config, hidden_size=8, intermediate_size=6, **sizes)
        weights = {key: value for key, value in judged(module).items() if not key.endswith("_bias")}
        assert weights == {"gate_up_proj": (dim,), "down_proj": (dim,)}
        # The input of gate_up_proj is the hidden size, 8; the input of down_proj the intermediate size, 6.
        assert module.gate_up_proj.shape[dim] == 8
        assert module.down_proj.shape[dim] == 6
        assert sources(module) == {name}

    def test_biases_of_experts(self):
        module = self.experts(
            "gpt_oss", "GptOssExperts", "GptOssConfig", num_local_experts=3, hidden_size=8, intermediate_size=6
        )
        assert module.gate_up_proj_bias.dim() == 2
        assert {judged(module)[f"{name}_bias"] for name in ("gate_up_proj", "down_proj")} == {"bias"}

    def test_every_class_of_experts_takes_its_inputs(self):
        """All stacked experts of the installed transformers: fan-in dims against the shapes alone."""
        pytest.importorskip("transformers")
        checked = 0
        for module in all_experts():
            found = judged(module)
            hidden, inner = set(module.gate_up_proj.shape[1:]), set(module.down_proj.shape[1:])
            (shared,) = hidden & inner  # the hidden size: what goes in is what comes out
            (between,) = inner - {shared}
            for name, size in (("gate_up_proj", shared), ("down_proj", between)):
                (dim,) = found[name]
                assert getattr(module, name).shape[dim] == size, (type(module), name)
            checked += 1
        assert checked >= 20

    def test_parallel_experts(self):
        module = named("transformers.models.jetmoe.modeling_jetmoe.JetMoeParallelExperts", weight=(3, 5, 4))
        assert judged(module) == {"weight": (2,)}

    def test_layouts_that_changed_with_the_version(self):
        """Qwen3-VL's experts were (experts, in, out) in transformers 4.57 and are (experts, out, in) in 5."""
        name = "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe.Qwen3VLMoeTextExperts"
        assert judged(named(name, gate_up_proj=(3, 8, 12), down_proj=(3, 6, 8))) == {
            "gate_up_proj": (1,),
            "down_proj": (1,),
        }
        assert judged(named(name, gate_up_proj=(3, 12, 8), down_proj=(3, 8, 6))) == {
            "gate_up_proj": (2,),
            "down_proj": (2,),
        }

    @pytest.mark.parametrize("name", ["AriaGroupedExpertsGemm", "AriaGroupedExpertsGEMM"])
    def test_aria_of_transformers_4(self, name):
        assert judged(named(f"transformers.models.aria.modeling_aria.{name}", weight=(3, 4, 5))) == {"weight": (1,)}

    def test_experts_of_an_unexpected_rank_are_assumed(self):
        module = named("transformers.models.new.modeling_new.NewExperts", gate_proj=(3, 4))
        assert judged(module) == {"gate_proj": (1,)}
        assert sources(module) == {"assumed"}

    def test_recognising_imports_nothing(self, monkeypatch):
        for package in ("transformers", "torch_geometric"):
            monkeypatch.setitem(sys.modules, package, None)  # importing it would raise ImportError
        module = named("transformers.pytorch_utils.Conv1D", weight=(3, 4), bias=(4,))
        assert judged(module) == {"weight": (0,), "bias": ONE_DIM}
        assert sources(module) == {"Conv1D"}


def all_experts() -> Iterator[nn.Module]:
    """Small stacked experts of every class in the installed transformers that a config alone can make."""
    import importlib
    import inspect
    import pkgutil

    import transformers.models as models

    sizes = {"hidden_size": 8, "intermediate_size": 6, "moe_intermediate_size": 6, "expert_hidden_size": 6}
    counts = ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"]
    for path in sorted(info.name for info in pkgutil.iter_modules(models.__path__)):
        try:
            source = importlib.util.find_spec(f"transformers.models.{path}.modeling_{path}")
        except ModuleNotFoundError:
            continue
        if source is None or "Experts(nn.Module)" not in Path(source.origin).read_text(encoding="utf-8"):
            continue
        modeling = importlib.import_module(source.name)
        for name, cls in inspect.getmembers(modeling, inspect.isclass):
            if not name.endswith("Experts") or cls.__module__ != source.name or not issubclass(cls, nn.Module):
                continue
            config = _AnySizes(sizes, counts)
            try:
                module = cls(config)
            except (AttributeError, TypeError, KeyError):
                continue
            if {"gate_up_proj", "down_proj"} <= set(module._parameters):
                yield module


class _AnySizes:
    """Stands for the configs of some eighty models, which give the same sizes different names."""

    def __init__(self, sizes: dict[str, int], counts: list[str]) -> None:
        self.__dict__.update(sizes, **dict.fromkeys(counts, 3))
        self.hidden_act = self.mlp_hidden_act = "silu"

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class TestScripted:
    """Scripting hides the class of a module."""

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
    def test_layouts_are_those_of_the_layers(self):
        module = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.LayerNorm((3, 4)), nn.Linear(4, 3))
        scripted = torch.jit.script(module)
        assert judged(scripted) == judged(module)
        assert "assumed" not in sources(scripted)
        assert len(select(scripted, exclude=nn.Linear).centralized) == 1

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
    def test_a_class_that_cannot_be_found_is_assumed(self):
        class Local(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(3, 4))

            def forward(self, x):
                return x @ self.weight

        assert sources(torch.jit.script(Local())) == {"assumed"}


class TestFindLayout:
    def test_of_a_whole_shape_that_is_not_at_hand(self):
        """Judged by the shape of the whole parameter, where a strategy holds a shard of it."""
        layer = nn.Linear(4, 3)
        layer.weight = nn.Parameter(torch.zeros(5))  # a flat shard
        assert find_layout(layer, "weight", (3, 4)) == Layout((1,), source="Linear")
        assert find_layout(layer, "weight", (3, 1)) == LeftAlone(FAN_IN_1)

    def test_a_leaving_alone_by_assumption_says_so(self):
        assert find_layout(nn.Module(), "weight", (3, 1)).assumed
        assert find_layout(nn.Module(), "weight", (1, 3)).assumed
        assert not find_layout(nn.Linear(1, 3), "weight", (3, 1)).assumed
