"""Names that differ in a number alone are written as one."""

from __future__ import annotations

import itertools

import pytest

from lightning_gc.selection.fold import fold


def folded(names: list[str], kinds: list[str] | None = None) -> list[str]:
    return [name for name, _ in fold(names, kinds or ["same"] * len(names))]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["a"], ["a"]),
        (["a.0"], ["a.0"]),
        (["a.0", "a.1"], ["a.0", "a.1"]),  # two are as easily read
        (["a.0", "a.1", "a.2"], ["a.{0..2}"]),
        (["0.w", "1.w", "2.w"], ["{0..2}.w"]),
        (["a.0", "a.3", "a.6"], ["a.{0..6..3}"]),
        (["a.9", "a.10", "a.8"], ["a.{8..10}"]),
        (["a.0", "a.1", "a.3"], ["a.{0,1,3}"]),
        (["linear1.w", "linear2.w", "linear3.w"], ["linear1.w", "linear2.w", "linear3.w"]),
        (["layer_0.w", "layer_1.w", "layer_2.w"], ["layer_{0..2}.w"]),
        (["v2_0.w", "v3_0.w", "v4_0.w"], ["v2_0.w", "v3_0.w", "v4_0.w"]),
        ([f"a.{i}.{x}" for i in range(3) for x in "xy"], ["a.{0..2}.x", "a.{0..2}.y"]),
        (["a.0.w", "a.1", "a.2.w", "a.3.w"], ["a.{0,2,3}.w", "a.1"]),
        (["a.0", "b", "a.1"], ["a.0", "b", "a.1"]),
    ],
)
def test_names(names, expected):
    assert folded(names) == expected


def test_several_numbers():
    names = [f"stage.{i}.block.{j}.w" for i in range(3) for j in range(4)]
    assert folded(names) == ["stage.{0..2}.block.{0..3}.w"]
    assert folded([*names, "stage.2.block.4.w"]) == [
        "stage.0.block.{0..3}.w",
        "stage.1.block.{0..3}.w",
        "stage.2.block.{0..4}.w",
    ]


def test_other_kinds_are_kept_apart():
    assert folded(["a.0", "a.1", "a.2", "a.3"], ["x", "y", "x", "x"]) == ["a.{0,2,3}", "a.1"]


def test_every_name_stands_for_itself_once():
    names = [f"{a}.{i}.{b}.{j}" for a, i, b, j in itertools.product("ab", (0, 1, 5), "cd", (2, 4))]
    kinds = [f"{sum(map(ord, name)) % 3}" for name in names]
    positions = [p for _, at in fold(names, kinds) for p in at]
    assert sorted(positions) == list(range(len(names)))
    for _, at in fold(names, kinds):
        assert len({kinds[p] for p in at}) == 1
