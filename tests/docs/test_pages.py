"""The documentation's pages: every Python block runs, every test and every page that they name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_gc import GradientCentralization

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# The pages whose blocks stand by themselves, one after the other, with the names that `namespace` has.
RUNNABLE = ["choosing_layers.md", "clipping.md", "without_lightning.md"]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def namespace() -> dict[str, Any]:
    return {"GradientCentralization": GradientCentralization, "Trainer": Trainer, "nn": nn, "torch": torch}


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.filterwarnings("ignore")
def test_python_blocks_run(name):
    found = blocks(DOCS / name)
    assert found
    names = namespace()
    for block in found:
        exec(compile(block, name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_exist(page):
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pictures_are_there_and_drawn_by_a_script(page):
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        picture = DOCS / target
        assert picture.exists(), target
        assert picture.with_suffix(".py").exists() or "study" in picture.parts, target
