"""Where the kernel is used: on GPUs on which it runs, unless it was turned off."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_gc import kernels
from lightning_gc.kernels.launch import INTERPRETED, Batch

GPU = torch.device("cuda")
HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_a_device = pytest.mark.skipif(HERE.type == "cpu" and not INTERPRETED, reason="neither a GPU nor an interpreter")
try_it = kernels._runs.__wrapped__


@pytest.mark.parametrize(("value", "on"), [(None, True), ("1", True), ("0", False)])
def test_it_is_on_unless_turned_off(monkeypatch, value, on):
    monkeypatch.setattr(kernels, "_runs", lambda device: True)
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(kernels.VARIABLE, value)
    assert kernels.usable(GPU) is on
    assert not kernels.usable(torch.device("cpu"))


def test_without_triton_it_is_off(monkeypatch):
    monkeypatch.setattr(kernels, "_runs", lambda device: True)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert not kernels.usable(GPU)


def test_a_misspelt_variable_is_an_error(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "yes")
    with pytest.raises(ValueError, match="LIGHTNING_GC_FUSED='yes': allowed are 0 and 1"):
        kernels.usable(GPU)


@needs_a_device
def test_it_is_tried():
    assert try_it(HERE)


def test_where_it_cannot_be_compiled_the_reason_is_told(monkeypatch):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(Batch, "__call__", fail)
    with pytest.warns(UserWarning, match=r"does not run on .*The reason: RuntimeError: Failed to find C compiler"):
        assert not try_it(HERE)


def test_where_it_gives_wrong_numbers_it_is_not_used(monkeypatch):
    monkeypatch.setattr(Batch, "__call__", lambda *_: None)
    with pytest.warns(UserWarning, match=r"it made \[\[1.0, 3.0\]\] of"):
        assert not try_it(HERE)
