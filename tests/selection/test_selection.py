"""Which parameters are centralized, over which dims, and why the others are not."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from lightning_gc import Selection, select
from lightning_gc.selection.layouts import Layout
from lightning_gc.selection.selection import FROZEN, build_selection, foreign_entry
from tests.selection.test_filters import model
from tests.selection.test_layouts import named


def taken(selection: Selection) -> list[str]:
    return [entry.name for entry in selection.centralized]


def reasons(selection: Selection) -> dict[str, str]:
    return {entry.name: entry.reason for entry in selection if not entry.centralized}


EVERYTHING = [
    "embedding.weight",
    "encoder.0.attn.in_proj_weight",
    "encoder.0.attn.out_proj.weight",
    "encoder.1.attn.in_proj_weight",
    "encoder.1.attn.out_proj.weight",
    "head.weight",
]


class TestFilters:
    def test_everything_eligible_by_default(self):
        assert taken(select(model())) == EVERYTHING

    @pytest.mark.parametrize(
        ("include", "expected"),
        [
            ("head", ["head.weight"]),
            ("head.*", ["head.weight"]),
            ("head.weight", ["head.weight"]),
            (["head", nn.Embedding], ["embedding.weight", "head.weight"]),
            ("encoder.*.attn", EVERYTHING[1:5]),
            ("encoder.0", EVERYTHING[1:3]),
            (nn.MultiheadAttention, EVERYTHING[1:5]),
            (nn.Linear, [name for name in EVERYTHING if "out_proj" in name or "head" in name]),
            (nn.ModuleDict, EVERYTHING),
            ("*", EVERYTHING),
            ("*.bias", []),
            (nn.LayerNorm, []),
        ],
    )
    def test_include(self, include, expected):
        assert taken(select(model(), include=include)) == expected

    @pytest.mark.parametrize(
        ("exclude", "left_out"),
        [
            ("head", ["head.weight"]),
            (nn.Embedding, ["embedding.weight"]),
            (["encoder", "head"], EVERYTHING[1:]),
            (nn.Module, EVERYTHING),
            ("*.in_proj_weight", ["encoder.0.attn.in_proj_weight", "encoder.1.attn.in_proj_weight"]),
        ],
    )
    def test_exclude(self, exclude, left_out):
        assert taken(select(model(), exclude=exclude)) == [name for name in EVERYTHING if name not in left_out]

    def test_exclude_wins(self):
        assert taken(select(model(), include=["encoder", "head"], exclude=["encoder.0", nn.Linear])) == [
            "encoder.1.attn.in_proj_weight"
        ]

    def test_reasons(self):
        found = reasons(select(model(), include=["encoder", "head"], exclude=["encoder.0", nn.Linear]))
        assert found["embedding.weight"] == "not included"
        assert found["encoder.0.attn.in_proj_weight"] == "excluded by 'encoder.0'"
        assert found["head.weight"] == "excluded by Linear"
        assert found["head.bias"] == "fewer than 2 dims"  # what it is comes before what was asked for

    def test_a_user_s_own_class_takes_what_stands_in_it_at_any_depth(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.deep = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))

        module = nn.Sequential(Block(), nn.Linear(2, 2))
        assert taken(select(module, include=Block)) == ["0.deep.0.0.weight"]


class TestTiedWeights:
    @pytest.fixture
    def tied(self):
        module = model()
        module["head"].weight = module["embedding"].weight
        return module

    def test_one_entry_under_the_first_name(self, tied):
        assert taken(select(tied)).count("embedding.weight") == 1
        assert "head.weight" not in [entry.name for entry in select(tied)]

    @pytest.mark.parametrize("entry", ["embedding", "head", "head.weight", nn.Embedding])
    def test_matches_under_any_of_its_names(self, tied, entry):
        assert "embedding.weight" not in taken(select(tied, exclude=entry))
        assert "embedding.weight" in taken(select(tied, include=entry))

    def test_fan_in_dims_under_any_of_its_names(self, tied):
        (entry,) = [e for e in select(tied, fan_in_dims={"head.weight": 0}) if e.name == "embedding.weight"]
        assert entry.layout == Layout((0,), source="fan_in_dims")

    @pytest.mark.parametrize("first", [True, False])
    def test_is_what_the_known_layer_says(self, first):
        """However the module that has no known layout says it: as an assumption, or as a reason to leave it alone."""
        for outputs in (1, 5):

            class Model(nn.Module):
                def __init__(self, outputs=outputs):
                    super().__init__()
                    head = nn.Linear(4, outputs, bias=False)
                    if first:
                        self.same = head.weight
                    self.head = head
                    if not first:
                        self.last = nn.ParameterList([head.weight])

            (entry,) = select(Model())
            assert entry.layout == Layout((1,), source="Linear")

    def test_left_alone_by_an_assumed_fan_in_of_one(self):
        module = nn.Module()
        module.layer = named("transformers.pytorch_utils.Conv1D", weight=(4, 1))
        module.same = module.layer.weight  # by itself: all but the first, a fan-in of 1
        (entry,) = select(module)
        assert entry.layout == Layout((0,), source="Conv1D")


class TestFanInDims:
    def test_overrides_everything(self):
        module = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.LayerNorm((3, 4)))
        selection = select(module, fan_in_dims={"0.weight": [1, 2, 3], "1.weight": -1, "1.bias": (0, 1), "0.bias": 0})
        assert {e.name: e.layout.dims for e in selection.centralized} == {
            "0.weight": (1, 2, 3),
            "0.bias": (0,),
            "1.weight": (1,),
            "1.bias": (0, 1),
        }
        assert {e.layout.source for e in selection.centralized} == {"fan_in_dims"}
        assert selection.assumed == []

    def test_of_several_globs_the_first_decides(self):
        for dims, expected in (({"0.weight": 0, "*.weight": 1}, (0,)), ({"*.weight": 1, "0.weight": 0}, (1,))):
            (entry,) = select(nn.Sequential(nn.Linear(3, 2, bias=False)), fan_in_dims=dims)
            assert entry.layout.dims == expected

    def test_out_of_range(self):
        with pytest.raises(
            ValueError, match=r"fan_in_dims\['\*\.weight'\] for '0\.weight': dims=2 are out of range.*narrow"
        ):
            select(nn.Sequential(nn.Linear(3, 2)), fan_in_dims={"*.weight": 2})

    def test_a_glob_that_takes_a_module_skips_what_is_never_eligible(self):
        module = nn.ModuleDict({"head": nn.Sequential(nn.Linear(3, 2), nn.LayerNorm((3, 4))), "body": nn.Linear(3, 2)})
        selection = select(module, fan_in_dims={"head": 0})
        assert {e.name: e.layout.source for e in selection.centralized} == {
            "head.0.weight": "fan_in_dims",
            "body.weight": "Linear",
        }
        assert reasons(selection)["head.0.bias"] == "fewer than 2 dims"
        assert reasons(selection)["head.1.weight"] == "normalisation layer"

    def test_a_glob_that_takes_nothing_but_what_is_never_eligible(self):
        with pytest.raises(ValueError, match=r"fan_in_dims\['1'\] takes only .*never centralized .*'1\.weight'"):
            select(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm((3, 4))), fan_in_dims={"1": 0})

    def test_a_glob_that_takes_a_module_with_dims_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"fan_in_dims\['0'\] for '0\.weight': dims=2 are out of range"):
            select(nn.Sequential(nn.Linear(3, 2)), fan_in_dims={"0": 2})

    def test_a_glob_that_takes_a_bias_by_its_name(self):
        with pytest.raises(
            ValueError, match=r"fan_in_dims\['0\.\*'\] for '0\.bias': dims=1 are out of range.*narrow the glob"
        ):
            select(nn.Sequential(nn.Linear(3, 2)), fan_in_dims={"0.*": 1})

    def test_what_is_left_alone_by_an_assumption_is_not_skipped(self):
        class Latents(nn.Module):
            def __init__(self):
                super().__init__()
                self.own = nn.Parameter(torch.zeros(1, 4))

        assert taken(select(nn.ModuleList([Latents()]), fan_in_dims={"0": 1})) == ["0.own"]

    def test_repeated(self):
        with pytest.raises(ValueError, match=r"for 'weight'.*twice"):
            select(nn.Linear(3, 2, bias=False), fan_in_dims={"weight": [1, -1]})

    def test_a_fan_in_of_one_is_left_alone_all_the_same(self):
        (entry,) = select(nn.Linear(3, 1, bias=False), fan_in_dims={"weight": 0})
        assert entry.reason == "fan-in is 1: nothing would be left"

    def test_filters_still_hold(self):
        assert taken(select(nn.Linear(3, 2), exclude="weight", fan_in_dims={"weight": 0})) == []


class TestOddParameters:
    def test_integers_are_left_alone(self):
        module = nn.Module()
        module.table = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
        assert reasons(select(module)) == {"table": "torch.int8 is not floating point or complex"}
        assert reasons(select(module, fan_in_dims={"table": 0})) == reasons(select(module))

    def test_complex_parameters_are_taken(self):
        assert taken(select(nn.Linear(3, 2, bias=False, dtype=torch.complex64))) == ["weight"]

    def test_frozen_parameters_keep_their_layout(self):
        module = nn.Linear(3, 2).requires_grad_(False)
        entry = select(module)[0]
        assert entry.layout == Layout((1,), source="Linear")
        assert entry.reason == FROZEN
        assert not entry.centralized
        module.requires_grad_(True)
        assert select(module)[0].centralized

    def test_lazy_modules(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            module = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyLinear(2), nn.LazyConvTranspose2d(3, 2))
        lazy = reasons(select(module))
        assert set(lazy.values()) == {"lazy: not initialised yet"}
        assert "lazy" in str(select(module))
        assert taken(select(module, exclude="0")) == []
        module[0](torch.zeros(1, 2, 5, 5))
        module[1](torch.zeros(1, 5))
        module[2](torch.zeros(1, 4, 5, 5))
        assert {e.name: e.layout.dims for e in select(module).centralized} == {
            "0.weight": (1, 2, 3),
            "1.weight": (1,),
            "2.weight": (0, 2, 3),
        }

    def test_a_lazy_parameter_that_is_tied_has_its_first_name(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            module = nn.ModuleDict({"body": nn.LazyLinear(2, bias=False), "head": nn.LazyLinear(2, bias=False)})
        module["head"].weight = module["body"].weight
        (entry,) = select(module)
        assert entry.name == "body.weight"

    def test_parameters_without_data(self):
        with torch.device("meta"):
            module = nn.Linear(3, 2)
        assert taken(select(module)) == ["weight"]

    def test_no_parameters(self):
        assert len(select(nn.ReLU())) == 0
        assert select(nn.ReLU()).summary().startswith("0 of 0 parameters are centralized")

    def test_whole_shapes_where_only_shards_are_held(self):
        module = nn.Linear(4, 3)
        module.weight = nn.Parameter(torch.zeros(5))
        shapes = {module.weight: torch.Size((3, 4)), module.bias: torch.Size((3,))}
        entry = build_selection(module, (), (), (), shape_of=shapes.__getitem__)[0]
        assert entry.shape == (3, 4)
        assert (entry.fan_in, entry.weight_vectors) == (4, 3)


class TestForeignEntry:
    """Parameters that an optimizer holds and the module does not."""

    def test_by_the_default_rule(self):
        entry = foreign_entry("SGD.param_0", nn.Parameter(torch.zeros(3, 4)))
        assert entry.layout == Layout((1,), source="assumed")
        assert entry.name == "SGD.param_0"

    def test_left_alone(self):
        assert foreign_entry("x", nn.Parameter(torch.zeros(1, 4))).layout is None
        assert foreign_entry("x", nn.Parameter(torch.zeros(4))).layout is None
        assert "int64" in foreign_entry("x", nn.Parameter(torch.zeros(3, 4).long(), requires_grad=False)).reason


class TestSelection:
    def test_counts(self):
        (entry,) = select(nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False))
        assert (entry.fan_in, entry.weight_vectors) == (27, 4)
        entry = select(nn.Linear(3, 2))[1]
        assert (entry.fan_in, entry.weight_vectors) == (0, 0)

    def test_is_a_sequence(self):
        selection = select(nn.Linear(3, 2))
        assert len(selection) == len(list(selection)) == 2
        assert selection[0].name == "weight"
        assert [e.name for e in selection[:1]] == ["weight"]
        assert repr(selection) == "Selection(1 of 2 parameters centralized)"

    def test_assumed(self):
        module = nn.ModuleDict({"layer": nn.Linear(3, 2), "own": nn.ParameterList([torch.zeros(3, 2)])})
        selection = select(module)
        assert [e.name for e in selection.assumed] == ["own.0"]
        assert selection.summary() == (
            "2 of 3 parameters are centralized: 5 weight vectors, 12 of 14 elements (85.7%); "
            "fan-in dims are assumed, please check: own.0"
        )

    def test_the_table(self):
        module = nn.ModuleDict(
            {
                "conv": nn.Conv2d(3, 1000, 3, bias=False),
                "up": nn.ConvTranspose2d(1000, 4, 2, groups=2),
                "norm": nn.BatchNorm2d(4),
                "own": nn.ParameterList([torch.zeros(3, 2), torch.zeros(1, 2)]),
                "head": nn.Linear(4, 5),
                "frozen": nn.Linear(4, 5, bias=False).requires_grad_(False),
            }
        )
        selection = select(module, exclude="head")
        assert selection.table(full=True).splitlines() == [
            "parameter      shape            fan-in dims            weight vectors  fan-in  centralized",
            "-------------  ---------------  ---------------------  --------------  ------  -----------------------------------------------",
            "conv.weight    (1000, 3, 3, 3)  (1, 2, 3)                       1,000      27  yes (Conv2d)",
            "up.weight      (1000, 2, 2, 2)  (0, 2, 3) in 2 groups               4   2,000  yes (ConvTranspose2d)",
            "up.bias        (4,)                                                            no: fewer than 2 dims",
            "norm.weight    (4,)                                                            no: normalisation layer",
            "norm.bias      (4,)                                                            no: normalisation layer",
            "own.0          (3, 2)           (1,)                                3       2  yes (assumed)",
            "own.1          (1, 2)                                                          no: first dim is 1: not a set of weight vectors",
            "head.weight    (5, 4)                                                          no: excluded by 'head'",
            "head.bias      (5,)                                                            no: fewer than 2 dims",
            "frozen.weight  (5, 4)           (1,)                                5       4  no: frozen: it requires no gradient",
            "3 of 10 parameters are centralized now, 1 more once they are unfrozen: 1,007 weight vectors, 35,006 of 35,065 elements (99.8%); "
            "fan-in dims are assumed, please check: own.0",
        ]
        assert str(selection) == selection.table()

    def test_the_table_of_a_deep_model_is_folded(self):
        module = nn.ModuleDict(
            {
                "embedding": nn.Embedding(100, 8),
                "layers": nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(24)),
                "head": nn.Linear(8, 5),
            }
        )
        assert str(select(module, exclude="head")).splitlines() == [
            "parameter                                 shape     fan-in dims  weight vectors  fan-in  centralized",
            "----------------------------------------  --------  -----------  --------------  ------  -------------------------------------",
            "embedding.weight                          (100, 8)  (1,)                    100       8  yes (Embedding)",
            "layers.{0..23}.self_attn.in_proj_weight   (24, 8)   (1,)                    576       8  yes (MultiheadAttention)",
            "layers.{0..23}.self_attn.out_proj.weight  (8, 8)    (1,)                    192       8  yes (NonDynamicallyQuantizableLinear)",
            "layers.{0..23}.linear1.weight             (16, 8)   (1,)                    384       8  yes (Linear)",
            "layers.{0..23}.linear2.weight             (8, 16)   (1,)                    192      16  yes (Linear)",
            "left alone",
            "  97  fewer than 2 dims: layers.{0..23}.self_attn.in_proj_bias, layers.{0..23}.self_attn.out_proj.bias, ...",
            "  96  normalisation layer: layers.{0..23}.norm1.weight, layers.{0..23}.norm1.bias, ...",
            "   1  excluded by 'head': head.weight",
            "selection.table(full=True) has a row for each parameter.",
            "97 of 291 parameters are centralized: 1,444 weight vectors, 13,088 of 15,245 elements (85.9%)",
        ]

    def test_a_notebook_shows_html(self):
        shown = select(nn.Sequential(*(nn.Linear(3, 2) for _ in range(3)), nn.LayerNorm(2)))._repr_html_()
        tree = ElementTree.fromstring(f"<div>{shown}</div>")  # it is well formed
        folded, left_alone, full = (
            [["".join(c.itertext()) for c in row] for row in t.iter("tr")] for t in tree.iter("table")
        )
        assert folded[1:] == [["{0..2}.weight", "(2, 3)", "(1,)", "6", "3", "yes (Linear)"]]
        assert left_alone[1:] == [
            ["3", "fewer than 2 dims", "{0..2}.bias"],
            ["2", "normalisation layer", "3.weight, 3.bias"],
        ]
        assert len(full) == 1 + 8
        assert tree.find("p").text.startswith("3 of 8 parameters are centralized")
        assert tree.find("details/table") is not None

    def test_not_a_module(self):
        with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, got list"):
            select([nn.Linear(2, 2)])
