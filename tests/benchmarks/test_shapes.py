"""The gradient sets are those of the models they are named after."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks import shapes
from benchmarks.networks import NETWORKS, resnet
from lightning_gc import select

transformers = pytest.importorskip("transformers")


def centralized(module: torch.nn.Module) -> Counter[tuple[int, ...]]:
    """The shapes that the callback would centralize."""
    return Counter(tuple(entry.shape) for entry in select(module).centralized)


def listed(layers: list[shapes.Layer]) -> Counter[tuple[int, ...]]:
    return Counter(layer.shape for layer in layers)


def build(model: type, config: object) -> torch.nn.Module:
    with torch.device("meta"):
        return model(config)


def test_gpt2_is_transformers_own():
    model = build(transformers.GPT2LMHeadModel, transformers.GPT2Config())
    assert centralized(model) == listed(shapes.gpt2_conv1d())
    assert sum(layer.shape == (50257, 768) for layer in shapes.gpt2()) == 1


def test_vit_b16_is_transformers_own_with_a_head():
    config = transformers.ViTConfig(num_labels=1000)
    assert centralized(build(transformers.ViTForImageClassification, config)) == listed(shapes.vit_b16())


def test_a_layer_of_llama_7b_is_transformers_own():
    config = transformers.LlamaConfig(num_hidden_layers=2)
    assert centralized(build(transformers.LlamaModel, config).layers) == listed(shapes.llama_7b(2))


def test_resnet50_is_transformers_own_and_the_one_that_is_trained():
    config = transformers.ResNetConfig(num_labels=1000)
    expected = listed(shapes.resnet50())
    assert centralized(build(transformers.ResNetForImageClassification, config)) == expected
    assert centralized(resnet(3, 4, 6, 3)) == expected


def test_mobilenet_v2_has_its_published_number_of_weights():
    """3,504,872 parameters: these, 34,112 of the batch normalisations and 1,000 biases."""
    layers = shapes.mobilenet_v2()
    assert len(layers) == 53
    assert shapes.GradientSet("", tuple(layers)).elements == 3_504_872 - 34_112 - 1_000


def test_resnet20_has_its_published_number_of_parameters():
    """0.27 million (He et al., 2016, table 6)."""
    network = NETWORKS["ResNet-20, batch 64"].build()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 0.27
