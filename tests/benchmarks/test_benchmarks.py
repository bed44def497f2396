"""The benchmarks run, and report what they measured. How fast anything is, no test says."""

from __future__ import annotations

import csv
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule

from benchmarks import sets, steps, timing
from benchmarks.__main__ import main
from benchmarks.contenders import AUTHORS, BARE, FLOOR, MEASURED, references
from benchmarks.networks import NETWORKS, READ, Network
from benchmarks.shapes import SETS, GradientSet, conv, linear
from benchmarks.step import BETWEEN, LOG_DICT, OURS, PER_PARAMETER, TOTAL, in_trainer

CPU = torch.device("cpu")
SMALL = GradientSet("small", (linear(4, 6), conv(3, 2, 3), linear(4, 6)))


@pytest.fixture
def small(monkeypatch):
    """One set and one network that take no time."""
    network = Network(lambda: torch.nn.Linear(6, 3), lambda: (torch.randn(4, 6), torch.randint(3, (4,))), 2)
    for table, value in ((SETS, lambda: SMALL), (NETWORKS, network), (READ, network)):
        for name in table:
            monkeypatch.setitem(table, name, value)


def test_the_command_prints_tables_and_writes_csv_and_a_plot(small, tmp_path, capsys):
    arguments = ["--sets", "tiny", "--networks", "small GPT, batch 16", "--seconds", "0", "--rounds", "7"]
    main([*arguments, "--chunks", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "threads: 1" in printed
    assert f"torch {torch.__version__}" in printed
    assert "| small | ours |" in printed
    assert "| small GPT, batch 16 | 2 |" in printed
    assert "| ResNet-152 | " in printed
    assert (tmp_path / "reading.csv").exists()
    with (tmp_path / "sets-cpu.csv").open() as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
    assert {FLOOR, AUTHORS, BARE, MEASURED, OURS, TOTAL, PER_PARAMETER, BETWEEN, LOG_DICT} <= rows.keys()
    assert float(rows[AUTHORS]["ratio"]) == 1.0
    assert float(rows[TOTAL]["to_ours_alone"]) < float(rows[TOTAL]["to_ours"])
    assert rows[OURS]["elements"] == str(4 * 6 + 3 * 2 * 9 + 4 * 6)
    assert (tmp_path / "steps-cpu.csv").exists()
    assert (tmp_path / "sets-cpu.svg").read_text().startswith("<?xml")


def test_every_contender_centralizes_but_the_floor_and_lightning(tmp_path):
    checked = []

    def measure(gradients, ours):
        for name, call in (references(gradients) | ours).items():
            if name.startswith("optax"):
                continue  # has arrays of its own
            torch.manual_seed(0)
            for gradient, _ in gradients:
                gradient.normal_(1)
            before = [gradient.clone() for gradient, _ in gradients]
            call()
            for (gradient, dims), old in zip(gradients, before, strict=True):
                expected = old if name == FLOOR else old - old.mean(dims, keepdim=True)
                torch.testing.assert_close(gradient, expected)
            checked.append(name)

    in_trainer(SMALL, CPU, measure, tmp_path)
    assert {FLOOR, AUTHORS, BARE, MEASURED, OURS, TOTAL, PER_PARAMETER, BETWEEN} <= set(checked)


def test_extra_memory_is_what_torch_holds_at_once():
    one, other = torch.zeros(1000), torch.zeros(1000)
    assert timing.peak_extra_memory(lambda: one.add_(other), CPU) < 100
    assert 4000 <= timing.peak_extra_memory(lambda: one.add_(other + 1), CPU) < 4500


def test_contenders_take_turns():
    calls: list[str] = []
    contenders = {name: partial(calls.append, name) for name in "abc"}
    times = iter(range(10_000))
    samples = timing.interleave(contenders, rounds=9, seconds=0, sync=lambda: None, clock=lambda: float(next(times)))
    assert [len(found) for found in samples.values()] == [7, 7, 7]
    turns = calls[9:]  # three calls each to see how long they take
    assert [sorted(turns[i : i + 6]) for i in range(0, len(turns), 6)] == [list("aabbcc")] * 7


def test_ratios_are_of_the_same_round():
    quartiles = timing.ratios([1.0, 4.0, 90.0], [2.0, 8.0, 180.0])
    assert quartiles == timing.Quartiles(0.5, 0.5, 0.5)


def test_steps_are_timed_with_and_without(small, tmp_path):
    (row,) = steps.run(["ResNet-20, batch 64"], CPU, tmp_path, chunks=2, clock=timing.CLOCKS["wall"])
    assert row["steps"] == 4
    assert 0 < row["hook_us"] < row["with_us"]
    assert row["hook_share"] == pytest.approx(row["hook_us"] / row["without_us"])


def test_the_hooks_python_time_is_reported_for_small_sets():
    rows = [
        {
            "set": name,
            "contender": contender,
            "over_bare_us": 50.0 if contender == OURS else None,
            "fastest_us": 140.0 if contender == OURS else 100.0,
            "dtype": "float32",
            "elements": size,
        }
        for name, size in (("small", 10), ("large", 10**8))
        for contender in (BARE, OURS)
    ]
    (line,) = sets.python_time(rows)
    assert line.startswith("- small: the hook takes 50 µs more")
    assert "40 µs" in line


def test_what_lightning_takes_to_log_is_left_out():
    """Of 5 seconds, with 2 for the step itself, and 3 for one that logs constants."""
    samples = {TOTAL: [5.0] * 3, LOG_DICT: [3.0] * 3, OURS: [2.0] * 3}
    assert sets._without_lightning(samples) == (5 - (3 - 2)) / 2


@pytest.mark.parametrize(("name", "logged"), [(OURS, 0), (TOTAL, 3), (PER_PARAMETER, 9), (BETWEEN, 0), (LOG_DICT, 3)])
def test_every_call_of_a_contender_is_a_step(tmp_path, monkeypatch, name, logged):
    names = []
    log_dict = LightningModule.log_dict
    monkeypatch.setattr(
        LightningModule,
        "log_dict",
        lambda self, values, **kw: (names.append(list(values)), log_dict(self, values, **kw)),
    )

    def measure(gradients, ours):
        for _ in range(2):
            ours[name]()

    in_trainer(GradientSet("two", (linear(4, 6), linear(3, 5))), CPU, measure, tmp_path)
    assert [len(of_step) for of_step in names] == ([logged] * 2 if logged else [])
