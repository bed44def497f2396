"""The fan-in dims of parameters, read off autograd's graph of a loss."""

from lightning_gc.selection.graph.nodes import Graph
from lightning_gc.selection.graph.read import Start, leaves, read
from lightning_gc.selection.graph.states import Reading

__all__ = ["Graph", "Reading", "Start", "leaves", "read"]
