"""DeepSpeed ZeRO 0 to 3: what one process gives."""

import pytest

from tests.distributed.deepspeed_checks import CHECKS
from tests.distributed.launch import expect

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("world_size", "name"), [(size, name) for size, checks in CHECKS.items() for name in checks])
def test_deepspeed(world_size: int, name: str) -> None:
    expect("tests.distributed.deepspeed_checks", world_size, name)
