"""However a strategy holds weight vectors: read their means, move them.

This is the library's one seam towards the engines that shard parameters and gradients. The callback
deals with a :class:`Store` and doesn't know which it has.
"""

from lightning_gc.engines.engine import Engine, parameters_of, tensor_store
from lightning_gc.engines.store import Means, Role, Store
from lightning_gc.engines.tensors import TensorStore

__all__ = ["Engine", "Means", "Role", "Store", "TensorStore", "parameters_of", "tensor_store"]
