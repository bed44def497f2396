"""Every code block of the README is run, or checked against what it speaks of."""

from __future__ import annotations

import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_gc import GradientCentralization, __version__

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

ONE_STEP = "--trainer.fast_dev_run=true --trainer.log_every_n_steps=1 --trainer.accelerator=cpu --seed_everything=1"


@dataclass(frozen=True)
class Block:
    language: str
    line: int
    text: str


def blocks(markdown: str) -> list[Block]:
    """All fenced code blocks; a fence that is not closed is an error."""
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(markdown.splitlines(), start=1):
        if not line.lstrip().startswith("```"):
            lines.append(line)
        elif opened is None:
            opened, lines = (line.strip().removeprefix("```"), number), []
        else:
            found.append(Block(*opened, "\n".join(lines) + "\n"))
            opened = None
    assert opened is None, f"the fence in line {opened} is not closed"
    return found


@dataclass
class Reader:
    """Follows the README from top to bottom. Each block has a namespace of its own, as if it were pasted alone."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    namespace: dict[str, Any] = field(default_factory=dict)  # of the last block
    printed: str = ""
    train_py: str = ""
    seen: list[str] = field(default_factory=list)

    def read(self, block: Block) -> None:
        try:
            action = getattr(self, f"read_{block.language}")
        except AttributeError:
            pytest.fail(f"README.md:{block.line}: nothing here knows how to check {block.language!r} blocks")
        action(block)
        self.seen.append(block.language)

    def read_python(self, block: Block) -> None:
        if block.text.startswith("# train.py"):
            self.train_py = block.text  # run by the commands that call it
            return
        self.namespace = {"__name__": "__main__"}
        output = io.StringIO()
        with redirect_stdout(output):
            exec(compile("\n" * block.line + block.text, str(ROOT / "README.md"), "exec"), self.namespace)
        self.printed = output.getvalue()

    def read_text(self, block: Block) -> None:
        assert block.text == self.printed, f"README.md:{block.line} is not what the block before it prints"

    def read_yaml(self, block: Block) -> None:
        assert block.text.startswith("# config.yaml\n")
        (self.folder / "config.yaml").write_text(block.text)

    def read_console(self, block: Block) -> None:
        for line in block.text.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            match program, *arguments:
                case ["python", "train.py", *arguments]:
                    self.train(arguments)
                case ["make", target]:
                    assert re.search(rf"^{target}:.* ## ", (ROOT / "Makefile").read_text(), re.M), line
                case ["pip", "install", project]:
                    check_extras(project)
                case _:
                    pytest.fail(f"README.md:{block.line}: nothing here knows how to check {line!r}")

    def read_bibtex(self, block: Block) -> None:
        paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"][0]
        assert f"{{{paper['title']}}}" in block.text
        names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
        assert f"{{{' and '.join(names)}}}" in block.text
        assert f"{{{paper['year']}}}" in block.text

    def train(self, arguments: list[str]) -> None:
        """Run the README's train.py, for one batch where it trains."""
        only_explains = any(".help" in argument for argument in arguments)
        quickly = [] if only_explains else shlex.split(ONE_STEP)
        self.monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *quickly])
        namespace: dict[str, Any] = {"__name__": "__main__"}
        output = io.StringIO()
        with redirect_stdout(output):
            if only_explains:
                with pytest.raises(SystemExit) as stopped:
                    exec(self.train_py, namespace)
                assert stopped.value.code == 0
                for argument in ("include", "exclude", "target", "fan_in_dims", "log_means", "log_prefix"):
                    assert re.search(rf"--\S*{argument}\b.*\n? +[A-Z]", output.getvalue()), argument
                return
            exec(self.train_py.replace("\nLightningCLI(", "\ncli = LightningCLI("), namespace)
        trainer = namespace["cli"].trainer
        (callback,) = [c for c in trainer.callbacks if isinstance(c, GradientCentralization)]
        expected = "exclude=[torch.nn.Embedding, torch.nn.LSTM], log_means='per_parameter')"
        assert repr(callback).endswith(expected), repr(callback)
        assert trainer.global_step == 1
        assert trainer.callback_metrics["gc/mean_post/layer.weight"] < 1e-7


def check_extras(project: str) -> None:
    """The project in this folder, with extras that it has."""
    where, extras = re.fullmatch(r"(\.)(?:\[([a-z,]+)\])?", project).groups()
    assert where == "."
    declared = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    assert set(extras.split(",") if extras else []) <= set(declared)


def test_every_code_block_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, monkeypatch)

    found = blocks(README)
    for block in found:
        reader.read(block)

    assert len(reader.seen) == len(found) == README.count("\n```") // 2
    assert {"python", "text", "yaml", "console", "bibtex"} == set(reader.seen)
    # The last thing that the README does is a step of plain PyTorch on centralized gradients.
    weights = [p.grad for p in reader.namespace["net"].parameters() if p.dim() > 1]
    assert len(weights) == 2
    assert all(grad.abs().max() > 0 and grad.mean(1).abs().max() < 1e-7 for grad in weights)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_within_the_repository_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https://)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text(encoding="utf-8"))
    for file, anchor in links:
        target = ROOT / (file or page)
        assert target.exists(), file
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, f"{file}#{anchor}"


def test_versions_agree() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_classifiers_are_the_pythons_of_which_the_table_says_what_was_run() -> None:
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    rows = re.findall(r"^\| (3\.\d+)\.\d+ \|", README, re.M)
    assert classifiers == sorted(set(rows), key=lambda version: int(version[2:]))


def test_a_block_of_an_unknown_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(tmp_path, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="'ruby' blocks"):
        reader.read(*blocks("```ruby\nputs 1\n```\n"))
    with pytest.raises(pytest.fail.Exception, match="rm -rf"):
        reader.read(*blocks("```console\nrm -rf .\n```\n"))
