"""Networks that are trained whole: small, and written out, so that nothing else need be installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A network, a batch for it, and how many steps one run of the Trainer takes."""

    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    steps: int


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape where the shortcut is the identity."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet20() -> nn.Module:
    """ResNet-20 on CIFAR (He et al., 2016): basic blocks of 16, 32, 64 channels, three of each."""
    layers: list[nn.Module] = [*_conv(3, 16, 3), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for block in range(3):
            stride = 2 if width > 16 and block == 0 else 1
            body = nn.Sequential(*_conv(channels, width, 3, stride), nn.ReLU(), *_conv(width, width, 3))
            layers.append(Residual(body, _shortcut(channels, width, stride)))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def resnet(*depths: int) -> nn.Module:
    """A ResNet of bottlenecks on ImageNet: 3, 4, 6, 3 of them are ResNet-50, 3, 8, 36, 3 ResNet-152."""
    layers: list[nn.Module] = [*_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for blocks, width in zip(depths, (64, 128, 256, 512), strict=True):
        for block in range(blocks):
            stride = 2 if width > 64 and block == 0 else 1
            body = nn.Sequential(
                *_conv(channels, width, 1),
                nn.ReLU(),
                *_conv(width, width, 3, stride),
                nn.ReLU(),
                *_conv(width, 4 * width, 1),
            )
            layers.append(Residual(body, _shortcut(channels, 4 * width, stride)))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class GPT(nn.Module):
    """A small decoder: 4 blocks of 128, 4 heads, 256 characters, as trained on a text file on a laptop."""

    def __init__(self, vocabulary: int = 256, width: int = 128, context: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, tokens: Tensor) -> Tensor:
        """From `(batch, context)` to logits `(batch, vocabulary, context)`."""
        x = self.tokens(tokens) + self.positions.weight
        return self.head(self.blocks(x, mask=self.mask, is_causal=True)).transpose(1, 2)


def _conv(fan_in: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)]


def _shortcut(channels: int, out: int, stride: int) -> nn.Module:
    return nn.Identity() if channels == out and stride == 1 else nn.Sequential(*_conv(channels, out, 1, stride))


def _images(count: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, size, size), torch.randint(classes, (count,))


def _text(count: int, context: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocabulary, (count, context + 1))
    return tokens[:, :-1], tokens[:, 1:]


READ: dict[str, Network] = {
    "GPT, 24 layers": Network(lambda: GPT(blocks=24), lambda: _text(2, 64, 256), 1),
    "ResNet-152": Network(lambda: resnet(3, 8, 36, 3), lambda: _images(2, 64, 1000), 1),
}
"""Those whose graph is read. How long that takes depends on their operations, and not on the sizes of tensors."""

NETWORKS: dict[str, Network] = {
    "ResNet-20, batch 64": Network(resnet20, lambda: _images(64, 32, 10), 12),
    "small GPT, batch 16": Network(GPT, lambda: _text(16, 64, 256), 30),
    "ResNet-50, batch 4": Network(lambda: resnet(3, 4, 6, 3), lambda: _images(4, 224, 1000), 4),
}
