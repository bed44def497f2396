"""What a selection makes of the graph of a loss: `select(model, loss=loss)`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gc import select
from lightning_gc.selection.graph import Reading
from lightning_gc.selection.layouts import READ, Layout, LeftAlone
from lightning_gc.selection.readings import as_read, readings_of, same_layout

SUMMED = Reading("summed", (0,), why="Mm sums over them")
SCALES = Reading("apart", why="scales the data")
UNREAD = Reading("unread", why="Erfinv is not known")


class Right(nn.Module):
    """y = x @ weight."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape or (8, 5)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("reading", [SUMMED, SCALES, UNREAD])
@pytest.mark.parametrize("known", [Layout((1,), source="Linear"), LeftAlone("normalisation layer")])
def test_torchs_own_layers_are_what_the_table_says(known, reading):
    assert as_read(known, reading, (8, 5)) is known


@pytest.mark.parametrize("known", [Layout((1,)), LeftAlone("first dim is 1", assumed=True)])
def test_what_is_assumed_is_what_the_graph_says(known):
    assert as_read(known, SUMMED, (8, 5)) == Layout((0,), source=READ)
    assert as_read(known, SCALES, (8, 5)) == LeftAlone(f"not a set of weight vectors: scales the data ({READ})")
    assert as_read(known, UNREAD, (8, 5)) is known


def test_the_graph_comes_before_the_table_of_other_packages_layers():
    known = Layout((1,), source="Their", third_party=True)
    assert as_read(known, SUMMED, (8, 5)) == Layout((0,), source=READ)
    assert as_read(known, SCALES, (8, 5)) == LeftAlone(f"not a set of weight vectors: scales the data ({READ})")
    assert as_read(known, UNREAD, (8, 5)) is known
    # Where both say the same, the class is named.
    assert as_read(Layout((0,), source="Their", third_party=True), SUMMED, (8, 5)).source == "Their"


def test_a_fan_in_of_one_is_left_alone_also_where_it_is_read():
    left = as_read(Layout((1,)), SUMMED, (1, 5))
    assert isinstance(left, LeftAlone)
    assert left.reason == "fan-in is 1: nothing would be left"


@pytest.mark.parametrize(
    ("a", "b", "shape", "same"),
    [
        (Layout((1,)), Layout((1, 2)), (4, 3, 1), True),
        (Layout((1,)), Layout((1, 2)), (4, 3, 2), False),
        (Layout((0,), 2), Layout((0,)), (4, 3), False),
        (None, Layout((0,)), (4, 3), False),
        (None, None, (4, 3), True),
    ],
)
def test_dims_of_size_one_make_no_difference(a, b, shape, same):
    assert same_layout(a, b, shape) is same


@pytest.mark.parametrize("loss", [1.0, "loss", [torch.zeros(())]])
def test_a_loss_is_a_tensor(loss):
    with pytest.raises(TypeError, match=r"is not a tensor\. Pass what you would call backward"):
        select(Right(), loss=loss)


def test_a_loss_has_a_graph():
    model = Right()
    with pytest.raises(ValueError, match="loss has no graph to read"):
        select(model, loss=model(torch.randn(3, 8)).sum().detach())


def test_after_backward_it_says_nothing_wrong():
    model = Right()
    loss = model(torch.randn(3, 8)).tanh().sum()
    loss.backward()
    (entry,) = select(model, loss=loss)
    assert entry.layout is not None
    assert (entry.layout.dims, entry.layout.source) in (((0,), READ), ((1,), "assumed"))


def test_your_own_dims_come_before_the_graph():
    model = Right()
    (entry,) = select(model, fan_in_dims={"weight": 1}, loss=model(torch.randn(3, 8)).sum())
    assert entry.layout == Layout((1,), source="fan_in_dims")


def test_what_the_loss_does_not_lead_to_is_assumed():
    model = nn.ModuleList([Right(), Right()])
    used, unused = select(model, loss=model[0](torch.randn(3, 8)).sum())
    assert used.layout.source == READ
    assert unused.layout.source == "assumed"


class Hidden:
    """A node of autograd's graph as another torch might show it: without some of its attributes."""

    made: dict[object, Hidden]

    def __init__(self, node: object, hides: tuple[str, ...], made: dict[object, Hidden]) -> None:
        self._node, self._hides, self._made = node, hides, made

    def __getattr__(self, name: str) -> object:
        if name.startswith(self._hides):
            raise AttributeError(name)
        return getattr(self._node, name)

    @property
    def next_functions(self) -> tuple[tuple[Hidden | None, int], ...]:
        return tuple((node and hidden(node, self._hides, self._made), i) for node, i in self._node.next_functions)


def hidden(node: object, hides: tuple[str, ...], made: dict[object, Hidden]) -> Hidden:
    return made.setdefault(node, Hidden(node, hides, made))


class Everything(nn.Module):
    """Views, slices, products, look-ups, a convolution and a sum, each with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in {
            "heads": (8, 2, 3), "qkv": (12, 6), "scale": (2, 6), "table": (5, 6), "kernel": (6, 4, 3), "sums": (6, 4),
        }.items():  # fmt: skip
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bi,ihk->bhk", x, self.heads).flatten(1).tanh()
        one, other = self.qkv.chunk(2)
        x = (x @ one.T).tanh() * (x @ other.T).tanh()
        x = (x[:, None] * self.scale).mean(1) + self.table[torch.tensor([[0], [2], [1]])].mean(1)
        x = nn.functional.conv_transpose1d(x[..., None].expand(-1, -1, 5), self.kernel, groups=2).mean(-1)
        return (x[:, None, :4] * self.sums[None, :, :]).sum(-1)


@pytest.mark.parametrize(
    "hides",
    [
        (),
        ("_input_metadata",),
        ("_saved_",),
        ("_saved_dim",),
        ("_saved_groups", "_saved_transposed"),
        ("_saved_indices",),
    ],
)
def test_what_a_torch_does_not_tell_is_no_verdict_and_no_exception(monkeypatch, hides):
    model = Everything()
    loss = model(torch.randn(3, 8)).tanh().sum()
    whole = readings_of(model, loss)

    class Loss(Tensor):
        @property
        def grad_fn(self) -> Hidden:
            return hidden(loss.grad_fn, hides, made)

    made: dict[object, Hidden] = {}
    readings = readings_of(model, loss.detach().as_subclass(Loss))
    assert readings.keys() == whole.keys()
    unread = 0
    for parameter, reading in readings.items():
        assert reading.kind == "unread" or reading == whole[parameter]
        unread += reading.kind == "unread"
    assert (unread > sum(r.kind == "unread" for r in whole.values())) == bool(hides)
    if not hides:
        assert unread == 0
