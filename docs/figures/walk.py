"""Draws walk.svg: autograd's graph of a small layer, and the walk that the library takes from each parameter.

python docs/figures/walk.py
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from ground import INK, prepare, save
from matplotlib.axes import Axes
from torch import nn

from lightning_gc.selection.graph import Graph, Reading, leaves, read

WALK, REST, DATA = "#0072B2", INK, "#c46a00"
SHAPES = {"weight": (8, 2, 3), "scale": (6,), "b": (6, 2), "a": (2, 5)}

# Where each operation stands, by its name and the shape of what it gives: (x, y).
PLACES = {
    ("View", (8, 6)): (2.4, 3),
    ("Mm", (4, 6)): (4.3, 2),
    ("Mul", (4, 6)): (6.0, 2),
    ("Mm", (6, 5)): (6.0, 0.2),
    ("Mm", (4, 5)): (7.8, 1.2),
    ("Mean", ()): (9.4, 1.2),
}
STARTS = {"weight": (0.6, 3), "scale": (4.3, 3.4), "b": (4.0, 0.7), "a": (4.0, -0.4)}


def layer() -> tuple[dict[str, nn.Parameter], Graph]:
    """``((x @ weight) * scale) @ (b @ a)``, of which autograd keeps this graph."""
    made = {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
    x = torch.randn(4, 8)
    y = (x @ made["weight"].reshape(8, 6)) * made["scale"]
    return made, Graph((y @ (made["b"] @ made["a"])).mean(), list(made.values()))


def verdict(name: str, reading: Reading) -> str:
    """What is said of a parameter, under its name."""
    says = {
        "summed": f"sums over dims {reading.dims}",
        "apart": f"{reading.why}: left alone",
        "unread": "meets a parameter first: no verdict",
    }
    return f"{name} {SHAPES[name]}\n{says[reading.kind]}"


def box(axis: Axes, place: tuple[float, float], text: str, colour: str, weight: str = "normal") -> None:
    """A box with text in it."""
    axis.text(*place, text, ha="center", va="center", fontsize=9, color=INK, fontweight=weight, zorder=3,
              bbox={"boxstyle": "round,pad=0.35", "facecolor": "none", "edgecolor": colour, "linewidth": 1.6})  # fmt: skip


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """From a tensor to the operation on it."""
    style = {
        "arrowstyle": "-|>",
        "color": colour,
        "linewidth": 2.2 if colour == WALK else 1.2,
        "shrinkA": 24,
        "shrinkB": 20,
    }
    axis.annotate("", end, start, arrowprops=style, zorder=1)


def main() -> None:
    """Draw what the library's own reading says."""
    torch.manual_seed(0)
    made, graph = layer()
    readings = read(graph, leaves(graph, list(made.values())))
    places = {}
    for node in graph._names:
        if hasattr(node, "variable"):
            places[node] = STARTS[next(name for name, p in made.items() if p is node.variable)]
        else:
            places[node] = PLACES[graph.name(node), tuple(node._input_metadata[0].shape)]

    prepare()
    figure, axis = plt.subplots(figsize=(10, 4.4), layout="constrained")
    walked = {("AccumulateGrad", "View"), ("View", "Mm"), ("AccumulateGrad", "Mul"), ("AccumulateGrad", "Mm")}
    for node, place in places.items():
        for source, _ in node.next_functions:
            if source is not None:
                pair = ("AccumulateGrad" if hasattr(source, "variable") else graph.name(source), graph.name(node))
                arrow(axis, places[source], place, WALK if pair in walked else REST)
        if not hasattr(node, "variable"):
            shape = tuple(node._input_metadata[0].shape)
            box(axis, place, f"{graph.name(node)}\n{shape if shape else 'the loss'}", INK)
    arrow(axis, (2.4, 1.4), PLACES["Mm", (4, 6)], DATA)
    box(axis, (2.4, 1.4), "x (4, 8)\ndata", DATA)
    for name, parameter in made.items():
        box(axis, STARTS[name], verdict(name, readings[parameter]), WALK, "bold")
    axis.set(xlim=(-0.8, 10.1), ylim=(-0.9, 4.0))
    axis.axis("off")
    save(figure, __file__)


if __name__ == "__main__":
    main()
