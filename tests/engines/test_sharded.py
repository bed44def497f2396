"""Sharded stores, as far as one process can show it; `tests/distributed` has several."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from lightning_gc import centralize, select
from lightning_gc.engines.dtensor import DTensorEngine
from lightning_gc.engines.fragments import Fragment, FragmentPiece, spans_of_chunks
from lightning_gc.engines.fsdp import FSDPEngine
from lightning_gc.engines.sharded import ShardedStore
from lightning_gc.engines.tensors import TensorStore
from lightning_gc.selection import Entry, build_selection
from lightning_gc.selection.layouts import Layout

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def world_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@st.composite
def cut_parameters(draw):
    """A parameter with a layout, and where it is cut into the parts of several ranks."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    dims = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if shape[0] % g == 0])) if 0 in dims else 1
    ranks = draw(st.integers(1, 5))
    chunk = draw(st.integers(1, math.prod(shape)))
    spans = spans_of_chunks(draw(st.integers(0, 3)), math.prod(shape), chunk, ranks)
    return shape, dims, groups, [*spans[:-1], (spans[-1][0], math.prod(shape))]


def pieces_of(whole, dims, groups, spans, role_tensor):
    entry = Entry("w", nn.Parameter(whole), whole.shape, Layout(dims, groups))
    return [
        FragmentPiece(Fragment(entry, spans, rank, None, CPU, lambda role, s=span: role_tensor[s[0] : s[1]]))
        for rank, span in enumerate(spans)
    ]


@given(cut_parameters())
def test_shares_of_all_ranks_add_up_to_the_means_and_centralize(case):
    shape, dims, groups, spans = case
    whole = torch.randn(shape, dtype=torch.float64) + 3
    flat = whole.clone().flatten()
    pieces = pieces_of(whole, dims, groups, spans, flat)
    tensors = [piece.tensor("gradient") for piece in pieces]
    shares = [piece.share(t) for piece, t in zip(pieces, tensors, strict=True) if t is not None]
    means = sum(share.clone() for share in shares)
    for piece, tensor in zip(pieces, tensors, strict=True):
        if tensor is not None:
            piece.subtract_(tensor, means)
    torch.testing.assert_close(flat.view(shape), centralize(whole, dims, groups=groups))


@given(cut_parameters())
def test_each_weight_vector_is_measured_by_one_rank_and_sent_by_those_that_share_it(case):
    shape, dims, groups, spans = case
    whole = torch.randn(shape)
    pieces = pieces_of(whole, dims, groups, spans, whole.flatten())
    vectors = pieces[0].entry.weight_vectors
    numbers = torch.arange(float(vectors))
    measured = torch.cat([piece.measured(numbers) for piece in pieces])
    assert sorted(measured.tolist()) == numbers.tolist()
    # Every rank sends as many numbers, also one that has no part in any.
    assert len({piece.count for piece in pieces}) == 1
    cuts = sum(1 for start, stop in spans if 0 < start < math.prod(shape) and stop > start)
    if dims == tuple(range(1, len(shape))):
        assert pieces[0].count <= cuts, "of rows, only those that a cut runs through"


def test_spans_are_those_of_a_padded_flat_array():
    assert spans_of_chunks(5, 10, 4, 4) == [(0, 0), (0, 3), (3, 7), (7, 10)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.plain = nn.Linear(3, 2)
        self.frozen = nn.Linear(3, 2).requires_grad_(False)


PLACEMENTS = [[Shard(0)], [Shard(1)], [Replicate()]]


def placed(placements, gradients=None):
    """`Net`, all weights but one placed on a mesh of one rank, with gradients."""
    torch.manual_seed(0)
    net, mesh = Net(), init_device_mesh("cpu", (1,))
    for layer in (net.linear, net.up, net.frozen):
        layer.weight = nn.Parameter(
            distribute_tensor(layer.weight.data, mesh, placements), requires_grad=layer.weight.requires_grad
        )
    wholes = {}
    for name in ("linear", "up", "plain"):
        weight = getattr(net, name).weight
        wholes[name] = torch.randn(weight.shape) + 2
        local = wholes[name].clone()
        weight.grad = DTensor.from_local(local, mesh, gradients or placements) if isinstance(weight, DTensor) else local
    entries = [entry for entry in select(net) if entry.layout is not None]
    return net, wholes, DTensorEngine(SimpleNamespace(root_device=CPU)).make_store(entries)


def check_centralized(net, wholes):
    for name, whole in wholes.items():
        gradient = getattr(net, name).weight.grad
        got = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        dims, groups = ((0, 2, 3), 2) if name == "up" else ((1,), 1)
        torch.testing.assert_close(got, centralize(whole, dims, groups=groups))


@pytest.mark.parametrize("placements", PLACEMENTS)
@pytest.mark.parametrize("measured", [False, True])
def test_dtensors_and_tensors_together(placements, measured):
    net, wholes, store = placed(placements)
    if measured:
        measurement = store.recentre_measured_("gradient")
        sums = [measurement.before.sum(), measurement.squared_norm.sum()]
        store.sum_over_ranks_(sums)
        assert sums[1].item() == pytest.approx(sum(w.square().sum().item() for w in wholes.values()), rel=1e-5)
        assert measurement.vectors.tolist() == [4, 2 * 3, 2, 0]
        assert measurement.after.max() < 1e-5 < measurement.before[:3].min()
    else:
        assert store.recentre_("gradient")
    check_centralized(net, wholes)
    assert net.frozen.weight.grad is None


@pytest.mark.parametrize("placements", PLACEMENTS)
def test_dtensors_that_no_strategy_knows_of_are_measured(placements):
    """Of a module that the user sharded, trained without a strategy that does."""
    expected = placed(placements)[2].recentre_measured_("gradient").values()
    net, wholes, store = placed(placements)
    values = TensorStore(store.entries).recentre_measured_("gradient").values()
    check_centralized(net, wholes)
    for name, value in values.items():
        assert not isinstance(value, DTensor)
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_a_summand_is_added_up_first():
    net, wholes, store = placed([Shard(0)], [Partial()])
    assert store.recentre_("gradient")
    check_centralized(net, wholes)
    assert list(net.linear.weight.grad.placements) == [Shard(0)]


def test_an_expanded_dtensor_gradient_is_replaced():
    net, wholes, store = placed([Shard(0)])
    mesh = net.linear.weight.device_mesh
    wholes["linear"] = torch.tensor([[1.0], [2.0], [3.0], [4.0]]).expand(4, 6)
    net.linear.weight.grad = DTensor.from_local(wholes["linear"], mesh, [Shard(0)])
    store.recentre_("gradient")
    check_centralized(net, wholes)


@pytest.mark.parametrize("placements", PLACEMENTS)
def test_the_means_of_weights_are_kept_through_a_step(placements):
    net, _, store = placed(placements)
    before = store.means("weight")
    kept = net.linear.weight.full_tensor().mean(1)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.grad is not None], lr=0.1)
    optimizer.step()
    assert (net.linear.weight.full_tensor().mean(1) - kept).abs().min() > 0.1
    assert store.recentre_("weight", before)
    torch.testing.assert_close(net.linear.weight.full_tensor().mean(1), kept)
    assert store.recentre_measured_("weight", before).squared_norm is None


def test_without_any_gradient_there_is_nothing_to_move_but_something_to_account_for():
    net, _, store = placed([Replicate()])
    net.zero_grad()
    assert not store.recentre_("gradient")
    measurement = store.recentre_measured_("gradient")
    assert measurement.vectors.tolist() == [0.0] * 4
    assert measurement.squared_norm.tolist() == [0.0] * 4


def test_without_dtensors_the_store_is_that_of_tensors():
    engine = DTensorEngine(SimpleNamespace(root_device=CPU))
    entries = select(nn.Linear(3, 2)).centralized
    assert not isinstance(engine.make_store(entries), ShardedStore)
    assert type(engine.make_store(entries)).__name__ == "TensorStore"


@pytest.mark.parametrize("orig", [True, False])
def test_fsdp_of_one_rank_leaves_parameters_whole(orig):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.ConvTranspose1d(4, 6, 2, groups=2))
    net.register_parameter("tied", net[0].weight)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    model = FullyShardedDataParallel(net, device_id=CPU, use_orig_params=orig)
    engine = FSDPEngine(SimpleNamespace(model=model, root_device=CPU))
    selection = build_selection(net, (), (), (), engine.shape_of, engine.parameters_in)
    taken = [entry for entry in selection if entry.centralized]
    assert [(entry.name, tuple(entry.shape)) for entry in taken] == [("tied", (4, 6)), ("1.weight", (4, 3, 2))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert {entry.parameter for entry in selection} == set(engine.held_by(optimizer))
    store = engine.make_store(taken)
    before = store.means("weight")
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) + 2
    assert store.recentre_("gradient")
    optimizer.step()
    assert store.recentre_("weight", before)
    with FullyShardedDataParallel.summon_full_params(model):
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                dims = (0, 2) if "1." in name else (1,)
                whole = parameter if "1." not in name else parameter.unflatten(0, (2, 2)).movedim(0, -1)
                first = weights[name.replace("_fsdp_wrapped_module.", "")]
                first = first if "1." not in name else first.unflatten(0, (2, 2)).movedim(0, -1)
                assert (whole - first).abs().min() > 0
                torch.testing.assert_close(whole.mean(dims), first.mean(dims))
