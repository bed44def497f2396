"""Gradient sets: the weights of known architectures that Gradient Centralization takes, by shape.

Biases and normalisation layers are not in them: nothing is centralized there. The lists follow from the
architectures' definitions; ``tests/benchmarks/test_shapes.py`` holds them against the models of `transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["conv", "linear", "embedding", "conv1d"]
"""The layer a weight is of; ``conv1d`` is transformers' transposed linear layer, of shape ``(in, out)``."""


@dataclass(frozen=True)
class Layer:
    """One weight: the kind of its layer, and its shape."""

    kind: Kind
    shape: tuple[int, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        """The fan-in dims."""
        return (0,) if self.kind == "conv1d" else tuple(range(1, len(self.shape)))


@dataclass(frozen=True)
class GradientSet:
    """The gradients of one model's optimizer step."""

    name: str
    layers: tuple[Layer, ...]
    dtype: torch.dtype = torch.float32

    @property
    def elements(self) -> int:
        """The number of elements of all the gradients together."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Their size in memory."""
        return self.elements * self.dtype.itemsize


def conv(out: int, fan_in: int, kernel: int) -> Layer:
    """A square 2-D convolution; `fan_in` channels per group."""
    return Layer("conv", (out, fan_in, kernel, kernel))


def linear(out: int, fan_in: int) -> Layer:
    """A linear layer."""
    return Layer("linear", (out, fan_in))


def resnet50() -> list[Layer]:
    """ResNet-50 on ImageNet (He et al., 2016): bottlenecks of 3, 4, 6, 3."""
    layers, channels = [conv(64, 3, 7)], 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            layers += [conv(width, channels, 1), conv(width, width, 3), conv(4 * width, width, 1)]
            if block == 0:
                layers.append(conv(4 * width, channels, 1))
            channels = 4 * width
    return [*layers, linear(1000, channels)]


def mobilenet_v2() -> list[Layer]:
    """MobileNetV2 (Sandler et al., 2018): depthwise convolutions, whose weight vectors have nine elements."""
    layers, channels = [conv(32, 3, 3)], 32
    settings = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for expansion, out, blocks in settings:
        for _ in range(blocks):
            hidden = expansion * channels
            if expansion > 1:
                layers.append(conv(hidden, channels, 1))
            layers += [conv(hidden, 1, 3), conv(out, hidden, 1)]
            channels = out
    return [*layers, conv(1280, channels, 1), linear(1000, 1280)]


def vit_b16() -> list[Layer]:
    """ViT-B/16 (Dosovitskiy et al., 2021), with separate query, key and value."""
    block = [*[linear(768, 768)] * 4, linear(3072, 768), linear(768, 3072)]
    return [conv(768, 3, 16), *block * 12, linear(1000, 768)]


def gpt2() -> list[Layer]:
    """GPT-2 small (Radford et al., 2019) with linear layers; the output embedding is tied to the input's."""
    block = [linear(2304, 768), linear(768, 768), linear(3072, 768), linear(768, 3072)]
    return [Layer("embedding", (50257, 768)), Layer("embedding", (1024, 768)), *block * 12]


def gpt2_conv1d() -> list[Layer]:
    """The same as `transformers` stores it: ``(in, out)``, so that weight vectors are columns."""
    return [Layer("conv1d", layer.shape[::-1]) if layer.kind == "linear" else layer for layer in gpt2()]


def llama_7b(layers: int) -> list[Layer]:
    """Decoder layers of LLaMA-7B (Touvron et al., 2023), without the embeddings."""
    attention, gate_and_up = [linear(4096, 4096)] * 4, [linear(11008, 4096)] * 2
    return [*attention, *gate_and_up, linear(4096, 11008)] * layers


def lora_7b(pairs: int = 256, rank: int = 8) -> list[Layer]:
    """LoRA adapters (Hu et al., 2022) of 4096 x 4096 projections: 256 pairs of A and B."""
    return [linear(rank, 4096), linear(4096, rank)] * pairs


def tiny() -> list[Layer]:
    """300 tensors of 256 elements, where only the calls cost anything."""
    return [linear(16, 16)] * 300


def one_matrix() -> list[Layer]:
    """One 8192 x 8192 matrix, where only the memory costs anything."""
    return [linear(8192, 8192)]


# Those with ":" are the same shapes in another dtype.
SETS: dict[str, Callable[[], GradientSet]] = {
    "resnet50": lambda: _of("resnet50", resnet50()),
    "vit_b16": lambda: _of("vit_b16", vit_b16()),
    "gpt2": lambda: _of("gpt2", gpt2()),
    "gpt2_conv1d": lambda: _of("gpt2_conv1d", gpt2_conv1d()),
    "mobilenet_v2": lambda: _of("mobilenet_v2", mobilenet_v2()),
    "tiny": lambda: _of("tiny", tiny()),
    "matrix": lambda: _of("matrix", one_matrix()),
    "matrix:bf16": lambda: _of("matrix:bf16", one_matrix(), torch.bfloat16),
    "matrix:fp16": lambda: _of("matrix:fp16", one_matrix(), torch.float16),
    "llama_7b:bf16": lambda: _of("llama_7b:bf16", llama_7b(1), torch.bfloat16),
    "lora_7b": lambda: _of("lora_7b", lora_7b()),
    "lora_7b:bf16": lambda: _of("lora_7b:bf16", lora_7b(), torch.bfloat16),
}


def _of(name: str, layers: list[Layer], dtype: torch.dtype = torch.float32) -> GradientSet:
    return GradientSet(name, tuple(layers), dtype)
