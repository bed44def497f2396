"""Optimizers with Gradient Centralization inside, written from the published formulas, for comparison.

``P`` subtracts from each weight vector its mean, ``λ`` is the weight decay. The formulas are those of Yong et al.
(2020) for SGD (P of the gradient with its weight decay) and of the authors' released optimizers for Adam and AdamW,
where ``gc_loc`` says whether P comes before the moments or is applied to the whole step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def project(g: Tensor) -> Tensor:
    """P, for weight vectors that span all dims but the first; parameters of one dim are left alone."""
    if g.dim() < 2:
        return g
    return g - (g.flatten(1).sum(1) / g[0].numel()).view(-1, *[1] * (g.dim() - 1))


class Formula(torch.optim.Optimizer):
    """Calls `direction`, the step without its learning rate, for each parameter."""

    def __init__(self, params: Iterable[Tensor], lr: float, **constants: object) -> None:
        super().__init__(params, {"lr": lr, **constants})

    def step(self, closure=None):
        loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for w in group["params"]:
                    state = self.state[w]
                    state["t"] = state.get("t", 0) + 1
                    w -= group["lr"] * self.direction(w.grad, w, state, **group)
        return loss


class AuthorsSGD(Formula):
    """Buffer: b ← P(g + λw) in the first step, μb + (1 - τ) P(g + λw) after."""

    def direction(self, g, w, state, *, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, **_):
        d = project(g + weight_decay * w)
        if not momentum:
            return d
        state["b"] = d if state["t"] == 1 else momentum * state["b"] + (1 - dampening) * d
        return d + momentum * state["b"] if nesterov else state["b"]


def adam_ratio(g: Tensor, state: dict, betas: tuple[float, float], eps: float) -> Tensor:
    """Kingma and Ba (2015): bias-corrected first moment over the root of the second."""
    m = state.get("m", torch.zeros_like(g))
    v = state.get("v", torch.zeros_like(g))
    state["m"] = betas[0] * m + (1 - betas[0]) * g
    state["v"] = betas[1] * v + (1 - betas[1]) * g * g
    m_hat = state["m"] / (1 - betas[0] ** state["t"])
    v_hat = state["v"] / (1 - betas[1] ** state["t"])
    return m_hat / (v_hat.sqrt() + eps)


class AuthorsAdam(Formula):
    """L2 decay. ``gc_loc``: the moments of P(g + λw). Otherwise: P(ratio of the moments of g + λw)."""

    def direction(self, g, w, state, *, gc_loc, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, **_):
        g = g + weight_decay * w
        ratio = adam_ratio(project(g) if gc_loc else g, state, betas, eps)
        return ratio if gc_loc else project(ratio)


class AuthorsAdamW(Formula):
    """Decoupled decay. ``gc_loc``: ratio(P(g)) + λw. Otherwise: P(ratio(g) + λw).

    The authors' code subtracts ``lr / (1 - β₁ᵗ)`` times the sum of the biased ratio and λw, so that its decay is
    λ / (1 - β₁ᵗ), ten times λ in the first step. That is `decay_is_corrected`; without it, the decay is that of
    Loshchilov and Hutter (2019) and of torch.
    """

    def direction(
        self,
        g,
        w,
        state,
        *,
        gc_loc,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        eps=1e-8,
        decay_is_corrected=False,
        **_,
    ):
        if decay_is_corrected:
            weight_decay = weight_decay / (1 - betas[0] ** state["t"])
        ratio = adam_ratio(project(g) if gc_loc else g, state, betas, eps) + weight_decay * w
        return ratio if gc_loc else project(ratio)
