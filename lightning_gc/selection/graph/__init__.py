"""The fan-in dims of parameters, read off autograd's graph of a loss."""

from lightning_gc.selection.graph.nodes import Graph
from lightning_gc.selection.graph.read import NO_WEIGHTS, Start, leaves, read, together
from lightning_gc.selection.graph.states import Reading

__all__ = ["NO_WEIGHTS", "Graph", "Reading", "Start", "leaves", "read", "together"]
