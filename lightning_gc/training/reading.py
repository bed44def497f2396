"""When the graph of a loss is read, and how the ranks settle on what it says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gc.engines import Engine
from lightning_gc.selection import Entry
from lightning_gc.selection.graph import NO_WEIGHTS, Graph, Reading, read, together

# Backwards of a parameter at which it is looked for, counted from one. An expert may get no token in the first.
SCHEDULE = (1, 2, 4, 8, 16, 32, 64)


class Reader:
    """Reads off the graphs of the first losses what is only assumed of parameters.

    Each parameter is looked for at fixed backwards, counted from the first that finds it trainable, so that all ranks
    read at the same ones. What is read of it, or at the last that nothing could be, is settled.

    Args:
        module: The module that is trained.
        engine: How its parameters are held.
        strategy: Lightning's, through which the ranks settle.
    """

    def __init__(self, module: nn.Module, engine: Engine, strategy: Any) -> None:
        self._module = module
        self._engine = engine
        self._strategy = strategy
        self._backwards: dict[nn.Parameter, int] = {}
        self._eager: ExitStack | None = None
        self.settled: dict[nn.Parameter, Reading] = {}
        self.tried: dict[nn.Parameter, Reading] = {}

    def before_forward(self, open_entries: Sequence[Entry]) -> None:
        """Let compiled modules run as they were written, where the next backward is one to read.

        Their graphs show one node for all that was compiled. The next step is compiled as if nothing had been.
        """
        reads = any(self._backwards.get(p, 0) + 1 in SCHEDULE for p in self._sought(open_entries))
        if reads and self._eager is None and _may_be_compiled():
            self._eager = ExitStack()
            self._eager.enter_context(torch.compiler.set_stance("force_eager"))
        elif not reads:
            self.after_forward()

    def after_forward(self) -> None:
        """Run compiled modules compiled again."""
        if self._eager is not None:
            self._eager.close()
            self._eager = None

    def read(self, loss: Tensor, open_entries: Sequence[Entry]) -> bool:
        """Read the graph of a loss before its backward, if it is due; whether anything was settled."""
        due = []
        for parameter in self._sought(open_entries):
            self._backwards[parameter] = backward = self._backwards.get(parameter, 0) + 1
            if backward in SCHEDULE:
                due.append(parameter)
        if not due:
            return False
        before = len(self.settled)
        for parameter, reading in zip(due, self._exchanged(self._readings(loss, due)), strict=True):
            self.tried[parameter] = reading
            if reading.kind != "unread" or self._backwards[parameter] == SCHEDULE[-1]:
                self.settled[parameter] = reading
        return len(self.settled) > before

    def _sought(self, open_entries: Sequence[Entry]) -> list[nn.Parameter]:
        return [entry.parameter for entry in open_entries if entry.parameter.requires_grad]

    def _readings(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Reading]:
        graph = Graph(loss, self._engine.leaves(self._module))
        found = read(graph, self._engine.starts(graph, parameters))
        return [found.get(parameter, Reading("unread", why="the loss does not lead to it")) for parameter in parameters]

    def _exchanged(self, readings: list[Reading]) -> list[Reading]:
        """What all ranks say together; one that could read nothing has no say."""
        if getattr(self._strategy, "world_size", 1) == 1:
            return readings
        codes = torch.tensor([_encoded(reading) for reading in readings], device=self._strategy.root_device)
        of_ranks = self._strategy.all_gather(codes).reshape(-1, len(readings)).T.tolist()
        settled = []
        for reading, said in zip(readings, of_ranks, strict=True):
            said_something = [_decoded(code) for code in dict.fromkeys(said) if code]
            settled.append(together(said_something) if said_something else reading)
        return settled


def _encoded(reading: Reading) -> int:
    """A reading as a number, to be sent to other ranks; zero if it says nothing."""
    if reading.kind == "unread":
        return 0
    if reading.kind != "summed":
        return 1 + NO_WEIGHTS.index(reading)
    return (reading.groups << 16 | sum(1 << dim for dim in reading.dims)) << 8


def _decoded(code: int) -> Reading:
    dims, of_no_weight = divmod(code, 1 << 8)
    if of_no_weight:
        return NO_WEIGHTS[of_no_weight - 1]
    return Reading("summed", tuple(dim for dim in range(16) if dims >> dim & 1), dims >> 16)


def _may_be_compiled() -> bool:
    """Whether anything may have been compiled, and this torch can leave that out: since 2.6.

    Whoever compiles has imported Dynamo; to import it here would take seconds from all others.
    """
    return "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
