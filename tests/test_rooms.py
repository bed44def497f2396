"""The picture of the rooms in CONTRIBUTING.md is that of the code: which room imports from which."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_gc"
ORDER = ["callback", "training", "steps", "engines", "measuring", "selection", "equation", "kernels"]


def room_of(module: str) -> str | None:
    """The room of a module of the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "lightning_gc" and len(parts) > 1 else None


def imported_by(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {room_of(node.module)} if room_of(node.module) else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {room_of(alias.name) for alias in node.names}
    return found & set(ORDER)


def picture() -> str:
    lines = []
    for room in ORDER:
        files = [PACKAGE / "callback.py"] if room == "callback" else sorted((PACKAGE / room).rglob("*.py"))
        assert files, room
        arrows = set().union(*map(imported_by, files)) - {room}
        lines.append(f"{room:10} -> {', '.join(r for r in ORDER if r in arrows)}".rstrip(" ->"))
    return "\n".join(lines)


def test_contributing_shows_it():
    shown = re.search(r"```text\n(callback .*?)\n```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert shown, "CONTRIBUTING.md has no picture of the rooms"
    assert shown[1] == picture(), f"CONTRIBUTING.md should show:\n{picture()}"


def test_every_file_is_in_a_room():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert rooms == {*ORDER, "__init__"}
