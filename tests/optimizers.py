"""Optimizers that wrap another one, as other packages have them."""

from __future__ import annotations

from collections import OrderedDict

import torch


class SharpnessAware(torch.optim.Optimizer):
    """As many of its implementations: the base optimizer shares its groups, and takes the step."""

    def __init__(self, parameters, base, **kwargs):
        super().__init__(parameters, kwargs)
        self.base = base(self.param_groups, **kwargs)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["old"] = parameter.clone()
            parameter.add_(parameter.grad, alpha=0.5)

    @torch.no_grad()
    def second_step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter]["old"])
        self.base.step()

    def step(self, closure):
        self.first_step()
        closure()
        self.second_step()


def wraps_another(base):
    """As timm's Lookahead, it leaves the constructor of torch's Optimizer out. Of a class of its own, not stepped yet."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, base):
            self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
            self.base, self.param_groups, self.defaults, self.state = base, base.param_groups, base.defaults, base.state

        def step(self, closure=None):
            return self.base.step(closure)

    return Wrapper(base)
