"""What every attention kernel is made of: products, rows in memory, and where sequences lie.

Grids have one dimension: the others of a GPU end at 65,535. Indices within a sequence are int32,
offsets into tensors int64, so a tensor, and a sequence of one, may have more than 2**31 elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn.backends.triton.target import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
# Arguments that change from batch to batch, which Triton shall not compile anew for.
LENGTHS = ["batch_size", "tiles", "rows_q", "rows_k", "seqlen_q", "seqlen_k", "num_heads"]


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Returns float32 values in the dtype of elements, rounded to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:  # whose low half the interpreter would cut off
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Returns acc + a @ b, summed in float32. PRECISION is that of products of float32."""
    if _INTERPRETED:  # It keeps bfloat16 as integers, and would multiply those.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _row_pointers(base, row0, stride, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Returns pointers to (BLOCK, BLOCK_D) elements; only the scalar part changes in a loop."""
    base += tl.cast(row0, tl.int64) * stride
    row = tl.arange(0, BLOCK).to(tl.int64)
    return base + (row[:, None] * stride + tl.arange(0, BLOCK_D)[None, :])


@triton.jit
def load_rows(
    base,
    row0,
    stride,
    valid,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    d0=0,
):
    """Returns (BLOCK, BLOCK_D): columns of rows from d0 on, 0 where not valid and past head_dim.

    BLOCK_D is at least head_dim, or d0 a multiple of it.
    """
    d = d0 + tl.arange(0, BLOCK_D)
    pointers = _row_pointers(base + d0, row0, stride, BLOCK, BLOCK_D)
    if HEAD_DIM % BLOCK_D == 0:
        return tl.load(pointers, mask=valid[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=valid[:, None] & (d[None, :] < HEAD_DIM), other=0.0)


@triton.jit
def store_rows(
    base,
    row0,
    stride,
    valid,
    values,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Stores (BLOCK, BLOCK_D) where a row is valid, up to head_dim."""
    d = tl.arange(0, BLOCK_D)
    pointers = _row_pointers(base, row0, stride, BLOCK, BLOCK_D)
    mask = valid[:, None] & (d[None, :] < HEAD_DIM)
    tl.store(pointers, narrow(values, base.dtype.element_ty), mask=mask)


@triton.jit
def locate_program(tiles):
    """Returns the tile and the head, or what else is counted in tiles, of this program."""
    program = tl.program_id(0)
    return program % tiles, program // tiles


@triton.jit
def locate_tile(tile, cu_seqlens, batch_size, seqlen, BLOCK: tl.constexpr):
    """Returns the sequence that a tile of rows belongs to, and the tile's first row in it.

    Packed sequence i begins at tile ``cu_seqlens[i] // BLOCK + i``, which leaves each as many tiles
    as it needs or one more, and is found by bisection: no one has to know the longest length, and
    nothing waits for the device. The rows behind the last sequence are one more, of index
    batch_size. A tile past its sequence's end has nothing to do.
    """
    if cu_seqlens is None:
        tiles = tl.cdiv(seqlen, BLOCK)
        sequence = tile // tiles
        row0 = (tile % tiles) * BLOCK
    else:
        sequence = tile * 0
        last = sequence + batch_size
        while sequence < last:
            middle = (sequence + last + 1) // 2
            begun = tl.load(cu_seqlens + middle) // BLOCK + middle <= tile
            sequence = tl.where(begun, middle, sequence)
            last = tl.where(begun, last, middle - 1)
        row0 = (tile - tl.load(cu_seqlens + sequence) // BLOCK - sequence) * BLOCK
    return sequence, row0


@triton.jit
def locate_sequence(sequence, cu_seqlens, batch_size, rows, seqlen):
    """Returns the first row of a packed sequence and its length; in a batch 0 and seqlen.

    The sequence of index batch_size reaches from the end of the last one to ``rows``.
    """
    if cu_seqlens is None:
        start = sequence * 0
        length = start + seqlen
    else:
        start = tl.load(cu_seqlens + sequence)
        end = tl.load(cu_seqlens + sequence + 1, mask=sequence < batch_size, other=0)
        length = tl.where(sequence < batch_size, end, rows) - start
    return start, length


@triton.jit
def rows_of(rows, sequence, start, head, PACKED: tl.constexpr):
    """Returns the pointer to a head's first row of a sequence."""
    base = rows.data + tl.cast(head, tl.int64) * rows.head_stride
    if PACKED:
        base += tl.cast(start, tl.int64) * rows.row_stride
    else:
        base += tl.cast(sequence, tl.int64) * rows.batch_stride
    return base


@triton.jit
def statistics_of(statistics, sequence, start, head, num_heads, seqlen, PACKED: tl.constexpr):
    """Returns the pointer to a head's first number of a sequence.

    Statistics are (batch, heads, seqlen) or (heads, total), contiguous: their strides are not
    arguments, as Triton would compile once for lengths that 16 divides, and once for the others.
    """
    if PACKED:
        return statistics + tl.cast(head, tl.int64) * seqlen + start
    else:
        return statistics + (tl.cast(sequence, tl.int64) * num_heads + head) * seqlen
