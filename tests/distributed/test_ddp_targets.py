"""DDP: every target and filter gives what one process gives. `test_ddp` has the variants of the strategy."""

import pytest

from tests.distributed.ddp_checks import CHECKS
from tests.distributed.launch import expect

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("world_size", "name"), [(size, name) for size, checks in CHECKS.items() for name in checks])
def test_ddp(world_size: int, name: str) -> None:
    expect("tests.distributed.ddp_checks", world_size, name)
