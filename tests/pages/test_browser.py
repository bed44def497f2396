"""Every page of the documentation in Chromium, wide and narrow, without a network: nothing is missing, cut or broken.

`make test-pages` runs this. The browser is the system's (Debian: ``apt-get install chromium``), or what CHROMIUM names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.pages

ROOT = Path(__file__).parents[2]
WIDTHS = {"desktop": 1280, "phone": 390}
NAMES = sorted(page.stem for page in (ROOT / "docs").glob("*.md"))

# What stands outside of code: a formula that was not rendered is TeX in the text, or MathML with TeX in it.
UNRENDERED = r"""() => {
  const article = document.querySelector("article").cloneNode(true);
  article.querySelectorAll("pre, code, script").forEach(e => e.remove());
  const tex = article.textContent.match(/\\[a-zA-Z(\[]+|\$\$/g) || [];
  return [...tex, ...Array.from(article.querySelectorAll("merror"), e => e.textContent)];
}"""

# Text is cut, or pushes the page sideways, where it ends right of the window and nothing around it scrolls.
OVERFLOWING = r"""() => {
  const scrolls = e => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const hidden = e => e.closest(".headerlink, .toc-drawer, .sidebar-drawer, .visually-hidden, details:not([open])");
  const found = [];
  const walk = document.createTreeWalker(document.querySelector(".content"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode, range = document.createRange();
    range.selectNodeContents(text);
    const right = Math.max(0, ...Array.from(range.getClientRects(), r => r.right));
    if (text.textContent.trim() && right > innerWidth + 1 && !hidden(text.parentElement) && !scrolls(text.parentElement))
      found.push(text.textContent.trim().slice(0, 60));
  }
  const page = document.documentElement.scrollWidth;
  return page > innerWidth ? [...found, `the page is ${page} pixels wide`] : found;
}"""

# A name in a cell that is broken at every few letters cannot be read.
BROKEN_UP = r"""() => Array.from(document.querySelectorAll("td code, th code"))
  .map(code => [code.textContent, code.getClientRects().length])
  .filter(([text, lines]) => lines > 2 && text.length / lines < 12)
  .map(([text, lines]) => `${text} (${lines} lines)`)"""


@dataclass
class Opened:
    """A page as the browser has it, and what went wrong on the way."""

    page: playwright.Page
    wrong: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built anew."""
    out = tmp_path_factory.mktemp("html")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "docs", out], cwd=ROOT, check=True)
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[playwright.Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "no Chromium: install it (Debian: apt-get install chromium), or name one in CHROMIUM"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def opened(request: pytest.FixtureRequest, browser: playwright.Browser) -> Iterator[Opened]:
    """An empty page that is as wide as a screen, and offline; it notes each request that fails or leaves the machine."""
    context = browser.new_context(viewport={"width": WIDTHS[request.param], "height": 800}, offline=True)
    found = Opened(context.new_page())
    found.page.on("requestfailed", lambda r: found.wrong.append(f"{r.url} failed: {r.failure}"))
    found.page.on("request", lambda r: None if _is_local(r.url) else found.wrong.append(f"{r.url} asks the network"))
    found.page.on("pageerror", lambda error: found.wrong.append(f"script: {error}"))
    yield found
    context.close()


def _is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:"))


@pytest.mark.parametrize("name", NAMES)
def test_page(html: Path, opened: Opened, name: str) -> None:
    opened.page.goto((html / f"{name}.html").as_uri(), wait_until="networkidle")
    assert opened.wrong == []
    assert opened.page.evaluate(UNRENDERED) == []
    assert opened.page.evaluate(OVERFLOWING) == []
    assert opened.page.evaluate(BROKEN_UP) == []
    unseen = "() => Array.from(document.images).filter(i => !i.naturalWidth).map(i => i.src)"
    assert opened.page.evaluate(unseen) == []


@pytest.mark.parametrize("name", NAMES)
def test_links_and_anchors_lead_somewhere(html: Path, name: str) -> None:
    """Those within the documentation: others would need a network."""
    page = html / f"{name}.html"
    for link in _attributes(page)["href"]:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            continue
        target = page if not url.path else (page.parent / unquote(url.path)).resolve()
        assert target.exists(), link
        if url.fragment and target.suffix == ".html":
            assert unquote(url.fragment) in _attributes(target)["id"], link


@cache
def _attributes(page: Path) -> dict[str, set[str]]:
    """The values of `href` and of `id` in a page."""
    from html.parser import HTMLParser

    found: dict[str, set[str]] = {"href": set(), "id": set()}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            for key, value in attributes:
                if value and (key == "id" or (key == "href" and tag == "a")):
                    found[key].add(value)

    Reader().feed(page.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("body", "check", "said"),
    [
        (r"<p>the mean \(e^\top w\) stays</p>", UNRENDERED, "\\("),
        ("<p>a$$b</p>", UNRENDERED, "$$"),
        ("<math><merror>no</merror></math>", UNRENDERED, "no"),
        ("<p style='white-space:nowrap'>" + "long " * 99 + "</p>", OVERFLOWING, "long"),
        (
            "<table style='width:4em;table-layout:fixed'><td><code style='overflow-wrap:anywhere'>" + "a" * 80,
            BROKEN_UP,
            "aaa",
        ),
    ],
)
def test_the_checks_can_fail(opened: Opened, body: str, check: str, said: str) -> None:
    opened.page.set_content(f"<div class='content'><article>{body}</article></div>")
    assert any(said in found for found in opened.page.evaluate(check))


def test_a_request_to_the_network_is_noted(opened: Opened) -> None:
    opened.page.set_content("<img src='https://example.org/formula.png'>", wait_until="networkidle")
    assert any("asks the network" in wrong for wrong in opened.wrong)
