"""FSDP2 and tensor parallelism: what one process gives, however the tensors are placed."""

import pytest

from tests.distributed.dtensor_checks import CHECKS
from tests.distributed.launch import expect

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("world_size", "name"), [(size, name) for size, checks in CHECKS.items() for name in checks])
def test_dtensor(world_size: int, name: str) -> None:
    expect("tests.distributed.dtensor_checks", world_size, name)
