"""What is said of DTensors before training, in one process of an imagined two."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from lightning_gc.engines.dtensor import DTensorEngine
from lightning_gc.selection import Selection, select


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def placed(module: nn.Module, mesh: DeviceMesh, dim: int, device: str) -> Selection:
    """The module's selection, its weight sharded over the mesh, with the shards on another device than the mesh's."""
    local = torch.chunk(module.weight.data, 2, dim)[0].to(device)
    module.weight = nn.Parameter(DTensor.from_local(local, mesh, [Shard(dim)], run_check=False))
    return select(module)


def check(selection: Selection) -> None:
    DTensorEngine(SimpleNamespace(root_device=torch.device("cpu"))).check_entries(selection)


@pytest.mark.parametrize(
    ("module", "dim"), [(nn.Linear(8, 6), 1), (nn.Conv2d(4, 6, 3), 1), (nn.ConvTranspose2d(4, 6, 3, groups=2), 0)]
)
def test_offloaded_shards_that_cut_weight_vectors_are_refused(mesh, module, dim):
    said = r"weight as it is offloaded: it is on meta .*that of cpu\. Shard its rows, exclude it"
    with pytest.raises(MisconfigurationException, match=said):
        check(placed(module, mesh, dim, "meta"))


@pytest.mark.parametrize(("module", "dim"), [(nn.Linear(8, 6), 0), (nn.ConvTranspose2d(4, 6, 3, groups=2), 1)])
def test_offloaded_shards_of_whole_weight_vectors_need_no_process_group(mesh, module, dim):
    check(placed(module, mesh, dim, "meta"))


def test_shards_on_the_device_of_the_mesh_can_be_added_up(mesh):
    check(placed(nn.Linear(8, 6), mesh, 1, "cpu"))
