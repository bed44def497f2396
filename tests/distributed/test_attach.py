"""Loops without a Trainer, in several processes: `attach` gives what the callback gives in one."""

import pytest

from tests.distributed.attach_checks import CHECKS
from tests.distributed.launch import expect

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("world_size", "name"), [(size, name) for size, checks in CHECKS.items() for name in checks])
def test_attach(world_size: int, name: str) -> None:
    expect("tests.distributed.attach_checks", world_size, name)
