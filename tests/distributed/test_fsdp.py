"""FSDP1: what one process gives, however the parameters are cut."""

import pytest

from tests.distributed.fsdp_checks import CHECKS
from tests.distributed.launch import expect

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("world_size", "name"), [(size, name) for size, checks in CHECKS.items() for name in checks])
def test_fsdp(world_size: int, name: str) -> None:
    expect("tests.distributed.fsdp_checks", world_size, name)
