"""The documentation's pages: every block runs when it is pasted alone; every test and picture that they name is there."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest

import lightning_gc

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def fenced(page: Path, language: str) -> list:
    """A parameter of a test for each block of a page, which is not one that says on its first line what it needs."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks = [(text.count("\n", 0, match.start()) + 1, match[1]) for match in found]
    return [pytest.param(b, id=f"{page.name}:{line}") for line, b in blocks if not b.startswith("# needs ")]


@pytest.mark.parametrize("block", [block for page in PAGES for block in fenced(page, "python")])
def test_a_block_runs_when_it_is_pasted_alone(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "a block", "exec"), {"__name__": "__main__"})


def run_examples(text: str) -> None:
    """With nothing but what they import themselves."""
    examples = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, "a block", None, None)
    assert examples.examples
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(examples, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("block", [block for page in PAGES for block in fenced(page, "{doctest}")])
def test_a_session_runs_when_it_is_pasted_alone(block):
    run_examples(block)


@pytest.mark.parametrize("name", lightning_gc.__all__)
def test_the_example_of_a_docstring_runs_when_it_is_pasted_alone(name):
    documented = getattr(lightning_gc, name)
    assert name in (DOCS / "api.md").read_text(encoding="utf-8")
    if documented is not lightning_gc.Selection:  # which `select` makes, and shows
        run_examples(inspect.getdoc(documented))


def test_a_block_that_lacks_a_name_fails():
    with pytest.raises(AssertionError, match="NameError"):
        run_examples(">>> select(None)\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_exist(page):
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pictures_are_there_and_drawn_by_a_script(page):
    for target in re.findall(r"(?:!\[[^\]]*\]\(|^```\{image\} )([^)\n]+)", page.read_text(encoding="utf-8"), re.M):
        picture = DOCS / target
        assert picture.exists(), target
        script = picture.with_name(picture.stem.removesuffix("_dark") + ".py")
        assert script.exists() or "study" in picture.parts, target


def luminance(colour: str) -> float:
    """Of an sRGB colour, as WCAG 2.2 defines it."""
    shares = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#131416"], ids=["light", "dark"])
@pytest.mark.parametrize("drawing", sorted((DOCS / "figures").glob("*.svg")), ids=lambda p: p.name)
def test_drawings_can_be_read_on_a_light_page_and_on_a_dark_one(drawing, ground):
    """No ground of their own, and at least the contrast that WCAG 2.2 (1.4.11) wants of graphics."""
    colours = set(re.findall("#[0-9a-f]{6}", drawing.read_text(encoding="utf-8")))
    assert colours
    assert {colour: contrast(colour, ground) for colour in colours if contrast(colour, ground) < 3} == {}
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
