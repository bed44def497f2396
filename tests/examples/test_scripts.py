"""What holds for each example: it explains itself, and a test of its own runs it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = [path for path in sorted((ROOT / "examples").rglob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_explains_itself(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))

    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")

    assert stopped.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_has_a_test(script: Path) -> None:
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "examples").rglob("test_*.py")]
    assert any(script.stem in text for text in tests if "SCRIPTS =" not in text)


def test_there_are_examples() -> None:
    assert "quickstart" in {path.stem for path in SCRIPTS}
