"""Small models of transformers with random weights, and data for them: nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PretrainedConfig

LARGEST = 40_000_000
"""More parameters than this are not small: the model isn't tried."""

_LAYERS = 2
# What the attributes of configurations are made, as far as they have them and theirs are larger.
_SIZES = {
    "vocab_size": 64, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32, "hidden_dim": 32,
    "embedding_size": 32, "emb_dim": 32, "word_embed_proj_dim": 32, "decoder_hidden_size": 32, "encoder_hidden_size": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "depth": 2, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "num_attention_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2,
    "decoder_num_heads": 4, "intermediate_size": 48, "ffn_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "d_ff": 48, "d_inner": 48, "n_inner": 48, "mlp_dim": 48, "d_kv": 8, "d_head": 8, "head_dim": 8, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "image_size": 32, "patch_size": 8, "num_queries": 6, "state_size": 4, "max_position_embeddings": 64,
    "lru_width": 32, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_positions": 64, "max_source_positions": 64, "max_target_positions": 64, "projection_dim": 32,
}  # fmt: skip


def small_config(kind: type[PretrainedConfig], layers: int, narrow: bool) -> PretrainedConfig:
    """A configuration with small sizes, through its constructor: what follows from the sizes is worked out there."""
    default = kind()
    arguments: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PretrainedConfig):
            arguments[name] = small_config(type(value), layers, narrow)
        # Where the sizes of the stages are lists, they go with one another, and stay.
        elif name in _SIZES and type(value) is int and not _has_stages(default):
            if _SIZES[name] == _LAYERS:
                arguments[name] = min(value, layers)
            elif narrow or name == "vocab_size":
                arguments[name] = min(value, _SIZES[name])
        elif name.endswith("_token_id") and type(value) is int and value >= _SIZES["vocab_size"]:
            arguments[name] = 1
    return kind(**arguments)


def _has_stages(config: PretrainedConfig) -> bool:
    return any(
        name in ("depths", "num_heads", "hidden_sizes", "embed_dims", "dims") and isinstance(value, list | tuple)
        for name, value in vars(config).items()
    )


def architectures() -> list[str]:
    """The names of all architectures that transformers has a model for."""
    return sorted(name for name, config in CONFIG_MAPPING.items() if config in MODEL_MAPPING)


def build(name: str, layers: int, narrow: bool) -> nn.Module:
    """A small model of an architecture, with that many layers in each stack, and narrow ones or not.

    Raises:
        Exception: Whatever its class raises of sizes that do not fit.
    """
    config = small_config(CONFIG_MAPPING[name], layers, narrow)
    kind = MODEL_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    with torch.device("meta"):
        count = sum(p.numel() for p in kind._from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} parameters")
    torch.manual_seed(0)
    model: nn.Module = kind._from_config(config, attn_implementation="eager")
    return model.train()


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A small model of an architecture, and a loss: with as few layers as it runs with, one of each kind at least.

    Raises:
        Exception: The one that the smallest raised, if none runs.
    """
    first: Exception | None = None
    for layers, narrow in ((2, True), (6, True), (100, True), (2, False), (100, False)):
        try:
            model = build(name, layers, narrow)
            return model, loss_of(model)
        except Exception as error:  # whatever a model raises of sizes or inputs that are not for it
            first = first or error
    assert first is not None
    raise first


def inputs_for(model: Any, batch: int = 2) -> Iterator[dict[str, Tensor]]:
    """Inputs to try, in turn: what kind a model takes is told by its forward, the shape by trying."""
    config, takes = model.config, inspect.signature(model.forward).parameters
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 32) or 32
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision, "num_channels", 3) or 3
    ids = torch.randint(2, 40, (batch, 12))
    images = torch.randn(batch, channels, height, width)
    mels = getattr(config, "num_mel_bins", getattr(config, "feature_size", 80))
    given: dict[str, list[Tensor]] = {
        "input_ids": [ids],
        "decoder_input_ids": [ids],
        "pixel_values": [
            images,
            images[:, None],
            torch.randn(batch, 2, channels, height, width),
            torch.randn(batch, 3, 64, 64),
        ],
        "input_features": [
            torch.randn(batch, mels, 128),
            torch.randn(batch, 128, mels),
            torch.randn(batch, 1, 1024, 128),
        ],
        "input_values": [torch.randn(batch, 4000), torch.randn(batch, 1, 4000), torch.randn(batch, 1024, 128)],
        "past_values": [torch.randn(batch, 512, getattr(config, "num_input_channels", 1)), torch.randn(batch, 64)],
        "bbox": [torch.randint(0, 30, (batch, 12, 4))],
    }
    main = model.main_input_name
    names = [main] if main in given else [name for name in given if name in takes][:1]
    names += [
        name for name in ("input_ids", "pixel_values", "decoder_input_ids") if name in takes and name not in names
    ]
    for i in range(4):
        for count in range(len(names), 0, -1):
            yield {name: given[name][min(i, len(given[name]) - 1)] for name in names[:count]}


def loss_of(model: nn.Module, batch: int = 2) -> Tensor:
    """A loss that all the floating point outputs go into.

    Raises:
        Exception: The one of the first inputs that were tried, if none was right.
    """
    first: Exception | None = None
    takes = inspect.signature(model.forward).parameters
    for inputs in inputs_for(model, batch):
        try:
            outputs = model(**inputs, **({"use_cache": False} if "use_cache" in takes else {}))
        except Exception as error:  # whatever a model raises of inputs that are not for it
            first = first or error
            continue
        return torch.stack([out.tanh().square().mean() for out in _floating(outputs)]).sum()
    assert first is not None
    raise first


def _floating(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point() and outputs.requires_grad:
            yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _floating(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _floating(value)
