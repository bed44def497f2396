"""The fan-in dims of parameters, read off autograd's graph of a loss."""

from lightning_gc.selection.graph.nodes import Graph
from lightning_gc.selection.graph.read import Start, leaves, read, together
from lightning_gc.selection.graph.states import Kind, Reading

__all__ = ["Graph", "Kind", "Reading", "Start", "leaves", "read", "together"]
