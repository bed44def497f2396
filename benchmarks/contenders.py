"""What takes part: the floor, the authors' line, other libraries, and ours as the callback calls it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Contender

FLOOR = "floor"
AUTHORS = "authors"
BARE = "bare loop"
MEASURED = "bare loop, measured"

Gradients = Sequence[tuple[Tensor, tuple[int, ...]]]
"""Each gradient, and its fan-in dims."""


def references(gradients: Gradients) -> dict[str, Contender]:
    """Every contender that is not ours, by name; other libraries where they are installed."""
    looked_up = [(g, d, 1 / _fan_in(g, d)) for g, d in gradients]
    found = {
        FLOOR: partial(floor, gradients),
        AUTHORS: partial(authors, gradients),
        BARE: partial(bare_loop, looked_up),
        MEASURED: partial(measured_loop, looked_up),
    }
    rows_alone = all(dims == tuple(range(1, gradient.dim())) for gradient, dims in gradients)
    if rows_alone and importlib.util.find_spec("pytorch_optimizer"):
        found["pytorch_optimizer"] = pytorch_optimizer(gradients)
    on_cpu = gradients[0][0].device.type == "cpu"
    if rows_alone and on_cpu and importlib.util.find_spec("optax"):
        found["optax (jit)"] = OptaxUnderJit(gradients)
    return found


@torch.no_grad()
def floor(gradients: Gradients) -> None:
    """Read and write every element once, and nothing else: no centralizing can be faster than this."""
    for gradient, _ in gradients:
        gradient.mul_(1.0)


@torch.no_grad()
def authors(gradients: Gradients) -> None:
    """The line of the paper's own code; over the right dims where weight vectors are columns."""
    for gradient, dims in gradients:
        over = tuple(range(1, gradient.dim())) if dims[0] else dims
        gradient.add_(-gradient.mean(dim=over, keepdim=True))


@torch.no_grad()
def bare_loop(gradients: Sequence[tuple[Tensor, tuple[int, ...], float]]) -> None:
    """Our arithmetic for wide dtypes, on gradients looked up before: what is above it is Python's."""
    for gradient, dims, reciprocal in gradients:
        gradient.sub_(gradient.sum(dims, True), alpha=reciprocal)


@torch.no_grad()
def measured_loop(gradients: Sequence[tuple[Tensor, tuple[int, ...], float]]) -> None:
    """The same, and each gradient's sums and norm after: the two calls more that no step that logs can do without."""
    for gradient, dims, reciprocal in gradients:
        gradient.sub_(gradient.sum(dims, True), alpha=reciprocal)
        gradient.sum(dims, True)
        torch.linalg.vector_norm(gradient)


def pytorch_optimizer(gradients: Gradients) -> Contender:
    """pytorch_optimizer's `centralize_gradient`, on the whole list (it stacks gradients of one shape) or one by one."""
    from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient

    tensors = [gradient for gradient, _ in gradients]

    @torch.no_grad()
    def on_list() -> None:
        centralize_gradient(tensors)

    @torch.no_grad()
    def one_by_one() -> None:
        for tensor in tensors:
            centralize_gradient(tensor)

    try:
        on_list()
    except (AttributeError, TypeError):  # releases before 4 take one tensor
        return one_by_one
    return on_list


class OptaxUnderJit:
    """``optax.centralize()`` on donated arrays of the same shapes and dtypes, and waiting for them."""

    def __init__(self, gradients: Gradients) -> None:
        import jax
        import optax

        transformation = optax.centralize()
        state = transformation.init(None)
        self._update: Callable[[Any], Any] = jax.jit(lambda g: transformation.update(g, state)[0], donate_argnums=0)
        self._wait = jax.block_until_ready
        self._arrays = [
            jax.random.normal(jax.random.key(0), g.shape, str(g.dtype).removeprefix("torch.")) for g, _ in gradients
        ]

    def __call__(self) -> None:
        """Centralize, and wait."""
        self._arrays = self._wait(self._update(self._arrays))

    def peak_extra_memory(self) -> int:
        """What XLA says it needs beyond the arrays, which are changed in place."""
        memory = self._update.lower(self._arrays).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


class Compiled:
    """``torch.compile`` of the whole list at once; `seconds` is what its first call took."""

    def __init__(self, gradients: Gradients) -> None:
        import time

        torch._dynamo.reset()
        self._tensors = [gradient for gradient, _ in gradients]
        dims = [d for _, d in gradients]

        def centralize_all(tensors: list[Tensor]) -> None:
            for tensor, over in zip(tensors, dims, strict=True):
                tensor.sub_(tensor.mean(over, keepdim=True))

        self._call = torch.compile(centralize_all, dynamic=False)
        start = time.perf_counter()
        self()
        self.seconds = time.perf_counter() - start

    @torch.no_grad()
    def __call__(self) -> None:
        """Centralize."""
        self._call(self._tensors)


def _fan_in(gradient: Tensor, dims: Sequence[int]) -> int:
    return torch.Size([gradient.shape[d] for d in dims]).numel()
