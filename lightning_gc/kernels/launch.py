"""What the kernel needs: tables that are planned once, and addresses that are refreshed when they move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from lightning_gc.kernels.rows import NARROWEST, TILE, centralize_rows

INTERPRETED = not isinstance(centralize_rows, triton.runtime.JITFunction)
"""Whether Triton runs as an interpreter, on CPU tensors too (``TRITON_INTERPRET=1``)."""

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_ALIGNMENT = 16


class Rows(NamedTuple):
    """A tensor as rows in memory, one for each weight vector."""

    number: int
    length: int


class Outputs(NamedTuple):
    """Of the rows of all tensors of a batch, one after the other, float32.

    Attributes:
        before: The means that were removed.
        after: The means after.
        squares: The squared norms before.
    """

    before: Tensor
    after: Tensor | None
    squares: Tensor | None


class Described(NamedTuple):
    """What is known of the rows of a batch before any step.

    Attributes:
        fan_in: Of each row, float32.
        owner: The tensor in the batch that each row is of.
        rows: How many rows each tensor has, float32.
        places: The place of each tensor among all those of the store.
    """

    fan_in: Tensor
    owner: Tensor
    rows: Tensor
    places: Tensor


def takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel runs there, on that."""
    return dtype in _DTYPES and (device.type == "cuda" or (INTERPRETED and device.type == "cpu"))


def as_rows(shape: Sequence[int], strides: Sequence[int], dims: Sequence[int]) -> Rows | None:
    """The tensor as rows, if each weight vector is dense and they follow one another in order; else None.

    The fan-in dims may be in any order in memory: a channels_last convolution is dense row by row.
    """
    if 0 in shape:
        return None
    expected = 1
    within = sorted((d for d in dims if shape[d] > 1), key=lambda d: strides[d])
    outer = [d for d in reversed(range(len(shape))) if d not in dims and shape[d] > 1]
    length = 1
    for count, d in enumerate([*within, *outer]):
        if strides[d] != expected:
            return None
        expected *= shape[d]
        if count < len(within):
            length = expected
    rows = expected // length
    # The kernel counts rows in 32 bits.
    return Rows(rows, length) if length > 1 and rows < 2**31 else None


class Batch:
    """Tensors of one device and dtype: at most two launches, whatever their number.

    Args:
        device: Where they are.
        dtype: What they are of: float32, bfloat16 or float16.
        rows: Each of them, as rows.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, rows: Sequence[Rows]) -> None:
        self._device = device
        self._dtype = dtype
        self._rows = list(rows)
        counts = [r.number for r in rows]
        self.offsets = _offsets(counts)
        self._vectors = sum(counts)
        table = [(r.length, r.number, offset) for r, offset in zip(rows, self.offsets, strict=True)]
        self._shapes = torch.tensor(table, dtype=torch.int64, device=device)
        # A row that is a multiple of 16 bytes is read 16 bytes at a time, if its tensor begins at such an address.
        per_read = _ALIGNMENT // dtype.itemsize
        self._may_be_aligned = [r.length % per_read == 0 for r in rows]
        self._aligned: list[bool] | None = None
        self._programs: list[tuple[bool, Tensor]] = []
        self._addresses: tuple[list[int], Tensor] | None = None
        self._to_addresses: tuple[list[int], Tensor] | None = None
        self._described: Described | None = None

    def __call__(
        self,
        tensors: Sequence[Tensor],
        to: Sequence[Tensor] | None = None,
        *,
        write: bool = True,
        means: bool = False,
        measure: bool = False,
    ) -> Outputs | None:
        """Move the mean of each row of `tensors`, in place, to zero or to `to`.

        Args:
            tensors: As many as there are `rows`, each held as these say.
            to: For each tensor the means to move to: float32, contiguous, one for each row.
            write: Whether to change the tensors; if not, the means are only read.
            means: Whether to return what was removed (`measure` does too).
            measure: Whether to return the means after and the squared norms before, too.

        Returns:
            What was asked for, or None.
        """
        addresses = self._look_up([tensor.data_ptr() for tensor in tensors])
        to_addresses = addresses if to is None else self._look_up_to([tensor.data_ptr() for tensor in to])
        before = self._output(means or measure)
        after, squares = self._output(measure), self._output(measure)
        unused = self._shapes  # a pointer that the kernel does not touch
        for aligned, programs in self._programs:
            launch: Any = centralize_rows[(len(programs),)]
            with torch.cuda.device(self._device if self._device.type == "cuda" else -1):
                launch(
                    addresses,
                    to_addresses,
                    self._shapes,
                    programs,
                    unused if before is None else before,
                    unused if after is None else after,
                    unused if squares is None else squares,
                    DTYPE=_DTYPES[self._dtype],
                    ALIGNED=aligned,
                    HAS_TO=to is not None,
                    WRITE=write,
                    MEANS=before is not None,
                    MEASURE=measure,
                )
        return None if before is None else Outputs(before, after, squares)

    def described(self, fan_in: Sequence[int], places: Sequence[int]) -> Described:
        """What is known of each row, from the fan-in of each tensor and its place among all; planned once."""
        if self._described is None:
            counts = torch.tensor([r.number for r in self._rows], device=self._device)
            lengths = torch.tensor(fan_in, device=self._device, dtype=torch.float32)
            owners = torch.arange(len(self._rows), device=self._device)
            self._described = Described(
                lengths.repeat_interleave(counts),
                owners.repeat_interleave(counts),
                counts.float(),
                torch.tensor(places, device=self._device),
            )
        return self._described

    def _look_up(self, addresses: list[int]) -> Tensor:
        """The table of addresses on the device; with new gradients in each step, nearly all have moved."""
        if self._addresses is None or self._addresses[0] != addresses:
            aligned = [may and a % _ALIGNMENT == 0 for may, a in zip(self._may_be_aligned, addresses, strict=True)]
            if aligned != self._aligned:
                self._aligned = aligned
                self._programs = _plan(self._rows, aligned, self._device)
            self._addresses = (addresses, _upload(addresses, self._device))
        return self._addresses[1]

    def _look_up_to(self, addresses: list[int]) -> Tensor:
        if self._to_addresses is None or self._to_addresses[0] != addresses:
            self._to_addresses = (addresses, _upload(addresses, self._device))
        return self._to_addresses[1]

    def _output(self, is_wanted: bool) -> Tensor | None:
        return torch.empty(self._vectors, device=self._device) if is_wanted else None


def _offsets(counts: Sequence[int]) -> list[int]:
    offsets, place = [], 0
    for count in counts:
        offsets.append(place)
        place += count
    return offsets


def _plan(rows: Sequence[Rows], aligned: Sequence[bool], device: torch.device) -> list[tuple[bool, Tensor]]:
    """The programs of each launch: which tensor, and its first row."""
    launches = []
    for variant in (True, False):
        programs = []
        for index, (count, length) in enumerate(rows):
            if aligned[index] == variant:
                first = torch.arange(0, count, _rows_per_program(length), dtype=torch.int32)
                programs.append(torch.stack([torch.full_like(first, index), first], 1))
        if programs:
            launches.append((variant, torch.cat(programs).to(device)))
    return launches


def _rows_per_program(length: int) -> int:
    width = 1 << (length - 1).bit_length()
    return max(1, TILE // max(NARROWEST, width))


def _upload(addresses: list[int], device: torch.device) -> Tensor:
    """Without waiting for the device: each upload is from pinned memory of its own."""
    table = torch.tensor(addresses, dtype=torch.int64, pin_memory=device.type == "cuda")
    return table.to(device, non_blocking=True)
