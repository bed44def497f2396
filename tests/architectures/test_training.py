"""What the callback does to whole models of transformers, by what their weights do in one step; random weights."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gc import GradientCentralization
from tests.architectures.small import loss_of, small
from tests.models import fit

pytestmark = pytest.mark.architectures

Dims = tuple[int, ...] | None

# By hand, from the modelling code: the parameters that stand in no layer of torch's; None: no set of weight vectors.
LAYOUTS: dict[str, dict[str, Dims]] = {
    "xlnet": {"*.rel_attn.[qkvr]": (0,), "*.rel_attn.o": (1, 2), "*.rel_attn.r_*_bias": None},
    "mamba": {"*.A_log": None},
    "recurrent_gemma": {"*.input_gate_weight": (1,), "*.recurrent_gate_weight": (1,)},
    "zamba": {"*.x_proj_weight": (2,), "*.dt_proj_weight": (2,), "*.dt_proj_bias": None},
    "wav2vec2-conformer": {"*.pos_bias_[uv]": None},
    "swin": {"*.relative_position_bias_table": None},
    "maskformer": {"*.relative_position_bias_table": None},
    "sam": {"*.pos_embed": None, "*.positional_embedding": (0,)},
    "mixtral": {"*.experts.*_proj": (2,), "*.gate.weight": (1,)},
    "gpt_oss": {"*.experts.*_proj_bias": None, "*.experts.*_proj": (1,), "*.router.weight": (1,)},
}
UNREAD = {"sam": ["*.rel_pos_[hw]"], "zamba": ["*.A_log", "*.D"]}
"""What the graph shows nothing of (SAM's tables are interpolated, Zamba's scales are applied head by head): the assumption stands. In the docs' list."""


def zamba() -> tuple[nn.Module, Tensor]:
    """Its sizes go with one another: its layers share blocks that stand at fixed places."""
    from transformers import ZambaConfig, ZambaModel

    config = ZambaConfig(
        vocab_size=64, hidden_size=32, attention_hidden_size=64, intermediate_size=48, num_hidden_layers=9,
        num_attention_heads=4, num_key_value_heads=4, attention_head_dim=16, mamba_d_state=4, mamba_dt_rank=4,
        use_mamba_kernels=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ZambaModel._from_config(config, attn_implementation="eager").train()
    return model, loss_of(model)


class Whole(LightningModule):
    """Trains one, on the same data and with the same dropout each time."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model, _ = zamba() if name == "zamba" else small(name)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        seed_everything(1, verbose=False)  # masks of times are drawn by numpy
        return loss_of(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def moved(name: str, *callbacks: Any) -> dict[str, Tensor]:
    module = Whole(name)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    fit(module, *callbacks, data=DataLoader(torch.zeros(1, 1)), max_steps=1)
    return {n: (p.detach() - before[n]).double() for n, p in module.named_parameters()}


@cache
def both(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], GradientCentralization]:
    callback = GradientCentralization()
    return moved(name), moved(name, callback), callback


def matching(name: str, globs: Any) -> str | None:
    return next((glob for glob in globs if fnmatchcase(name, glob)), None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_step_moves_each_weight_by_what_it_moves_without_less_its_mean(name):
    without, with_it, callback = both(name)
    found: set[str] = set()
    differs = shows = False
    for entry in callback.selection:
        move = without[entry.name]
        glob = matching(entry.name, LAYOUTS[name])
        if matching(entry.name, UNREAD.get(name, ())):
            assert entry.layout.source == "assumed", entry
            continue
        if glob is not None:
            dims = LAYOUTS[name][glob]
        else:
            # One of torch's layers, of which the other tests are, or something that the loss does not lead to.
            assert entry.layout is None or not entry.layout.assumed or not move.any(), entry
            dims = entry.layout and entry.layout.dims
        wanted = move if dims is None else move - move.mean(dims, keepdim=True)
        assert dims is None or entry.layout.groups == 1
        torch.testing.assert_close(with_it[entry.name], wanted, rtol=1e-4, atol=1e-6 + 1e-4 * float(move.abs().max()))
        if glob is not None:
            assert (entry.layout and entry.layout.dims) == dims, entry
            found.add(glob)
            shows |= dims is not None and bool(move.any())
            differs |= bool((with_it[entry.name] - move).abs().max() > 1e-2 * move.abs().max())
    assert found == set(LAYOUTS[name])
    # Where anything is to be centralized, the step shows it; but so small a SAM's positions get gradients of zero.
    assert differs == shows
    assert shows == (name != "sam" and any(LAYOUTS[name].values()))
