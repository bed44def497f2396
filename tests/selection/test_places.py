"""Where parameters stand: names, owners, what is around them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

from lightning_gc import select
from lightning_gc.selection.places import class_of, clean_name, places


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))


def names(module: nn.Module) -> list[str]:
    return [entry.name for entry in select(module)]


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("weight", "weight"),
        ("a.b.weight", "a.b.weight"),
        ("_orig_mod.a.weight", "a.weight"),
        ("a._orig_mod.weight", "a.weight"),
        ("a._checkpoint_wrapped_module._fsdp_wrapped_module.b.weight", "a.b.weight"),
        ("_forward_module._orig_mod.weight", "weight"),
        ("a_orig_mod.weight", "a_orig_mod.weight"),
        ("a._orig_mod", "a"),
        ("_orig_mod", ""),
        ("", ""),
    ],
)
def test_clean_name(name, cleaned):
    assert clean_name(name) == cleaned


class TestPlaces:
    def test_order_and_names_are_those_of_named_parameters(self):
        module = network()
        assert [found[0].name for found in places(module).values()] == [name for name, _ in module.named_parameters()]
        assert list(places(module)) == list(module.parameters())

    def test_owner_attribute_and_what_is_around(self):
        module = network()
        (place,) = places(module)[module[1][0].weight]
        assert (place.name, place.attribute) == ("1.0.weight", "weight")
        assert place.owner is module[1][0]
        assert place.around == (("", module), ("1", module[1]), ("1.0", module[1][0]))

    def test_a_parameter_on_the_root(self):
        module = nn.Linear(2, 2)
        (place,) = places(module)[module.weight]
        assert place.name == "weight"
        assert list(place.names()) == ["weight"]

    def test_absent_parameters(self):
        assert len(places(nn.Linear(2, 2, bias=False))) == 1

    def test_lists_and_dicts_of_parameters(self):
        module = nn.ModuleDict(
            {"a": nn.ParameterList([torch.zeros(2, 2)]), "b": nn.ParameterDict({"c": torch.zeros(2, 2)})}
        )
        assert names(module) == ["a.0", "b.c"]

    def test_a_shared_module_stands_in_all_its_places(self):
        shared = nn.Linear(2, 2)
        module = nn.ModuleDict({"first": shared, "second": nn.Sequential(shared)})
        assert [place.name for place in places(module)[shared.weight]] == ["first.weight", "second.0.weight"]

    def test_a_tied_parameter_stands_in_all_its_places(self):
        module = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
        module["head"].weight = module["embedding"].weight
        assert [p.name for p in places(module)[module["head"].weight]] == ["embedding.weight", "head.weight"]
        assert names(module) == ["embedding.weight", "head.bias"]

    def test_parametrized(self):
        module = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
        found = places(module)[module[0].parametrizations.weight.original1]
        assert found[0].owner is module[0]
        assert found[0].attribute == "weight"
        assert found[0].parametrization is module[0].parametrizations.weight
        assert "0.weight" in list(found[0].names())  # so that a glob of the plain name still takes it

    def test_parametrized_root(self):
        module = parametrizations.spectral_norm(nn.Linear(3, 2))
        (place,) = places(module)[module.parametrizations.weight.original]
        assert "weight" in list(place.names())

    def test_parameters_of_the_parametrization_itself_are_its_own(self):
        class Scale(nn.Module):
            def __init__(self):
                super().__init__()
                self.matrix = nn.Parameter(torch.eye(2))

            def forward(self, weight):
                return self.matrix @ weight

        module = nn.Linear(3, 2, bias=False)
        nn.utils.parametrize.register_parametrization(module, "weight", Scale())
        matrix = module.parametrizations.weight[0].matrix
        (place,) = places(module)[matrix]
        assert place.attribute == "matrix"
        assert place.parametrization is None


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # importing the default backend warns, and takes long


class TestWrappers:
    def test_compiled(self):
        assert names(compiled(network())) == names(network())

    def test_compiled_submodule(self):
        module = network()
        module[1] = compiled(module[1])
        assert "1._orig_mod.0.weight" in dict(module.named_parameters())
        assert names(module) == names(network())
        assert [e.name for e in select(module, include="1.0").centralized] == ["1.0.weight"]
        assert [e.name for e in select(module, include=nn.Conv2d).centralized] == ["1.0.weight"]

    def test_compiled_in_place(self):
        module = network()
        module[1].compile(backend="eager")
        assert names(module) == names(network())

    def test_activation_checkpointing(self):
        module = network()
        module[1] = checkpoint_wrapper(module[1])
        assert "1._checkpoint_wrapped_module.0.weight" in dict(module.named_parameters())
        assert names(module) == names(network())
        assert [e.name for e in select(module, exclude="1").centralized] == ["0.weight"]

    def test_compiled_and_checkpointed(self):
        module = network()
        module[1] = compiled(checkpoint_wrapper(module[1]))
        assert names(compiled(module)) == names(network())

    def test_a_wrapped_parametrized_layer(self):
        module = nn.Sequential(compiled(parametrizations.weight_norm(nn.ConvTranspose1d(4, 3, 2, bias=False))))
        (entry,) = select(module).centralized
        assert entry.name == "0.parametrizations.weight.original1"
        assert entry.layout.dims == (0, 2)
        assert select(module, exclude="0.weight").centralized == []


class TestMatching:
    @pytest.fixture
    def place(self):
        module = nn.ModuleDict({"encoder": nn.ModuleList([nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2)})])})
        (found,) = places(module)[module["encoder"][0]["attn"].out_proj.weight]
        return found

    @pytest.mark.parametrize(
        "glob",
        [
            "encoder.0.attn.out_proj.weight",
            "encoder",
            "encoder.*.attn",
            "*.attn",
            "*attn*",
            "*.weight",
            "encoder.?.attn",
            "*",
        ],
    )
    def test_globs_that_take_it(self, place, glob):
        assert place.matches(glob)

    @pytest.mark.parametrize(
        "glob", ["Encoder", "attn", "enc", "*.bias", "encoder.1.attn", "encoder.[12]", "weight", "."]
    )
    def test_globs_that_do_not(self, place, glob):
        assert not place.matches(glob)

    def test_classes(self, place):
        assert place.matches(nn.MultiheadAttention)
        assert place.matches(nn.Linear)  # out_proj is a subclass of it
        assert place.matches(nn.Module)
        assert not place.matches(nn.Conv2d)


def test_class_of():
    assert class_of(nn.Linear(2, 2)) is nn.Linear
