"""What is planned for each optimizer, and when it is planned anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gc import select
from lightning_gc.engines import parameters_of
from lightning_gc.steps.plan import NO_OPTIMIZER, Planner, match_to_optimizers, optimizer_names


def planner(module, *optimizers, **kwargs) -> Planner:
    held = list(optimizers)
    made = Planner(lambda: select(module), lambda: held, **kwargs)
    made.held = held  # for tests to change
    return made


def names(plan) -> list[str]:
    return [entry.name for entry in plan.store.entries]


@pytest.fixture
def module():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_plan_has_the_selected_parameters_of_its_optimizer_alone(module):
    first = torch.optim.SGD(module[0].parameters(), lr=0.1)
    second = torch.optim.SGD(module[2].parameters(), lr=0.1)
    made = planner(module, first, second)
    assert names(made.plan_for(first)) == ["0.weight"]
    assert names(made.plan_for(second)) == ["2.weight"]


def test_a_plan_is_kept_while_the_parameters_are_the_same(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    made = planner(module, optimizer)
    plan = made.plan_for(optimizer)
    optimizer.param_groups[0]["lr"] = 0.2
    module[0].requires_grad_(False)
    assert made.plan_for(optimizer) is plan
    assert names(plan) == ["0.weight", "2.weight"]


def test_a_group_that_is_added_is_planned_for(module):
    optimizer = torch.optim.SGD(module[2].parameters(), lr=0.1)
    made = planner(module, optimizer)
    assert names(made.plan_for(optimizer)) == ["2.weight"]
    assert {e.name: e.reason for e in made.selection}["0.weight"] == NO_OPTIMIZER
    optimizer.add_param_group({"params": module[0].parameters()})
    assert names(made.plan_for(optimizer)) == ["2.weight", "0.weight"]
    assert {e.name: e.reason for e in made.selection}["0.weight"] == ""


def test_a_parameter_that_is_replaced_is_planned_for(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    made = planner(module, optimizer)
    made.plan_for(optimizer)
    module[2].weight = nn.Parameter(torch.zeros(2, 4))
    optimizer.param_groups[0]["params"][4] = module[2].weight
    assert made.plan_for(optimizer).store.entries[1].parameter is module[2].weight


def test_a_lazy_parameter_is_planned_for_once_it_has_a_shape():
    module = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    made = planner(module, optimizer)
    plan = made.plan_for(optimizer)
    assert names(plan) == ["0.weight"]
    assert made.plan_for(optimizer) is plan
    module(torch.zeros(1, 3))
    assert names(made.plan_for(optimizer)) == ["0.weight", "1.weight"]


def test_an_optimizer_that_takes_the_place_of_another_takes_its_name(module):
    old, new = (torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(2))
    made = planner(module, old)
    assert made.plan_for(old).prefix == "gc"
    made.held[:] = [new]
    assert made.plan_for(new).prefix == "gc"
    assert made.plan_for(made.held[0]) is made.plan_for(new)


def test_an_optimizer_that_is_not_among_those_of_the_trainer_is_planned_for_too(module):
    known = torch.optim.SGD(module[0].parameters(), lr=0.1)
    other = torch.optim.Adam(module[2].parameters())
    made = planner(module, known)
    plan = made.plan_for(other)
    assert (names(plan), plan.prefix) == (["2.weight"], "gc/Adam")


def test_prefixes(module):
    first, second = (torch.optim.Adam(layer.parameters()) for layer in (module[0], module[2]))
    alone = planner(module, first, prefix="centred")
    assert alone.plan_for(first).prefix == "centred"
    both = planner(module, first, second, prefix="centred")
    assert [both.plan_for(o).prefix for o in (first, second)] == ["centred/Adam", "centred/Adam-1"]


def test_names_are_those_of_the_learning_rate_monitor(module):
    kinds = [torch.optim.Adam, torch.optim.SGD, torch.optim.Adam, torch.optim.Adam]
    made = [kind(module.parameters(), lr=0.1) for kind in kinds]
    assert list(optimizer_names(made).values()) == ["Adam", "SGD", "Adam-1", "Adam-2"]


@pytest.mark.parametrize(("per_parameter", "wanted"), [(True, ["0.weight", "2.weight"]), (False, [])])
def test_each_parameter_is_measured_by_itself_if_asked_for(module, per_parameter, wanted):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert planner(module, optimizer, per_parameter=per_parameter).plan_for(optimizer).logged_names == wanted


def test_parameters_that_only_an_optimizer_holds(module):
    extra = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 1))]
    optimizer = torch.optim.SGD([*module[2].parameters(), *extra], lr=0.1)
    found = {e.name: e for e in match_to_optimizers(select(module), [optimizer], takes_foreign=True)}
    assert found["SGD.param_2"].layout.dims == (1,)
    assert found["SGD.param_2"].layout.source == "assumed"
    assert "fewer than 2 dims" in found["SGD.param_3"].reason
    assert not found["SGD.param_4"].centralized
    left = {e.name: e for e in match_to_optimizers(select(module), [optimizer], takes_foreign=False)}
    assert left["SGD.param_2"].reason == "not included"
    assert not left["SGD.param_2"].centralized


def test_a_frozen_parameter_in_no_optimizer_is_called_frozen(module):
    module[0].requires_grad_(False)
    found = {e.name: e for e in match_to_optimizers(select(module), [], takes_foreign=True)}
    assert found["0.weight"].reason.startswith("frozen")
    assert found["2.weight"].reason == NO_OPTIMIZER
    assert parameters_of(torch.optim.SGD([{"params": [module[0].bias]}, {"params": [module[2].bias]}], lr=1)) == [
        module[0].bias,
        module[2].bias,
    ]
