"""Layers written by hand, each with what the graph has to say of its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

LEFT = "left alone"
NOTHING = None
Says = tuple[int, ...] | str | None


@dataclass(frozen=True)
class Layer:
    """A layer that is no class of torch's.

    Attributes:
        shapes: The shapes of its parameters.
        forward: What it does with the parameters and its input.
        says: For each parameter the fan-in dims, `LEFT`, or `NOTHING`: the graph must be silent.
        data: The shape of the input, without the batch.
        groups: For each parameter, into how many groups dim 0 falls.
        silent: The parameters of which the graph says nothing, where `says` would be right. Listed in the docs.
    """

    shapes: Mapping[str, tuple[int, ...]]
    forward: Callable[[Any, Tensor], Tensor]
    says: Mapping[str, Says]
    data: tuple[int, ...] = (7,)
    groups: Mapping[str, int] | None = None
    silent: tuple[str, ...] = ()


class Double(torch.autograd.Function):
    """A custom function: x @ w, times two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return 2 * x @ w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return 2 * grad @ w.T, 2 * x.flatten(0, -2).T @ grad.flatten(0, -2)


class LinearFunctionForZeroStage3(torch.autograd.Function):
    """Has the name of what DeepSpeed puts in the place of F.linear: one operation, whatever the rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, w)
        return F.linear(x, w, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, w = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return grad @ w, rows.T @ x.flatten(0, -2), rows.sum(0)


def _one(shape: tuple[int, ...], forward: Callable[[Tensor, Tensor], Tensor], says: Says, **more: Any) -> Layer:
    """A layer of one parameter, w."""
    groups = {"w": more.pop("groups")} if "groups" in more else None
    return Layer({"w": shape}, lambda p, x: forward(p.w, x), {"w": says}, groups=groups, **more)


def _summed_in_pairs(y: Tensor, dim: int) -> Tensor:
    """Outputs that are added up, two by two: more is summed than their product did."""
    return y.unflatten(dim, (2, -1)).sum(dim - 1)


def _mask(shape: tuple[int, ...]) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()).reshape(shape) % 3 > 0).float()


def _mamba(p: Any, x: Tensor) -> Tensor:
    """A selective scan: the state decays by exp(dt A)."""
    dt = F.softplus(x)
    decay = torch.exp(dt[..., None] * -torch.exp(p.a_log))
    state, outputs = torch.zeros_like(decay[..., 0, :, :]), []
    for t in range(x.shape[-2]):
        state = decay[..., t, :, :] * state + x[..., t, :, None]
        outputs.append(state.sum(-1))
    return torch.stack(outputs, -2) + x * p.d


def _relative_attention(p: Any, x: Tensor) -> Tensor:
    """Heads as einsums over (d, h, k), with biases of content and position, as in Transformer-XL."""
    q = torch.einsum("...td,dhk->...thk", x, p.q)
    k = torch.einsum("...td,dhk->...thk", x, p.k)
    v = torch.einsum("...td,dhk->...thk", x, p.v)
    scores = torch.einsum("...shk,...thk->...hst", q + p.u, k).softmax(-1)
    mixed = torch.einsum("...hst,...thk->...shk", scores, v)
    return torch.einsum("...shk,dhk->...sd", mixed, p.o)


def _latents(p: Any, x: Tensor) -> Tensor:
    """Learned latents that ask the data, as in Perceiver."""
    latents = p.latents.expand(*x.shape[:-2], *p.latents.shape)
    scores = (latents @ p.q) @ (x @ p.k).transpose(-1, -2)
    return scores.softmax(-1) @ (x @ p.v)


def _gat(p: Any, x: Tensor) -> Tensor:
    heads = (x @ p.w).unflatten(-1, (2, 4))
    return (heads * p.att).sum(-1).softmax(-2).unsqueeze(-1) * heads


def _style(p: Any, x: Tensor) -> Tensor:
    """StyleGAN2's convolution: the kernel is scaled by a style made of the data, and each sample has its own."""
    batch, channels = x.shape[0], x.shape[1]
    style = torch.tanh(x.mean((2, 3)) @ p.style)
    kernel = p.w[None] * style[:, None, :, None, None]
    kernel = kernel / (kernel.pow(2).sum((2, 3, 4), keepdim=True) + 1e-4).sqrt()
    images = x.reshape(1, batch * channels, *x.shape[2:])
    return F.conv2d(images, kernel.flatten(0, 1), groups=batch).unflatten(1, (batch, -1))


def _cond_conv(p: Any, x: Tensor) -> Tensor:
    """A kernel mixed for each sample of several experts."""
    routes = torch.sigmoid(x.mean((2, 3)) @ p.route)
    kernel = torch.einsum("be,eoikl->boikl", routes, p.experts)
    images = x.reshape(1, -1, *x.shape[2:])
    return F.conv2d(images, kernel.flatten(0, 1), groups=len(x)).unflatten(1, (len(x), -1))


def _experts(p: Any, x: Tensor) -> Tensor:
    """Each token goes to one expert: a loop, as in Mixtral."""
    tokens = x.reshape(-1, x.shape[-1])
    where = torch.arange(len(tokens)) % 2
    out = torch.zeros_like(tokens)
    for expert in range(2):
        chosen = (where == expert).nonzero().flatten()
        gate, up = F.linear(tokens[chosen], p.gate_up[expert]).chunk(2, -1)
        out = out.index_add(0, chosen, F.linear(F.silu(gate) * up, p.down[expert]))
    return out.reshape(x.shape)


def _relational(p: Any, x: Tensor) -> Tensor:
    """One matrix for each kind of edge, picked edge by edge, as in RGAT."""
    kinds = torch.arange(x.shape[-2]) % 3
    return torch.einsum("...ti,tio->...to", x, p.w[kinds])


def _windows(p: Any, x: Tensor) -> Tensor:
    """Swin's bias: a table, looked up by the distance of two places."""
    places = torch.arange(x.shape[-2])
    distance = (places[:, None] - places[None] + 4).reshape(-1)
    bias = p.table[distance].view(len(places), len(places), -1).permute(2, 0, 1)
    scores = (x @ x.transpose(-1, -2)).unsqueeze(-3) + bias
    return (scores.softmax(-1) @ x.unsqueeze(-3)).sum(-3)


def _memory(p: Any, x: Tensor) -> Tensor:
    keys = torch.cat([p.keys.expand(*x.shape[:-2], *p.keys.shape), x], -2)
    values = torch.cat([p.values.expand(*x.shape[:-2], *p.values.shape), x], -2)
    return (x @ keys.transpose(-1, -2)).softmax(-1) @ values


def _biased_scores(w: Tensor, x: Tensor) -> Tensor:
    tokens = x.reshape(-1, *x.shape[-2:])
    scores = torch.baddbmm(w.expand(len(tokens), *w.shape), tokens, tokens.transpose(1, 2))
    return scores.softmax(-1) @ tokens


def _queries(w: Tensor, x: Tensor) -> Tensor:
    tokens = x.reshape(-1, 1, *x.shape[-2:])
    return F.scaled_dot_product_attention(w.expand(len(tokens), 1, *w.shape), tokens, tokens)


def _doubled(w: Tensor, x: Tensor) -> Tensor:
    """2^40 ways lead from the parameter to the loss."""
    out = x + w
    for _ in range(40):
        out = out / 2 + out / 2
    return out


def _straight_through(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, w + (w.sign() - w).detach())


def _standardised(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5))


def _gradient_penalty(w: Tensor, x: Tensor) -> Tensor:
    x = x if x.requires_grad else x.clone().requires_grad_()
    out = F.softplus(F.softplus(x @ w) @ w.new_ones(5, 3))
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return grad


def _places(x: Tensor, size: int) -> Tensor:
    """An index below `size` for each place of the data."""
    return torch.arange(math.prod(x.shape[:-1])).reshape(x.shape[:-1]) % size


def _spectrally_normed(w: Tensor) -> Tensor:
    """Divided by its largest singular value, as the power iteration of a spectral normalisation knows it."""
    return w / torch.dot(w.new_ones(len(w)), torch.mv(w, w.new_ones(w.shape[1])))


def _radial(w: Tensor, x: Tensor) -> Tensor:
    """A network of radial basis functions, as it is mostly written."""
    shape = (*x.shape[:-1], *w.shape)
    return torch.exp(-(x.unsqueeze(-2).expand(shape) - w.expand(shape)).pow(2).sum(-1))


IMAGE = (4, 6, 6)
TOKENS = (5, 7)

LAYERS: dict[str, Layer] = {
    # matrices
    "in by out": _one((7, 5), lambda w, x: x @ w, (0,)),
    "out by in": _one((5, 7), lambda w, x: x @ w.T, (1,)),
    "out by in, tokens": _one((5, 7), lambda w, x: F.linear(x, w), (1,), data=TOKENS),
    "with a bias added": _one((7, 5), lambda w, x: torch.addmm(torch.ones(5), x.reshape(-1, 7), w), (0,)),
    "from the left": _one((5, 7), lambda w, x: w @ x, (1,), data=(7, 4)),
    "from the left, of all tokens": _one((5, 7), lambda w, x: w @ x.reshape(-1, 7).T, (1,), silent=("w",)),
    "of one vector": _one((5, 7), lambda w, x: w @ x.reshape(-1, 7).mean(0), (1,)),
    "of one vector, from the left": _one((7, 5), lambda w, x: x.reshape(-1, 7).mean(0) @ w, (0,)),
    "one row": _one((1, 7), lambda w, x: w[0].dot(x.reshape(-1, 7).mean(0)), (1,)),
    "as DeepSpeed": Layer(
        {"w": (5, 7), "b": (1, 5)},
        lambda p, x: LinearFunctionForZeroStage3.apply(x, p.w, p.b.flatten()),
        {"w": (1,), "b": LEFT},
        data=TOKENS,
    ),
    "as DeepSpeed, summed in pairs": _one(
        (6, 7), lambda w, x: _summed_in_pairs(LinearFunctionForZeroStage3.apply(x, w), -1), NOTHING, data=TOKENS
    ),
    "summed in pairs": _one((6, 7), lambda w, x: _summed_in_pairs(F.linear(x, w), -1), NOTHING, data=TOKENS),
    "from the left, summed in pairs": _one(
        (6, 7), lambda w, x: _summed_in_pairs(w @ x.reshape(-1, 7).T, -2), NOTHING
    ),
    "of one vector, summed in pairs": _one(
        (6, 7), lambda w, x: _summed_in_pairs(w @ x.reshape(-1, 7).mean(0), -1), NOTHING
    ),
    "of one vector, all summed": _one(
        (5, 7), lambda w, x: (w @ x.reshape(-1, 7).mean(0)).sum(()), (0, 1), silent=("w",)
    ),
    "summed over the tokens, then in pairs": _one(
        (6, 7), lambda w, x: _summed_in_pairs(F.linear(x, w).sum(-2), -1), NOTHING, data=TOKENS
    ),
    "summed over the tokens, which are kept, then in pairs": _one(
        (6, 7), lambda w, x: _summed_in_pairs(F.linear(x, w).sum(-2, keepdim=True), -1), NOTHING, data=TOKENS
    ),
    "summed over the tokens, then over the outputs": _one(
        (6, 7), lambda w, x: F.linear(x.reshape(-1, 5, 7), w).sum(1).sum(1), (0, 1), data=TOKENS, silent=("w",)
    ),
    "summed over the tokens, which are kept, then over the outputs": _one(
        (6, 7),
        lambda w, x: F.linear(x.reshape(-1, 5, 7), w).sum(1, keepdim=True).sum(2),
        (0, 1),
        data=TOKENS,
        silent=("w",),
    ),
    "as products and a sum, then over the outputs": _one(
        (7, 6), lambda w, x: (x.reshape(-1, 7, 1) * w).sum(1).sum(1), (0, 1), silent=("w",)
    ),
    "as products and a sum that is kept, then over the outputs": _one(
        (7, 6), lambda w, x: (x.reshape(-1, 7, 1) * w).sum(1, keepdim=True).sum(2), (0, 1), silent=("w",)
    ),
    "added to a product, then summed in pairs": _one(
        (7, 6),
        lambda w, x: _summed_in_pairs(torch.addmm(x.reshape(-1, 7) @ w, x.reshape(-1, 7), torch.ones(7, 6)), -1),
        NOTHING,
    ),
    "beside the data, then all summed": _one(
        (7, 5), lambda w, x: torch.cat([x @ w, x], -1).sum(-1), (0, 1), silent=("w",)
    ),
    "by the sum of its outputs": _one(
        (7, 5), lambda w, x: (lambda y: y / y.sum(-1, keepdim=True))(x @ w.exp()), (0,), silent=("w",)
    ),
    "the sum of its outputs off the data": _one(
        (7, 5), lambda w, x: x - (x @ w).sum(-1, keepdim=True), (0, 1), silent=("w",)
    ),
    "of one input": _one((1, 5), lambda w, x: x[..., :1] @ w, NOTHING),
    "as products, more, and a sum": _one((5, 7), lambda w, x: (0.5 - (-(x[..., None, :] * w))).sum(-1), (1,)),
    "as products, twice, and a sum": _one(
        (5, 7), lambda w, x: (2 * (x[..., None, :] * w)).sum(-1), (1,), silent=("w",)
    ),
    "as products and a sum over the tokens too": _one(
        (5, 7), lambda w, x: (x[..., None, :] * w).sum((-3, -1)), (1,), data=TOKENS, silent=("w",)
    ),
    "as products and a sum, then in pairs": _one(
        (6, 7), lambda w, x: _summed_in_pairs((x[..., None, :] * w).sum(-1), -1), NOTHING
    ),
    "as products and a sum that is kept, then in pairs": _one(
        (6, 7), lambda w, x: _summed_in_pairs((x[..., None, :] * w).sum(-1, keepdim=True), -2), NOTHING
    ),
    "of two dims to one": _one((4, 7, 5), lambda w, x: torch.tensordot(x, w, 2), (0, 1), data=(4, 7)),
    "of one dim to two": _one((7, 2, 3), lambda w, x: torch.tensordot(x, w, 1), (0,)),
    "as products and a sum": _one((5, 7), lambda w, x: (x[..., None, :] * w).sum(-1), (1,)),
    "as products, reshaped, and a sum": _one(
        (5, 2, 4), lambda w, x: (x[..., None, :, :] * w).flatten(-2).sum(-1), (1, 2), data=(2, 4)
    ),
    "as a loop over the inputs": _one(
        (7, 5), lambda w, x: sum(x[..., i, None] * w[i] for i in range(7)), (0,), silent=("w",)
    ),
    "einsum, implicit": _one((7, 5), lambda w, x: torch.einsum("...i,io", x, w), (0,)),
    # heads, experts, blocks
    "heads (d, h, k)": Layer(
        {"q": (7, 2, 3), "k": (7, 2, 3), "v": (7, 2, 3), "o": (7, 2, 3), "u": (2, 3)},
        _relative_attention,
        {"q": (0,), "k": (0,), "v": (0,), "o": (1, 2), "u": LEFT},
        data=TOKENS,
    ),
    "experts as one product": _one((2, 7, 5), lambda w, x: torch.einsum("...ei,eio->...eo", x, w), (1,), data=(2, 7)),
    "experts (E, out, in)": _one((2, 5, 7), lambda w, x: torch.einsum("...ei,eoi->...eo", x, w), (2,), data=(2, 7)),
    "experts that are summed": _one(
        (2, 7, 5), lambda w, x: torch.einsum("...ei,eio->...eo", x, w).sum(-2), (0, 1), data=(2, 7), silent=("w",)
    ),
    "experts, a loop": Layer(
        {"gate_up": (2, 6, 7), "down": (2, 7, 3)}, _experts, {"gate_up": (2,), "down": (2,)}, data=(4, 7)
    ),
    "experts that are averaged": _one(
        (2, 7, 5), lambda w, x: torch.einsum("...i,eio->...eo", x, w).mean(-2), (0, 1), silent=("w",)
    ),
    "one matrix for each kind of edge": Layer(
        {"w": (3, 7, 5)}, _relational, {"w": (1,)}, data=TOKENS
    ),
    "one matrix for each kind, by embedding": _one(
        (3, 7, 5),
        lambda w, x: torch.einsum(
            "...ti,tio->...to", x, F.embedding(torch.arange(5) % 3, w.flatten(1)).unflatten(-1, (7, 5))
        ),
        (1,),
        data=TOKENS,
        silent=("w",),
    ),
    "one matrix for each pair of kinds": _one(
        (2, 3, 7, 5),
        lambda w, x: torch.einsum("...ti,tio->...to", x, w[torch.arange(5) % 2, torch.arange(5) % 3]),
        (2,),
        data=TOKENS,
    ),
    "one matrix for each pair of kinds, the pair behind": _one(
        (7, 2, 3, 5),
        lambda w, x: torch.einsum("...ti,ito->...to", x, w[:, torch.arange(5) % 2, torch.arange(5) % 3]),
        (0,),
        data=TOKENS,
    ),
    "blocks of a diagonal": _one(
        (8, 5), lambda w, x: torch.einsum("...gi,gio->...go", x, w.view(2, 4, 5)), (0,), data=(2, 4), groups=2
    ),
    "blocks of a diagonal, apart": _one(
        (8, 5),
        lambda w, x: torch.cat([x[..., g, :] @ w.view(2, 4, 5)[g] for g in range(2)], -1),
        (0,),
        data=(2, 4),
        groups=2,
    ),
    "blocks of a diagonal, apart, on the data": _one(
        (8, 4),
        lambda w, x: torch.cat([x[..., g, :] @ w.view(2, 4, 4)[g] for g in range(2)], -1) + x.flatten(-2),
        (0,),
        data=(2, 4),
        groups=2,
    ),
    "strided groups": _one(
        (8, 5), lambda w, x: torch.einsum("...ig,igo->...go", x, w.view(4, 2, 5)), NOTHING, data=(4, 2)
    ),
    "low rank of x": Layer({"a": (7, 2), "b": (2, 5)}, lambda p, x: x @ p.a @ p.b, {"a": (0,), "b": (0,)}),
    "heads whose outputs are added": _one(
        (8, 7), lambda w, x: sum(x[..., h, :] @ w.view(2, 4, 7)[h] for h in range(2)), (0,), data=(2, 4), silent=("w",)
    ),
    "heads whose outputs are stacked and added": _one(
        (8, 7), lambda w, x: torch.stack([x[..., h, :] @ w.view(2, 4, 7)[h] for h in range(2)]).sum(0), (0,),
        data=(2, 4), silent=("w",),
    ),
    "heads whose outputs are scaled and added": _one(
        (2, 4, 7), lambda w, x: ((x[..., None, :] @ w).squeeze(-2) / 8).sum(-2), (0, 1), data=(2, 4), silent=("w",)
    ),
    "experts that are weighed by the data": Layer(
        {"w": (3, 7, 5), "route": (7, 3)},
        lambda p, x: ((x @ p.route).softmax(-1)[..., None] * torch.einsum("...i,eio->...eo", x, p.w)).sum(-2),
        {"w": (1,), "route": (0,)},
    ),
    # convolutions
    "convolution": _one((5, 4, 3, 3), lambda w, x: F.conv2d(x, w), (1, 2, 3), data=IMAGE),
    "convolution in groups": _one((6, 2, 3, 3), lambda w, x: F.conv2d(x, w, groups=2), (1, 2, 3), data=IMAGE),
    "transposed convolution": _one((4, 5, 3, 3), lambda w, x: F.conv_transpose2d(x, w), (0, 2, 3), data=IMAGE),
    "transposed convolution in groups": _one(
        (4, 5, 3, 3), lambda w, x: F.conv_transpose2d(x, w, groups=2), (0, 2, 3), data=IMAGE, groups=2
    ),
    "a kernel that is turned": _one(
        (4, 5, 3, 3), lambda w, x: F.conv2d(x, w.transpose(0, 1).flip(2, 3)), (0, 2, 3), data=IMAGE
    ),
    "convolution, summed in pairs": _one(
        (6, 4, 3, 3), lambda w, x: _summed_in_pairs(F.conv2d(x, w).flatten(-2), -2), NOTHING, data=IMAGE
    ),
    "transposed convolution, summed in pairs": _one(
        (4, 6, 3, 3), lambda w, x: _summed_in_pairs(F.conv_transpose2d(x, w).flatten(-2), -2), NOTHING, data=IMAGE
    ),
    "transposed convolution in groups, the groups summed": _one(
        (4, 6, 3, 3),
        lambda w, x: _summed_in_pairs(F.conv_transpose2d(x, w, groups=2).flatten(-2), -2),
        (0, 2, 3),
        data=IMAGE,
        silent=("w",),
    ),
    "transposed convolution in groups, summed in threes": _one(
        (4, 6, 3, 3),
        lambda w, x: F.conv_transpose2d(x, w, groups=2).flatten(-2).unflatten(-2, (4, 3)).sum(-2),
        NOTHING,
        data=IMAGE,
    ),
    "transposed convolution in groups of two dims": _one(
        (2, 4, 5, 3, 3),
        lambda w, x: F.conv_transpose2d(torch.cat([x, x], -3), w.flatten(0, 1), groups=4),
        NOTHING,
        data=IMAGE,
    ),
    "a kernel that is repeated": _one(
        (5, 4, 3, 3),
        lambda w, x: F.conv2d(torch.cat([x, 2 * x], -3), w[:, None].expand(5, 2, 4, 3, 3).flatten(1, 2)),
        (1, 2, 3),
        data=IMAGE,
    ),
    "a learned image": Layer(
        {"image": (4, 6, 6), "w": (4, 4, 3, 3)},
        lambda p, x: x + F.conv2d(p.image[None], p.w, padding=1),
        {"image": LEFT, "w": (1, 2, 3)},
        data=IMAGE,
        silent=("image", "w"),
    ),
    "a blurred kernel": _one(
        (4, 4, 3, 3),
        lambda w, x: F.conv2d(x, F.conv2d(w, torch.ones(1, 1, 3, 3).expand(4, 1, 3, 3), padding=1, groups=4)),
        NOTHING,
        data=IMAGE,
    ),
    "unfolded": _one(
        (5, 36), lambda w, x: F.linear(F.unfold(x if x.dim() == 4 else x[None], 3).transpose(1, 2), w), (1,), data=IMAGE
    ),
    # forms of a weight
    "masked": _one((5, 7), lambda w, x: F.linear(x, w * _mask((5, 7))), (1,)),
    "masked, the mask broadcast": _one((5, 7), lambda w, x: F.linear(x, w * _mask((7,))), (1,)),
    "dropped weights, one mask": _one((7, 5), lambda w, x: x @ F.dropout(w, 0.5), (0,)),
    "dropped weights, a mask for each sample": _one(
        (5, 7), lambda w, x: torch.einsum("bi,boi->bo", x.reshape(-1, 7), w[None] * _mask((x.numel() // 7, 5, 7))),
        (1,), silent=("w",),
    ),
    "normalised": _one((5, 7), lambda w, x: F.linear(x, F.normalize(w, dim=1)), (1,)),
    "normalised by torch": Layer(
        {"v": (5, 7), "g": (5, 1)},
        lambda p, x: F.linear(x, torch._weight_norm(p.v, p.g)),
        {"v": (1,), "g": NOTHING},
    ),
    "before a normalisation by hand": _one(
        (7, 5), lambda w, x: (lambda y: (y - y.mean(-1, keepdim=True)).pow(2))(x @ w), (0,)
    ),
    "normalised to a magnitude": Layer(
        {"v": (5, 7), "g": (5, 1)},
        lambda p, x: F.linear(x, p.v / p.v.norm(dim=1, keepdim=True) * p.g),
        {"v": (1,), "g": NOTHING},
    ),
    "standardised": _one((5, 7), _standardised, (1,)),
    "positive": _one((7, 5), lambda w, x: x @ w.exp(), (0,)),
    "normalised by softmax": _one((7, 5), lambda w, x: x @ w.softmax(0), (0,)),
    "straight through": _one((5, 7), _straight_through, (1,)),
    "with noise": _one((5, 7), lambda w, x: F.linear(x, w + torch.ones(5, 7)), (1,)),
    "permuted rows": _one((5, 7), lambda w, x: F.linear(x, w[torch.arange(4, -1, -1)]), (1,), silent=("w",)),
    "repeated": _one(
        (5, 7), lambda w, x: F.linear(torch.cat([x, 2 * x], -1), w[:, None].expand(5, 2, 7).flatten(1)), (1,)
    ),
    "put together": Layer(
        {"a": (5, 7), "b": (3, 7)}, lambda p, x: F.linear(x, torch.cat([p.a, p.b])), {"a": (1,), "b": (1,)}
    ),
    "put together, alone": _one((5, 7), lambda w, x: F.linear(x, torch.cat([w])), (1,)),
    "put together with ones": _one(
        (4, 7), lambda w, x: F.linear(x, torch.cat([w, torch.ones(1, 7)])), (1,), silent=("w",)
    ),
    "put together along the inputs": Layer(
        {"a": (5, 4), "b": (5, 3)}, lambda p, x: F.linear(x, torch.cat([p.a, p.b], 1)), {"a": NOTHING, "b": NOTHING}
    ),
    "stacked": Layer(
        {"a": (5, 7), "b": (5, 7)},
        lambda p, x: F.linear(x, torch.stack([p.a, p.b]).flatten(0, 1)),
        {"a": (1,), "b": (1,)},
    ),
    # several products
    "split before its product": _one(
        (15, 7), lambda w, x: torch.cat([F.linear(x, part).tanh() for part in w.chunk(3)], -1), (1,), data=TOKENS
    ),
    "split unevenly before its product": _one(
        (15, 7), lambda w, x: torch.cat([F.linear(x, part).tanh() for part in w.split([9, 4, 2])], -1), (1,)
    ),
    "split, each part another way": _one(
        (14, 7), lambda w, x: (lambda one, other: F.linear(x, one) + x @ other)(*w.chunk(2)), NOTHING
    ),
    "used twice, once by gather": _one(
        (5, 7), lambda w, x: F.linear(x, w) + w.gather(1, torch.zeros(5, 1, dtype=torch.long)).T, NOTHING
    ),
    "split after its product": _one(
        (15, 7), lambda w, x: torch.stack(F.linear(x, w).chunk(3, -1)).tanh().sum(0), (1,), data=TOKENS
    ),
    "inputs that are split": _one(
        (8, 5), lambda w, x: x[..., :4] @ w[:4] + x[..., 4:] @ w[4:], (0,), data=(8,), silent=("w",)
    ),
    "used both ways": _one((7, 7), lambda w, x: (x @ w).tanh() @ w.T, NOTHING),
    "a bilinear form": _one((5, 4, 4), lambda w, x: F.bilinear(x, x, w), (1, 2), data=(4,)),
    "a bilinear form with a learned vector": Layer(
        {"w": (5, 4, 3), "q": (1, 3)},
        lambda p, x: F.bilinear(x, p.q.expand(*x.shape[:-1], 3), p.w),
        {"w": (1, 2), "q": NOTHING},
        data=(4,),
        silent=("w",),
    ),
    "an einsum of three": _one(
        (5, 4, 3), lambda w, x: torch.einsum("...i,oij,...j->...o", x, w, x[..., :3]), (1, 2), data=(4,)
    ),
    # products of parameters
    "B @ A": Layer(
        {"a": (2, 7), "b": (5, 2)}, lambda p, x: F.linear(x, p.b @ p.a), {"a": NOTHING, "b": NOTHING}
    ),
    "B @ A, from the left": Layer(
        {"a": (2, 7), "b": (5, 2)}, lambda p, x: (p.b @ p.a) @ x, {"a": NOTHING, "b": NOTHING}, data=(7, 4)
    ),
    "B @ A, as einsums": Layer(
        {"a": (2, 7), "b": (5, 2)},
        lambda p, x: torch.einsum("...i,oi->...o", x, torch.einsum("or,ri->oi", p.b, p.a)),
        {"a": NOTHING, "b": NOTHING},
    ),
    "B @ A, head by head": Layer(
        {"a": (3, 7, 2), "b": (3, 2, 5)},
        lambda p, x: torch.einsum("...hi,hio->...ho", x, torch.einsum("hrj,hir->hij", p.b, p.a)),
        {"a": NOTHING, "b": (1,)},
        data=(3, 7),
        silent=("b",),
    ),
    "a kernel of rank one": Layer(
        {"o": (5, 3), "i": (4, 3), "k": (3, 3)},
        lambda p, x: F.conv2d(x, torch.einsum("or,ir,kr->oik", p.o, p.i, p.k)[..., None]),
        {"o": NOTHING, "i": NOTHING, "k": NOTHING},
        data=IMAGE,
    ),
    "W + B @ A": Layer(
        {"w": (5, 7), "a": (2, 7), "b": (5, 2)},
        lambda p, x: F.linear(x, torch.addmm(p.w, p.b, p.a)),
        {"w": (1,), "a": NOTHING, "b": NOTHING},
        silent=("w",),
    ),
    "B @ A, as products and a sum": Layer(
        {"a": (2, 7), "b": (5, 2)},
        lambda p, x: (x[..., None, None, :] * (p.b[:, :, None] * p.a)).sum((-1, -2)),
        {"a": NOTHING, "b": NOTHING},
    ),
    "kron": Layer(
        {"a": (2, 7), "b": (3, 1)}, lambda p, x: F.linear(x, torch.kron(p.a, p.b)), {"a": NOTHING, "b": NOTHING}
    ),
    "two that are multiplied": Layer(
        {"a": (5, 7), "b": (5, 7)}, lambda p, x: F.linear(x, p.a * p.b), {"a": (1,), "b": (1,)}, silent=("a", "b")
    ),
    "a composed kernel": Layer(
        {"a": (5, 6, 1, 1), "b": (6, 4, 3, 3)},
        lambda p, x: F.conv2d(x, F.conv2d(p.b.transpose(0, 1), p.a).transpose(0, 1)),
        {"a": NOTHING, "b": NOTHING},
        data=IMAGE,
    ),
    "a penalty of diversity": _one((5, 7), lambda w, x: F.linear(x, w) + (w @ w.T - torch.eye(5)).pow(2).sum(), NOTHING),
    "a penalty of its norm": _one((5, 7), lambda w, x: F.linear(x, w) + w.norm(), (1,)),
    # weights made of the data
    "StyleGAN2": Layer(
        {"w": (5, 4, 3, 3), "style": (4, 4)},
        lambda p, x: _style(p, x if x.dim() == 4 else x[None]),
        {"w": (1, 2, 3), "style": (0,)},
        data=IMAGE,
        silent=("w", "style"),
    ),
    "CondConv": Layer(
        {"experts": (2, 5, 4, 3, 3), "route": (4, 2)},
        lambda p, x: _cond_conv(p, x if x.dim() == 4 else x[None]),
        {"experts": NOTHING, "route": (0,)},
        data=IMAGE,
    ),
    "matrices mixed for each sample": Layer(
        {"w": (3, 5, 7), "route": (7, 3)},
        lambda p, x: torch.einsum("boi,bi->bo", torch.einsum("be,eoi->boi", (x @ p.route).softmax(-1), p.w), x),
        {"w": NOTHING, "route": (0,)},
    ),
    "a base and a change for each sample": Layer(
        {"w": (5, 7), "change": (7, 35)},
        lambda p, x: torch.einsum("boi,bi->bo", p.w + (x @ p.change).unflatten(-1, (5, 7)), x),
        {"w": NOTHING, "change": NOTHING},
    ),
    "noise for each sample": _one(
        (5, 7), lambda w, x: ((w + torch.ones(*x.shape[:-1], 5, 7)) * x[..., None, :]).sum(-1), (1,), silent=("w",)
    ),
    # no sets of weight vectors
    "positions": _one((5, 7), lambda w, x: (x + w).tanh(), LEFT, data=TOKENS),
    "positions, then a layer": Layer(
        {"w": (5, 7), "m": (7, 3)}, lambda p, x: (x + p.w) @ p.m, {"w": LEFT, "m": (0,)}, data=TOKENS
    ),
    "positions of a mean, then a layer": Layer(
        {"w": (5, 7), "m": (7, 3)},
        lambda p, x: (x.reshape(-1, 5, 7).mean(0) + p.w) @ p.m,
        {"w": LEFT, "m": (0,)},
        data=TOKENS,
    ),
    "doubled again and again": _one((5, 7), _doubled, LEFT, data=TOKENS),
    "a scale beside the data": _one((5, 7), lambda w, x: torch.cat([x * w, x], -1), LEFT, data=TOKENS),
    "a table that the data mix": _one((9, 7), lambda w, x: x @ w[torch.arange(5)], NOTHING, data=(5,)),
    "a scale": _one((5, 7), lambda w, x: (x * w).tanh(), LEFT, data=TOKENS),
    "a scale of a mean": _one((5, 7), lambda w, x: x.reshape(-1, 5, 7).mean(0) * w, LEFT, data=TOKENS),
    "a scale and a sum over the batch": _one((5, 7), lambda w, x: (x * w).tanh().sum(0), LEFT, data=TOKENS),
    "LayerNorm over two dims": _one((5, 7), lambda w, x: F.layer_norm(x, (5, 7), w), LEFT, data=TOKENS),
    "a table by distance": Layer({"table": (9, 2)}, _windows, {"table": LEFT}, data=TOKENS),
    "an embedding": _one((5, 7), lambda w, x: x + F.embedding(_places(x, 5), w), (1,), data=TOKENS),
    "an embedding of several": _one(
        (5, 7), lambda w, x: x.mean(-2) + F.embedding_bag(_places(x, 5).reshape(-1, 5), w).view_as(x[..., 0, :]), (1,),
        data=TOKENS,
    ),
    "an embedding that is tied": _one(
        (5, 7), lambda w, x: (x + F.embedding(_places(x, 5), w)).tanh() @ w.T, (1,), data=TOKENS
    ),
    "a table": _one((5, 7), lambda w, x: x + w[_places(x, 5)], LEFT, data=TOKENS),
    "a table of vectors that are multiplied with the data": _one(
        (5, 7), lambda w, x: (x * w[_places(x, 5)]).sum(-1), (1,), data=TOKENS
    ),
    "a table by distance as a matrix": _one(
        (9, 2),
        lambda w, x: w[torch.arange(5)[:, None] - torch.arange(5) + 4].permute(2, 0, 1) @ x.unsqueeze(-3),
        NOTHING, data=TOKENS,
    ),
    "what a mask selects": _one((7, 7), lambda w, x: x @ w[torch.eye(7, dtype=torch.bool)], NOTHING, data=TOKENS),
    "two scales of a table": _one((9, 7), lambda w, x: x * w[torch.arange(2)], LEFT, data=(2, 7)),
    "one shift of a table": _one((2, 7), lambda w, x: x + w[torch.tensor([1])], LEFT, data=TOKENS),
    "a table, by embedding": _one((9, 7), lambda w, x: x + F.embedding(torch.arange(5), w), (1,), data=TOKENS),
    "a table, by index_select": _one(
        (9, 7), lambda w, x: x + w.index_select(0, torch.arange(5)), LEFT, data=TOKENS
    ),
    "a table, by gather": _one(
        (9, 7), lambda w, x: x + w.gather(0, torch.arange(35).reshape(5, 7) % 9), LEFT, data=TOKENS, silent=("w",)
    ),
    "a table, by its first and last dim": _one(
        (3, 7, 4), lambda w, x: x + w[torch.arange(5) % 3, :, torch.arange(5) % 4], LEFT, data=TOKENS, silent=("w",)
    ),
    "a table, through a layer": Layer(
        {"table": (9, 7), "w": (7, 7)},
        lambda p, x: x + p.table[torch.arange(5)] @ p.w,
        {"table": LEFT, "w": (0,)},
        data=TOKENS,
        silent=("w",),
    ),
    "a row of biases": _one(
        (2, 5), lambda w, x: F.conv2d(x, torch.ones(5, 4, 3, 3), w[0]).tanh(), LEFT, data=IMAGE
    ),
    "a bias of scores": _one((5, 5), _biased_scores, LEFT, data=TOKENS),
    "a decay": Layer({"a_log": (7, 3), "d": (7,)}, _mamba, {"a_log": LEFT, "d": LEFT}, data=TOKENS),
    "memory keys and values": Layer(
        {"keys": (2, 7), "values": (2, 7)}, _memory, {"keys": LEFT, "values": LEFT}, data=TOKENS
    ),
    "latents": Layer(
        {"latents": (3, 7), "q": (7, 4), "k": (7, 4), "v": (7, 4)},
        _latents,
        {"latents": LEFT, "q": (0,), "k": (0,), "v": (0,)},
        silent=("q",),
        data=TOKENS,
    ),
    "queries of attention": _one((5, 7), _queries, LEFT, data=TOKENS, silent=("w",)),
    "scales and shifts of a step in time": _one(
        (2, 7), lambda w, x: (lambda s: x * (1 + s[..., :1, :]) + s[..., 1:, :])(w + x.mean(-2, keepdim=True)), LEFT,
        data=TOKENS,
    ),
    "latents through a weight that is normed by its spectrum": Layer(
        {"latents": (5, 7), "w": (7, 7)},
        lambda p, x: x + F.linear(p.latents, _spectrally_normed(p.w)),
        {"latents": LEFT, "w": NOTHING},
        data=TOKENS, silent=("latents",),
    ),
    "latents through such a weight, as an einsum": Layer(
        {"latents": (5, 7), "w": (7, 7)},
        lambda p, x: x + torch.einsum("nd,od->no", p.latents, _spectrally_normed(p.w)),
        {"latents": LEFT, "w": NOTHING},
        data=TOKENS, silent=("latents",),
    ),
    "latents through a constant and a weight": Layer(
        {"latents": (5, 7), "a": (2, 7)},
        lambda p, x: x + F.linear(p.latents, torch.ones(7, 2) @ p.a),
        {"latents": LEFT, "a": NOTHING},
        data=TOKENS, silent=("latents",),
    ),
    "latents in columns": Layer(
        {"latents": (7, 5), "w": (7, 7)},
        lambda p, x: x + (p.w @ p.latents).T,
        {"latents": LEFT, "w": NOTHING},
        data=TOKENS, silent=("latents",),
    ),
    "positions, mixed from the left": Layer(
        {"positions": (1, 5, 7), "w": (4, 5)},
        lambda p, x: torch.einsum("mn,...nd->...md", p.w, x + p.positions),
        {"positions": LEFT, "w": (1,)},
        data=TOKENS,
    ),
    "tokens in place of the data": _one(
        (5, 7), lambda w, x: torch.where(x[..., :1] > 0, w, x).mean(-1), LEFT, data=TOKENS
    ),
    "a step towards a parameter": _one((5, 7), lambda w, x: torch.lerp(x, w.expand_as(x), 0.3).mean(-1), LEFT, data=TOKENS),
    "products that are added to it": _one((5, 7), lambda w, x: torch.addcmul(w, x, x).mean(-1), LEFT, data=TOKENS),
    "attention of a graph": Layer(
        {"w": (7, 8), "att": (1, 2, 4)}, _gat, {"w": (0,), "att": (2,)}, data=TOKENS
    ),
    "centres, of one point": _one(
        (5, 7), lambda w, x: (x.reshape(-1, 7).mean(0) - w).pow(2).sum(-1), NOTHING
    ),
    "centres": _one((5, 7), lambda w, x: (x[..., None, :] - w).pow(2).sum(-1), NOTHING),
    "centres of radial functions": _one((5, 7), _radial, NOTHING),
    # not readable
    "a custom function": _one((7, 5), lambda w, x: Double.apply(x, w), NOTHING, data=TOKENS),
    "after a custom function": Layer(
        {"a": (7, 5), "b": (5, 3)}, lambda p, x: Double.apply(x, p.a) @ p.b, {"a": NOTHING, "b": (0,)},
        data=TOKENS,
    ),
    "a Fourier transform": _one((7, 5), lambda w, x: x @ torch.fft.fft(w).real, NOTHING),
    "the gradient of what it gives": _one((7, 5), _gradient_penalty, NOTHING),
}  # fmt: skip


def parameters(
    layer: Layer, others: str = "trained", alone: str = ""
) -> tuple[dict[str, Tensor], SimpleNamespace, list[Tensor]]:
    """The parameters of a layer, what its forward is given, and all parameters that there are.

    All but `alone` are trained, frozen, or weight-normed.
    """
    torch.manual_seed(0)
    made = {name: torch.nn.Parameter(torch.randn(shape) / 3) for name, shape in layer.shapes.items()}
    given: dict[str, Tensor] = dict(made)
    magnitudes: list[Tensor] = []
    for name, parameter in made.items():
        if name != alone and others == "frozen":
            parameter.requires_grad_(False)
        if name != alone and others == "weight-normed":
            magnitudes.append(torch.nn.Parameter(torch.ones(parameter.shape[0], *[1] * (parameter.dim() - 1))))
            made_of = parameter / parameter.reshape(len(parameter), -1).norm(dim=1).reshape(magnitudes[-1].shape)
            given[name] = made_of * magnitudes[-1]
    return made, SimpleNamespace(**given), [*made.values(), *magnitudes]
