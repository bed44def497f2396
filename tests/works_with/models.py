"""Rows: what is done to layers and models."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lightning_gc import select
from tests.works_with.running import Regression, assert_trained, check, pairs, seeded, train
from tests.works_with.table import row

SECTION = "Layers and models"


def mlp() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))


@row(SECTION, "`parametrizations.weight_norm`: the direction is centralized, the magnitude left alone; both train on")
def weight_norm(target: str) -> None:
    module = Regression(nn.Sequential(parametrizations.weight_norm(mlp()[0]), nn.Tanh(), nn.Linear(5, 3)))
    recorder = check(module, target, data=pairs(6))
    names = [e.name for e in select(module).centralized]
    assert names == ["net.0.parametrizations.weight.original1", "net.2.weight"]
    assert_trained(recorder, "net.0.parametrizations.weight.original0", *names)


@row(SECTION, "The older `torch.nn.utils.weight_norm`: the same, for `weight_v` and `weight_g`")
def old_weight_norm(target: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = Regression(nn.Sequential(nn.utils.weight_norm(mlp()[0]), nn.Tanh(), nn.Linear(5, 3)))
    recorder = check(module, target, data=pairs(6))
    names = [e.name for e in select(module).centralized]
    assert names == ["net.0.weight_v", "net.2.weight"]
    assert_trained(recorder, "net.0.weight_g", *names)


@row(SECTION, "`parametrizations.spectral_norm`: its original is centralized")
def spectral_norm(target: str) -> None:
    module = Regression(nn.Sequential(parametrizations.spectral_norm(mlp()[0]), nn.Tanh(), nn.Linear(5, 3)))
    recorder = check(module, target, data=pairs(6))
    assert_trained(recorder, "net.0.parametrizations.weight.original")


def with_adapters(config) -> nn.Module:
    import peft

    return seeded(lambda: peft.get_peft_model(mlp(), config))


@row(SECTION, "LoRA (peft): A and B are centralized; the base stays frozen", packages=("peft",))
def lora(target: str) -> None:
    import peft

    net = with_adapters(peft.LoraConfig(r=3, target_modules=["0", "2"]))
    module = Regression(net, torch.optim.AdamW)
    recorder = check(module, target, data=pairs(6))
    centralized = [e.name for e in select(module).centralized]
    assert len(centralized) == 4
    assert all("lora_" in name for name in centralized)
    assert_trained(recorder, *centralized)


@row(SECTION, "LoRA (peft) of rank 1: B, the fan-in of which is 1, is left alone and trains on", packages=("peft",))
def lora_of_rank_1(target: str) -> None:
    import peft

    module = Regression(with_adapters(peft.LoraConfig(r=1, target_modules=["0", "2"])), torch.optim.AdamW)
    # A of shape (1, in) is one weight vector, of a Linear: it is centralized. B of shape (out, 1) is not.
    recorder = check(module, target, data=pairs(6))
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert {e.name for e in select(module).centralized} == {name for name in trained if "lora_A" in name}
    assert_trained(recorder, *trained)


@row(SECTION, "IA3 (peft): its vectors are left alone and train on as without the callback", packages=("peft",))
def ia3(target: str) -> None:
    import peft

    def module() -> Regression:
        config = peft.IA3Config(target_modules=["0", "2"], feedforward_modules=["2"])
        made = Regression(with_adapters(config))
        made.net.base_model.model[2].weight.requires_grad_(True)  # something to centralize beside them
        return made

    ours = module()
    recorder = check(ours, target, data=pairs(6))
    assert not any("ia3" in e.name for e in select(ours).centralized)
    trained = [name for name, p in ours.named_parameters() if "ia3" in name and p.requires_grad]
    assert len(trained) == 2
    assert_trained(recorder, *trained)


@row(SECTION, "Transformers' GPT-2, whose `Conv1D` keeps its weights the other way round", packages=("transformers",))
def gpt2(target: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 11}
    config = GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    module = Regression(seeded(lambda: GPT2LMHeadModel(config)))

    def loss(x, y):
        ids = x.abs().long() % 11
        return module.net(input_ids=ids, labels=ids).loss

    module.loss = loss
    layouts = {e.name: e.layout.dims for e in select(module).centralized}
    assert layouts["net.transformer.h.0.attn.c_attn.weight"] == (0,)
    check(module, target, data=pairs(6))


@row(SECTION, "`torch.compile` of submodules: names without `_orig_mod`, the same steps as not compiled")
def compiled_submodule(target: str) -> None:
    eager, compiled = Regression(mlp()), Regression(mlp())
    compiled.net[0] = torch.compile(compiled.net[0], backend="eager")
    recorder = train(compiled, target, data=pairs(6))
    train(eager, target, data=pairs(6))
    assert [e.name for e in select(compiled).centralized] == ["net.0.weight", "net.2.weight"]
    for (_, ours), (_, theirs) in zip(compiled.named_parameters(), eager.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert len(recorder.used) == 4


@row(SECTION, "`torch.compile` of the whole LightningModule")
def compiled_module(target: str) -> None:
    eager, compiled = Regression(mlp()), Regression(mlp())
    check(eager, target, data=pairs(6))
    train(torch.compile(compiled, backend="eager"), target, data=pairs(6))
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@row(SECTION, "Activation checkpointing: names without `_checkpoint_wrapped_module`, the same steps")
def activation_checkpointing(target: str) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain, wrapped, called = Regression(mlp()), Regression(mlp()), Regression(mlp())
    wrapped.net[0] = checkpoint_wrapper(wrapped.net[0])
    called.loss = lambda x, y: (checkpoint(called.net, x, use_reentrant=False) - y).square().mean()
    assert [e.name for e in select(wrapped).centralized] == ["net.0.weight", "net.2.weight"]
    for module in (plain, wrapped, called):
        train(module, target, data=pairs(6))
    for other in (wrapped, called):
        for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@row(SECTION, "LSTM and multi-head attention: each gate's and head's rows")
def recurrent_and_attention(target: str) -> None:
    net = seeded(lambda: nn.ModuleDict({"lstm": nn.LSTM(6, 4, batch_first=True), "mha": nn.MultiheadAttention(4, 2)}))
    module = Regression(net)

    def loss(x, y):
        states, _ = net["lstm"](x.unsqueeze(1).expand(-1, 3, -1))
        attended, _ = net["mha"](states, states, states)
        return (attended[:, -1, :3] - y).square().mean()

    module.loss = loss
    check(module, target, data=pairs(6))


@row(SECTION, "Transposed convolutions: per output channel within each group")
def transposed_convolution(target: str) -> None:
    net = seeded(
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 3))
    )
    module = Regression(net)
    layout = next(e.layout for e in select(module) if e.name == "net.0.weight")
    assert (layout.dims, layout.groups) == ((0, 2, 3), 2)
    check(module, target, data=pairs(4, 2, 2))
