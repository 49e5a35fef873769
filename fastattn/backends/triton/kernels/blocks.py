"""What every attention kernel is made of: products, rows in memory, and where sequences lie.

Indices within a sequence are int32. What they are added to is a pointer that was advanced in
int64, so a tensor may have more than 2**31 elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn.backends.triton.target import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


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
def load_rows(base, row, stride, valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Returns (rows, BLOCK_D): rows of head_dim elements, 0 where not valid and past head_dim."""
    d = tl.arange(0, BLOCK_D)
    pointers = base + row[:, None] * stride + d[None, :]
    if HEAD_DIM == BLOCK_D:
        return tl.load(pointers, mask=valid[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=valid[:, None] & (d[None, :] < HEAD_DIM), other=0.0)


@triton.jit
def load_all_rows(base, row, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """load_rows where every row is valid."""
    d = tl.arange(0, BLOCK_D)
    pointers = base + row[:, None] * stride + d[None, :]
    if HEAD_DIM == BLOCK_D:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=d[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def store_rows(base, row, stride, valid, values, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Stores (rows, BLOCK_D) where a row is valid, up to head_dim."""
    d = tl.arange(0, BLOCK_D)
    pointers = base + row[:, None] * stride + d[None, :]
    mask = valid[:, None] & (d[None, :] < HEAD_DIM)
    tl.store(pointers, narrow(values, base.dtype.element_ty), mask=mask)


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
