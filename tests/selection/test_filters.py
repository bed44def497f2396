"""What may be passed to pick parameters, and the errors for what picks none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gc import select
from lightning_gc.selection.filters import parse_fan_in_dims, parse_filters


def model() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "embedding": nn.Embedding(7, 4),
            "encoder": nn.ModuleList(
                [nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2), "norm": nn.LayerNorm(4)}) for _ in range(2)]
            ),
            "head": nn.Linear(4, 7),
        }
    )


class TestParseFilters:
    @pytest.mark.parametrize(
        ("value", "parsed"),
        [
            ((), ()),
            ([], ()),
            ("head", ("head",)),
            (nn.Linear, (nn.Linear,)),
            (["head", nn.Linear], ("head", nn.Linear)),
            (("head",), ("head",)),
            ((entry for entry in ("a", "b")), ("a", "b")),
            ({"a": 1}.keys(), ("a",)),
        ],
    )
    def test_allowed(self, value, parsed):
        assert parse_filters(value, "include") == parsed

    @pytest.mark.parametrize(
        "value", [None, 3, [3], ["head", None], int, [int], b"head", [["head"]], torch.nn, nn.Linear.forward]
    )
    def test_wrong_types(self, value):
        with pytest.raises(TypeError, match=r"exclude=.* holds .*Allowed are torch\.nn\.Module classes and strings"):
            parse_filters(value, "exclude")

    @pytest.mark.parametrize("value", [nn.Linear(2, 2), [nn.Linear(2, 2)], ["head", nn.Linear(2, 2)]])
    def test_a_module_instead_of_its_class(self, value):
        with pytest.raises(TypeError, match=r"holds a module, a Linear. Pass its class, or its name"):
            parse_filters(value, "include")

    @pytest.mark.parametrize("value", [nn.Sequential(), nn.Sequential(nn.Linear(2, 2)), nn.ModuleList()])
    def test_a_module_that_can_be_iterated_over(self, value):
        """An empty one must not pass as an empty filter, nor a full one as its children."""
        with pytest.raises(TypeError, match=f"holds a module, a {type(value).__name__}"):
            parse_filters(value, "include")

    def test_a_mapping(self):
        with pytest.raises(TypeError, match=r"include=\{'head': 1\} is a mapping\. Pass a list of its keys"):
            parse_filters({"head": 1}, "include")

    @pytest.mark.parametrize("value", ["", [""], ["head", ""]])
    def test_empty_strings(self, value):
        with pytest.raises(ValueError, match=r"include=.*empty string"):
            parse_filters(value, "include")


class TestParseFanInDims:
    def test_allowed(self):
        given = {"a": 1, "b.*": [0, 2], "c": (-1,), "d": range(2)}
        assert parse_fan_in_dims(given) == (("a", 1), ("b.*", (0, 2)), ("c", (-1,)), ("d", (0, 1)))

    @pytest.mark.parametrize("value", [None, 1, "head", [("head", 1)], {"a"}])
    def test_not_a_mapping(self, value):
        with pytest.raises(TypeError, match="must map name globs to dims"):
            parse_fan_in_dims(value)

    @pytest.mark.parametrize(
        "value",
        [
            {"a": "1"},
            {"a": None},
            {"a": 1.0},
            {"a": True},
            {"a": []},
            {"a": [1.0]},
            {"a": [True]},
            {"a": ["1"]},
            {"a": {1}},
            {1: 1},
            {nn.Linear: 1},
        ],
    )
    def test_wrong_types(self, value):
        with pytest.raises(
            TypeError, match=r"fan_in_dims\[.*allowed are an integer or a non-empty sequence of integers"
        ):
            parse_fan_in_dims(value)


class TestWhatMatchesNothing:
    @pytest.mark.parametrize("argument", ["include", "exclude"])
    def test_a_name(self, argument):
        with pytest.raises(ValueError, match=f"{argument}: the name 'haed' matches no parameter.*'head'"):
            select(model(), **{argument: ["embedding", "haed"]})

    def test_fan_in_dims(self):
        with pytest.raises(ValueError, match=r"fan_in_dims: the name 'head\.wight' matches no.*'head\.weight'"):
            select(model(), fan_in_dims={"head.wight": 1})

    def test_a_name_without_any_close_one(self):
        with pytest.raises(ValueError, match=r"'zzzzzzzzzzzz'.*closest names are: 'embedding.weight', 'embedding'"):
            select(model(), exclude="zzzzzzzzzzzz")

    def test_a_name_of_a_module_without_parameters(self):
        with pytest.raises(ValueError, match="the name '1' matches no parameter"):
            select(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), exclude="1")

    def test_case_matters(self):
        with pytest.raises(ValueError, match=r"the name 'Head'.*'head'"):
            select(model(), exclude="Head")

    @pytest.mark.parametrize("include", [nn.Conv2d, [nn.Conv2d, nn.LSTM]])
    def test_included_classes_alone(self, include):
        with pytest.raises(
            ValueError,
            match=r"include: .*Conv2d.* no parameter.*Parameters stand in modules of: Embedding, LayerNorm, ",
        ):
            select(model(), include=include)

    def test_included_classes_beside_one_that_matches(self):
        found = select(model(), include=[nn.Conv1d, nn.Embedding, nn.Conv2d])
        assert [e.name for e in found.centralized] == ["embedding.weight"]
        assert found.summary().endswith("; no parameter stands in: Conv1d, Conv2d (include)")

    def test_an_included_class_beside_a_name_that_matches(self):
        assert [e.name for e in select(model(), include=[nn.LSTM, "head"]).centralized] == ["head.weight"]

    def test_an_excluded_class_is_named_and_no_more(self):
        """A class was imported, so it is no typo: one config serves models with and without it."""
        found = select(model(), exclude=[nn.Conv2d, nn.Embedding])
        assert "embedding.weight" not in [e.name for e in found.centralized]
        assert found.summary().endswith("; no parameter stands in: Conv2d (exclude)")
        assert "stands in" not in select(model(), exclude=nn.Embedding).summary()

    def test_a_name_beside_a_class_is_still_an_error(self):
        with pytest.raises(ValueError, match=r"include: the name 'haed' matches no parameter"):
            select(model(), include=[nn.Embedding, "haed"])

    def test_a_model_without_parameters(self):
        with pytest.raises(ValueError, match=r"The model has no parameters"):
            select(nn.ReLU(), exclude="head")

    @pytest.mark.parametrize("argument", ["include", "exclude"])
    def test_a_string_that_was_split_into_characters(self, argument):
        with pytest.raises(ValueError, match=r"Was the string 'head' split into characters\? Pass \['head'\]"):
            select(model(), **{argument: list("head")})

    def test_one_short_name_was_not_split(self):
        with pytest.raises(ValueError, match="'x'") as error:
            select(model(), exclude=["x"])
        assert "split" not in str(error.value)

    @pytest.mark.parametrize(
        "path",
        ["torch.nn.Embedding", "torch.nn.Conv2d", "nn.Embedding", "Embedding", "torch.nn.modules.sparse.Embedding"],
    )
    def test_the_path_of_a_class(self, path):
        with pytest.raises(ValueError, match=f"To filter by class, pass the class {path} itself, not a string"):
            select(model(), exclude=path)

    @pytest.mark.parametrize(
        ("name", "meant"), [("Conv2D", "Conv2d"), ("linear", "Linear"), ("BatchNorm", "BatchNorm2d")]
    )
    def test_the_name_of_a_class_misspelt(self, name, meant):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
        with pytest.raises(ValueError, match=f"Was the class {meant} meant"):
            select(net, exclude=name)

    def test_the_class_of_a_config_is_its_import_path(self):
        with pytest.raises(ValueError, match=r"in a config: its import path, such as torch\.nn\.Linear"):
            select(model(), exclude="nn.Embedding")

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (nn.Linear(999, 2).weight, r"^exclude holds a tensor of shape \(2, 999\)\. Pass the name"),
            (
                nn.Sequential(*(nn.Linear(2, 2) for _ in range(99))),
                r"^exclude holds a module, a Sequential\. Pass its class",
            ),
        ],
    )
    def test_a_tensor_or_a_module_is_named_and_not_printed(self, value, said):
        with pytest.raises(TypeError, match=said) as error:
            select(model(), exclude=value)
        assert len(str(error.value)) < 200

    def test_the_path_of_any_class_in_the_model(self):
        class Mine(nn.Linear):
            pass

        with pytest.raises(ValueError, match=r"pass the class my.package.Mine itself"):
            select(nn.Sequential(Mine(2, 2)), exclude="my.package.Mine")

    @pytest.mark.parametrize(
        ("path", "closest"),
        [
            ("torch.nn.Conv2D", "torch.nn.Conv2d"),
            ("torch.nn.Embeding", "torch.nn.Embedding"),
            ("torch.nn.modules.rnn.Lstm", "torch.nn.modules.rnn.LSTM"),
            ("tests.models.Classifer", "tests.models.Classifier"),
        ],
    )
    def test_the_path_of_a_class_that_cannot_be_imported(self, path, closest):
        """From YAML a class that can be imported arrives as a class: "pass the class itself" would be no help."""
        import tests.models  # noqa: F401

        with pytest.raises(
            ValueError, match=f"{path} cannot be imported. The closest class there is {closest}."
        ) as error:
            select(model(), exclude=path)
        assert "itself" not in str(error.value)

    def test_the_path_of_a_class_without_any_close_one(self):
        with pytest.raises(ValueError, match=r"torch\.nn\.Zzzzzzz cannot be imported\. The closest names are"):
            select(model(), exclude="torch.nn.Zzzzzzz")

    @pytest.mark.parametrize(
        ("glob", "closest"),
        [
            ("encodr.*", "encoder.*"),
            ("*.attnn", "*.attn"),
            ("encoder.*.atn.in_proj_weigt", "encoder.*.attn.in_proj_weight"),
            ("encoder.[01].nrom", "encoder.[01].norm"),
        ],
    )
    def test_the_closest_glob_comes_first(self, glob, closest):
        with pytest.raises(ValueError, match=r"closest names are") as error:
            select(model(), exclude=glob)
        assert f"The closest names are: {closest!r}" in str(error.value)
        assert select(model(), exclude=closest)
