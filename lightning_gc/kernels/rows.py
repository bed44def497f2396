"""The kernel: rows of many tensors, each less its mean. One program takes a tile of rows of one tensor."""

# Triton's language is not typed.
# mypy: ignore-errors

import triton
import triton.language as tl

TILE = 4096  # elements of a tile of short rows: 32 registers of each of 128 threads
NARROWEST = 16


@triton.jit
def centralize_rows(
    addresses,  # int64 (T,): of the tensors
    to_addresses,  # int64 (T,): of the float32 means that the rows are moved to, if HAS_TO
    shapes,  # int64 (T, 3): length of a row, number of rows, place of the first in the outputs
    programs,  # int32 (P, 2): the tensor and the first row of each program
    before,  # float32 (V,): the means that were removed, if MEANS
    after,  # float32 (V,): the means of what was written, if MEASURE
    squares,  # float32 (V,): the squared norms of what was read, if MEASURE
    DTYPE: tl.constexpr,  # noqa: N803
    ALIGNED: tl.constexpr,  # noqa: N803  # addresses and lengths of rows are multiples of 16 bytes
    HAS_TO: tl.constexpr,  # noqa: N803
    WRITE: tl.constexpr,  # noqa: N803
    MEANS: tl.constexpr,  # noqa: N803
    MEASURE: tl.constexpr,  # noqa: N803
):
    """Move the mean of each row to zero, or to what `to_addresses` point at."""
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(programs + 2 * program)
    first = tl.load(programs + 2 * program + 1)
    length = tl.load(shapes + 3 * tensor)
    rows = tl.load(shapes + 3 * tensor + 1)
    place = tl.load(shapes + 3 * tensor + 2)
    base = tl.load(addresses + tensor).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        base = tl.multiple_of(base, 16)
        length = tl.multiple_of(length, 16 // (DTYPE.primitive_bitwidth // 8))
    if HAS_TO:  # noqa: SIM108
        to = tl.load(to_addresses + tensor).to(tl.pointer_type(tl.float32))
    else:
        to = before
    before += place
    after += place
    squares += place
    # Each width is a tile of its own: shapes must be known when the kernel is compiled.
    if length <= 16:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 256, 16, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    elif length <= 32:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 128, 32, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    elif length <= 64:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 64, 64, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    elif length <= 128:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 32, 128, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    elif length <= 256:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 16, 256, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    elif length <= 512:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 8, 512, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    elif length <= 1024:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 4, 1024, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    elif length <= 2048:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 2, 2048, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    elif length <= 4096:
        _short_rows(base, to, first, rows, length, before, after, squares,
                    DTYPE, 1, 4096, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
    else:
        if ALIGNED:  # without aligned loads, so wide a tile does not fit in the registers
            if length <= 8192:
                _short_rows(base, to, first, rows, length, before, after, squares,
                            DTYPE, 1, 8192, HAS_TO, WRITE, MEANS, MEASURE)  # fmt: skip
            else:
                _long_row(base, to, first, length, before, after, squares, DTYPE, 4096, HAS_TO, WRITE, MEANS, MEASURE)
        else:
            _long_row(base, to, first, length, before, after, squares, DTYPE, 4096, HAS_TO, WRITE, MEANS, MEASURE)


@triton.jit
def _short_rows(
    base, to, first, rows, length, before, after, squares,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
    HAS_TO: tl.constexpr, WRITE: tl.constexpr, MEANS: tl.constexpr, MEASURE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """A tile that holds whole rows: read once, written once."""
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = row < rows
    mask = inside[:, None] & (column < length)[None, :]
    pointers = base + (row.to(tl.int64)[:, None] * length + column[None, :])
    x = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    removed = tl.sum(x, 1) / length
    if HAS_TO:
        goal = tl.load(to + row, mask=inside, other=0.0)
        removed -= goal
    y = (x - removed[:, None]).to(DTYPE)
    if WRITE:
        tl.store(pointers, y, mask=mask)
    if MEANS:
        tl.store(before + row, removed, mask=inside)
    if MEASURE:
        left = tl.sum(tl.where(mask, y.to(tl.float32), 0.0), 1) / length
        if HAS_TO:
            left -= goal
        tl.store(after + row, left, mask=inside)
        tl.store(squares + row, tl.sum(x * x, 1), mask=inside)


@triton.jit
def _long_row(
    base, to, row, length, before, after, squares,
    DTYPE: tl.constexpr, SIZE: tl.constexpr,  # noqa: N803
    HAS_TO: tl.constexpr, WRITE: tl.constexpr, MEANS: tl.constexpr, MEASURE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One row that is too long for registers: read twice, the second time from the cache if it fits."""
    column = tl.arange(0, SIZE)
    base += row.to(tl.int64) * length
    total = tl.zeros([SIZE], tl.float32)
    square = tl.zeros([SIZE], tl.float32)
    start = length * 0
    while start < length:
        x = tl.load(base + start + column, mask=start + column < length, other=0.0).to(tl.float32)
        total += x
        if MEASURE:
            square += x * x
        start += SIZE
    removed = tl.sum(total, 0) / length
    if HAS_TO:
        goal = tl.load(to + row)
        removed -= goal
    if MEANS:
        tl.store(before + row, removed)
    if WRITE:
        left = tl.zeros([SIZE], tl.float32)
        start = length * 0
        while start < length:
            mask = start + column < length
            x = tl.load(base + start + column, mask=mask, other=0.0).to(tl.float32)
            y = (x - removed).to(DTYPE)
            tl.store(base + start + column, y, mask=mask)
            if MEASURE:
                left += tl.where(mask, y.to(tl.float32), 0.0)
            start += SIZE
        if MEASURE:
            mean = tl.sum(left, 0) / length
            if HAS_TO:
                mean -= goal
            tl.store(after + row, mean)
            tl.store(squares + row, tl.sum(square, 0))
