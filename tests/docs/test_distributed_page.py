"""docs/distributed.md: its tables are those of the checks, and the tests that it names exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from tests.distributed.cells import BEGIN, END, PAGE, REFUSED, document

TESTS = Path(__file__).parents[1]
CHECKS = r"`test_(ddp|fsdp|dtensor|deepspeed)\[(\d)-([^\]…]+)\]`"


def test_the_tables_are_those_of_the_checks():
    assert PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0] == document(), (
        "run `python -m tests.distributed.cells`"
    )


def test_no_target_was_left_out_in_32_bits():
    assert "not run" not in document().partition("### In 16 bits")[0]


def test_every_check_that_the_page_names_exists():
    named = re.findall(CHECKS, PAGE.read_text(encoding="utf-8"))
    assert len(named) > 150
    for engine, world_size, name in named:
        assert name in import_module(f"tests.distributed.{engine}_checks").CHECKS[int(world_size)], name


def test_every_other_test_that_the_page_names_exists():
    code = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)[\[`]", PAGE.read_text(encoding="utf-8")))
    assert {test for _, test in REFUSED.values()} <= named
    assert not {name for name in named if f"def {name}(" not in code}
