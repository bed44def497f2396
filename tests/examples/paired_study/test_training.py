"""Every setting that is not of images trains in each of its arms, and the arms of a seed differ in the callback alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.examples.paired_study.parts import part

problems, settings, training = part("problems"), part("settings"), part("training")
pytestmark = pytest.mark.filterwarnings("ignore")
TASKS = {**settings.LANGUAGE, **settings.REGRESSION, **settings.FINE_TUNING}


@pytest.fixture(autouse=True)
def short_schooling(monkeypatch):
    monkeypatch.setattr(training, "SCHOOLING_STEPS", 2)


def two_steps(name: str):
    setting = TASKS[name]
    return replace(setting, steps=min(setting.steps, 2), head_steps=min(setting.head_steps, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_each_setting_trains_for_two_steps(name):
    setting = two_steps(name)
    runs = {arm: training.train(setting, arm, 0) for arm in settings.arms_of(name)}
    afterwards = ["wide"] if name.startswith("field") else []
    assert [*runs] == ["none", "gradient", "update", "trunk"][: 4 if setting.steps else 3] + afterwards
    for run in runs.values():
        assert len(run["train_losses"]) == bool(setting.steps) * 2 + bool(setting.head_steps) * 2
        assert all(torch.tensor([*run["train_losses"], run["test_error"]]).isfinite())
        assert run["train_losses"][0] == runs["none"]["train_losses"][0], "the first loss is before the first update"
    if name != "code-head-adamw-constant":  # after a LayerNorm, next to nothing is removed from the last layer
        assert all(runs[arm]["test_error"] != runs["none"]["test_error"] for arm in runs if arm != "none")


@pytest.mark.parametrize("name", ["language-adamw", "field-adamw", "burgers-adamw"])
def test_the_trunk_arm_centralizes_all_but_the_last_layer(name):
    from lightning_gc import select

    problem = problems.PROBLEMS[TASKS[name].problem](torch.Generator().manual_seed(0))
    module = training.Learner(problem.trunk, problem.head, problem.loss, TASKS[name])
    everything = {entry.name for entry in select(module).centralized}
    taken = {entry.name for entry in select(module, exclude=settings.ARMS["trunk"]["exclude"]).centralized}
    assert everything - taken == {"head.weight"}
    assert taken


@pytest.mark.parametrize("name", ["digits-all-adamw", "code-all-adamw"])
def test_the_head_is_trained_alone_first(name, monkeypatch):
    trained = []

    def fit(module, batches, callbacks):
        before = {key: p.detach().clone() for key, p in module.named_parameters()}
        real(module, batches, callbacks)
        changed = {key.split(".")[0] for key, p in module.named_parameters() if not torch.equal(p, before[key])}
        trained.append(changed)

    real = training.fit
    monkeypatch.setattr(training, "fit", fit)
    training.train(two_steps(name), "gradient", 0)
    assert trained == [{"trunk", "head"}, {"head"}, {"trunk", "head"}]


def rates(schedule: str, steps: int) -> list[float]:
    """The learning rate of each step."""
    seen = []

    class Watch(training.Callback):
        def on_train_batch_start(self, trainer, *args):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    setting = settings.Setting("field", steps, "adamw", 1.0, schedule)
    problem, generator = training.begin(setting, 0)
    module = training.Learner(problem.trunk, problem.head, problem.loss, setting)
    training.fit(module, training.Draws(problem.data, 8, steps, generator), [Watch()])
    return seen


def test_schedules():
    assert rates("constant", 7) == [1.0] * 7
    cosine = rates("cosine", 10)
    assert cosine[0] == 1.0
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] < 0.03
    restarts = rates("restarts", 14)
    assert [step for step, rate in enumerate(restarts) if rate == 1.0] == [0, 2, 6]


def test_first_norms_are_of_each_layer_and_of_all():
    found = training.first_norms(replace(TASKS["field-adamw"], steps=60), 0)
    assert [*found] == ["total", "trunk.0.weight", "trunk.2.weight", "trunk.4.weight", "head.weight"]
    assert all(0 < share < 1 for share in found.values())


def test_the_run_of_first_steps_stops_after_them():
    setting = replace(TASKS["field-adamw"], steps=80)
    problem, generator = training.begin(setting, 0)
    _, callbacks = part("norms").observers()
    module = training.Learner(problem.trunk, problem.head, problem.loss, setting)
    training.fit(module, training.Draws(problem.data, 8, 80, generator), callbacks)
    assert len(module.losses) == part("norms").STEPS == 50


def test_a_regression_is_judged_by_its_relative_error():
    problem = problems.PROBLEMS["field"](torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(problem.head.weight)
    torch.nn.init.zeros_(problem.head.bias)
    assert training.test(problem) == {"test_error": pytest.approx(0.0, abs=1e-7)}, "zero is wrong by 100 %: log10 of 1"
