"""The modules that study.py is made of, as it imports them itself."""

from __future__ import annotations

import importlib
from types import ModuleType

from tests.examples.loading import load

study = load("study")  # which also lets Python find its package


def part(name: str) -> ModuleType:
    """One of its modules."""
    return importlib.import_module(f"paired_study.{name}")
