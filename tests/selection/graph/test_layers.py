"""What the graph says of layers that were written to break it: the right dims, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gc.selection.graph import Graph, Reading, leaves, read
from tests.selection.graph.layers import LAYERS, LEFT, Double, Layer, parameters

SOURCES = ["raw", "trained", "frozen", "weight-normed", "requiring grad"]
BATCHES = [(), (1,), (3,), (0,)]


def reading_of(layer: Layer, name: str, batch: tuple[int, ...], source: str, others: str, loss: str) -> Reading:
    made, given, everything = parameters(layer, others, alone=name)
    x = torch.randn(*batch, *layer.data)
    if source not in ("raw", "requiring grad"):
        mixing = torch.nn.Parameter(torch.randn(layer.data[-1], layer.data[-1]), requires_grad=source != "frozen")
        everything.append(mixing)
        norm = mixing.norm(dim=0, keepdim=True) if source == "weight-normed" else 1.0
        x = torch.tanh(x @ (mixing / norm))
    elif source == "requiring grad":
        x.requires_grad_()
    out = layer.forward(given, x)
    value = out.tanh().square().mean() if loss == "nonlinear" else out.sum()
    graph = Graph(value, everything)
    return read(graph, leaves(graph, [made[name]])).get(made[name], Reading("unread", why="it is not used"))


def is_right(layer: Layer, name: str, reading: Reading) -> bool:
    says = layer.says[name]
    if says is None:
        return False
    if says == LEFT:
        return reading.kind in ("apart", "looked up")
    groups = (layer.groups or {}).get(name, 1)
    return reading.kind == "summed" and reading.dims == says and reading.groups == groups


def can_run(layer: Layer, batch: tuple[int, ...]) -> bool:
    _, given, _ = parameters(layer)
    try:
        layer.forward(given, torch.randn(*batch, *layer.data))
    except (RuntimeError, IndexError):
        return False
    return True


EACH = [pytest.param(layer, name, id=f"{title}: {name}") for title, layer in LAYERS.items() for name in layer.shapes]


@pytest.mark.parametrize(("layer", "name"), EACH)
@pytest.mark.parametrize("source", ["trained", "weight-normed"])
def test_says_what_the_layer_does(layer: Layer, name: str, source: str) -> None:
    reading = reading_of(layer, name, (3,), source, "trained", "nonlinear")

    if layer.says[name] is None or name in layer.silent:
        assert reading.kind == "unread", reading
    else:
        assert is_right(layer, name, reading), reading


# What may not change what is said: how the batch, the data and the other parameters are, and how it goes on.
CIRCUMSTANCES = [
    *((batch, source, "trained", "nonlinear") for batch in BATCHES for source in SOURCES),
    *((batch, "raw", others, "nonlinear") for batch in BATCHES for others in ("frozen", "weight-normed")),
    *((batch, "trained", others, "summed") for batch in BATCHES for others in ("trained", "frozen", "weight-normed")),
]


# An einsum of two operands is the same with opt_einsum and without.
@pytest.mark.parametrize(
    ("layer", "name", "opt_einsum"),
    [
        *(pytest.param(*case.values, True, id=case.id) for case in EACH),
        *(
            pytest.param(*case.values, False, id=f"{case.id}, no opt_einsum")
            for case in EACH
            if "three" in str(case.id)
        ),
    ],
)
def test_says_the_right_or_nothing_whatever_else_there_is(layer: Layer, name: str, opt_einsum: bool) -> None:
    with torch.backends.opt_einsum.flags(enabled=opt_einsum):
        runs = [batch for batch in BATCHES if can_run(layer, batch)]
        for batch, *others in CIRCUMSTANCES:
            if batch in runs:
                reading = reading_of(layer, name, batch, *others)
                assert reading.kind == "unread" or is_right(layer, name, reading), (batch, others, reading)


def test_there_are_enough_layers() -> None:
    assert len(LAYERS) >= 40
    spoken_of = sum(
        says is not None and name not in layer.silent for layer in LAYERS.values() for name, says in layer.says.items()
    )
    assert spoken_of >= 40


def test_no_loss_has_no_graph() -> None:
    graph = Graph(torch.zeros(()), [])

    assert leaves(graph, [torch.nn.Parameter(torch.zeros(2, 2))]) == {}
    assert isinstance(read(graph, {}), dict)


class _Remembers(Double):
    """The same, which keeps its weight under a name that autograd's own leaves have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.variable = [w]
        return Double.forward(ctx, x, w)


def test_a_custom_function_is_no_leaf_whatever_it_keeps() -> None:
    weight = torch.nn.Parameter(torch.randn(7, 5))
    graph = Graph(_Remembers.apply(torch.randn(3, 7), weight).tanh().mean(), [weight])

    assert set(graph.leaves) == {weight}
    assert read(graph, leaves(graph, [weight]))[weight].kind == "unread"


@pytest.mark.parametrize(
    ("shape", "forward"),
    [
        pytest.param((4, 7), lambda latents, other: latents @ other(7, 5), id="latents"),
        pytest.param((7, 4), lambda latents, other: other(5, 7) @ latents, id="latents in columns"),
        pytest.param(
            (2, 7),
            lambda a, other: torch.einsum("bi,oi->bo", torch.ones(3, 7), torch.einsum("or,ri->oi", other(5, 2), a)),
            id="B @ A",
        ),
    ],
)
def test_a_parameter_of_another_module_is_no_data(
    shape: tuple[int, ...], forward: Callable[[Tensor, Callable[..., Tensor]], Tensor]
) -> None:
    parameter = torch.nn.Parameter(torch.randn(shape))
    out = forward(parameter, lambda *shape: torch.nn.Parameter(torch.randn(shape)))
    graph = Graph(out.tanh().mean(), [parameter])

    assert read(graph, leaves(graph, [parameter]))[parameter].kind == "unread"


def test_a_bias_of_attention_as_gpus_compute_it() -> None:
    """One operation, which no CPU has for a bias that is trained: its graph is the same without numbers."""
    with torch.device("meta"):
        bias = torch.nn.Parameter(torch.empty(4, 8, 8))
        mixing = torch.nn.Parameter(torch.empty(16, 16))
        x = torch.empty(2, 4, 8, 16) @ mixing
        attention = torch.ops.aten._scaled_dot_product_efficient_attention
        out, *_ = attention(x, x, x, bias.expand(2, 4, 8, 8), True)
    graph = Graph(out.sum(), [bias, mixing])

    readings = read(graph, leaves(graph, [bias, mixing]))

    assert "Efficient" in out.grad_fn.name()
    assert (readings[bias].kind, readings[bias].why) == ("apart", "added to the data")
    assert (readings[mixing].kind, readings[mixing].dims) == ("summed", (0,))


def test_a_loss_that_is_the_product_itself() -> None:
    weight, mixing = torch.nn.Parameter(torch.randn(1, 7)), torch.nn.Parameter(torch.randn(7, 7))
    graph = Graph(weight[0].dot(torch.randn(7) @ mixing), [weight, mixing])

    reading = read(graph, leaves(graph, [weight]))[weight]

    assert (reading.kind, reading.dims) == ("summed", (1,))
