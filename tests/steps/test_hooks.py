"""Where in the optimizer's step the hooks act."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gc.steps.hooks import after_closure, after_step, around_step


@pytest.fixture
def events():
    return []


@pytest.fixture
def optimizer(events):
    class Noted(torch.optim.SGD):
        """Notes when its arithmetic runs."""

        def step(self, closure=None, note="step"):
            loss = closure() if closure is not None else None
            events.append(note)
            return loss

    return Noted([nn.Parameter(torch.ones(2, 2))], lr=0.1)


def noting(events, name):
    def act(optimizer, first=True):
        events.append((name, type(optimizer).__name__) if first else (name, type(optimizer).__name__, "again"))

    return act


def test_after_closure_without_a_closure_is_at_the_start(optimizer, events):
    after_closure(optimizer, noting(events, "act"))
    optimizer.step()
    assert events == [("act", "Noted"), "step"]


@pytest.mark.parametrize("call", ["position", "keyword", "more"])
def test_after_closure_acts_between_closure_and_arithmetic(optimizer, events, call):
    def closure():
        events.append("closure")
        return 3.0

    after_closure(optimizer, noting(events, "act"))
    if call == "position":
        assert optimizer.step(closure) == 3.0
    elif call == "keyword":
        assert optimizer.step(closure=closure) == 3.0
    else:
        assert optimizer.step(closure, "more") == 3.0
    assert events == ["closure", ("act", "Noted"), "more" if call == "more" else "step"]


def test_after_closure_acts_after_each_call_of_the_closure(events):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([parameter], max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**4).sum()
        loss.backward()
        events.append("closure")
        return loss

    after_closure(optimizer, noting(events, "act"))
    optimizer.step(closure)
    assert len(events) >= 4
    assert events[::2] == ["closure"] * (len(events) // 2)
    assert events[1::2] == [("act", "LBFGS")] * (len(events) // 2)


def test_around_step(optimizer, events):
    around_step(optimizer, noting(events, "before"), noting(events, "after"))
    optimizer.step()
    assert events == [("before", "Noted"), "step", ("after", "Noted")]


def test_around_step_is_not_entered_where_the_weights_were_moved_before_the_closure(events):
    class Ascends(torch.optim.SGD):
        """Sharpness-aware minimisation: the gradient is taken elsewhere."""

        def step(self, closure=None):
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1)
            closure()

    optimizer = Ascends([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    around_step(optimizer, noting(events, "before"), noting(events, "after"))
    for _ in range(2):
        optimizer.step(lambda: None)
    assert events == [("after", "Ascends", "again")] * 2


class Inner(torch.optim.SGD):
    pass


class Outer(Inner):
    """Its step calls the closure, and then the step of its base, around which torch runs the hooks too."""

    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        super().step()


class OuterThatPassesTheClosureOn(Inner):
    def step(self, closure=None):
        super().step(closure)


def nested_optimizer(kind):
    parameter = nn.Parameter(torch.ones(2, 2))
    Inner([parameter], lr=0.1)  # from the first Inner on, torch runs hooks around Inner.step
    return kind([parameter], lr=0.1)


@pytest.mark.parametrize("kind", [Outer, OuterThatPassesTheClosureOn])
@pytest.mark.parametrize("with_closure", [False, True])
def test_a_step_within_a_step_acts_again_and_says_so(kind, with_closure, events):
    """In every step: what a step found must not depend on those before it."""
    optimizer = nested_optimizer(kind)
    act, noted = noting(events, "act"), []
    after_closure(optimizer, act)
    around_step(optimizer, lambda _: None, noting(noted, "after"))
    after_step(optimizer, noting(noted, "once"))
    for _ in range(3):
        optimizer.step(*([lambda: None] if with_closure else []))
    assert events == [("act", kind.__name__), ("act", kind.__name__, "again")] * 3
    assert noted == [("after", kind.__name__), ("after", kind.__name__, "again"), ("once", kind.__name__)] * 3


def test_after_a_step_that_raised_the_next_one_is_as_any_other(events):
    class Raises(torch.optim.SGD):
        fail = True

        def step(self, closure=None):
            if self.fail:
                raise RuntimeError("on purpose")

    optimizer = Raises([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    around_step(optimizer, noting(events, "before"), noting(events, "after"))
    with pytest.raises(RuntimeError, match="on purpose"):
        optimizer.step()
    optimizer.fail = False
    optimizer.step()
    assert events == [("before", "Raises"), ("before", "Raises"), ("after", "Raises")]


def test_after_step(optimizer, events):
    after_step(optimizer, noting(events, "after"))
    optimizer.step()
    assert events == ["step", ("after", "Noted")]


def test_removed_hooks_act_no_more(optimizer, events):
    act = noting(events, "act")
    handles = [*after_closure(optimizer, act), *around_step(optimizer, act, act), *after_step(optimizer, act)]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert events == ["step"]
