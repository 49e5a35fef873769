"""The dropout rules of :mod:`fastattn.dropout`, bit for bit: one Philox call for eight draws.

A call's four words are eight 16-bit draws. Each helper computes the calls of a tile once and brings
the draws into the order of the tile by joining and permuting, which the compiler turns into a
choice of registers where a thread owns the eight elements of a call, as it does in the result of a
tensor-core instruction. Draws are compared with the threshold last, and as the high halves of
words: booleans would be packed and unpacked on the way, and a high half needs no mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn import dropout

_ROUNDS = tl.constexpr(dropout.PHILOX_ROUNDS)
_HIDDEN_MARK = tl.constexpr(dropout.HIDDEN_MARK)
_MULTIPLIER_0 = tl.constexpr(dropout.MULTIPLIERS[0])
_MULTIPLIER_1 = tl.constexpr(dropout.MULTIPLIERS[1])
_KEY_INCREMENT_0 = tl.constexpr(dropout.KEY_INCREMENTS[0])
_KEY_INCREMENT_1 = tl.constexpr(dropout.KEY_INCREMENTS[1])


@triton.jit
def load_key(seed):
    """Returns the low and the high word of the seed that a pointer leads to."""
    value = tl.load(seed)
    return (value & 0xFFFFFFFF).to(tl.uint32), ((value >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox(c0, c1, c2, c3, key0, key1):
    """Philox4x32: four uint32 words of four uint32 counter words."""
    for _ in tl.static_range(_ROUNDS):
        high0 = tl.umulhi(c0, tl.full(c0.shape, _MULTIPLIER_0, tl.uint32))
        high1 = tl.umulhi(c2, tl.full(c2.shape, _MULTIPLIER_1, tl.uint32))
        low0 = c0 * _MULTIPLIER_0
        low1 = c2 * _MULTIPLIER_1
        c0 = high1 ^ c1 ^ key0
        c2 = high0 ^ c3 ^ key1
        c1 = low1
        c3 = low0
        key0 += _KEY_INCREMENT_0
        key1 += _KEY_INCREMENT_1
    return c0, c1, c2, c3


@triton.jit
def _draws(word):
    """(...) -> (..., 2): words whose high halves are the low and the high half of each word."""
    return tl.join(word << 16, word)


@triton.jit
def _kept(draws, threshold):
    """Returns whether draws, the high halves of words, say "keep"."""
    return draws >= (tl.cast(threshold, tl.uint32) << 16)


@triton.jit
def attention_keep(
    key0,
    key1,
    sequence,
    head,
    row0,
    col0,
    threshold,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Returns which weights of a tile are kept, (BLOCK_M, BLOCK_N) bool.

    ``row0`` and ``col0``, multiples of 16, count from the start of the sequence.
    """
    ROWS: tl.constexpr = BLOCK_M // 16
    COLS: tl.constexpr = BLOCK_N // 16
    # (row tile, row % 8, column tile, (col % 8) // 2): one call each.
    shape: tl.constexpr = (ROWS, 8, COLS, 4)
    zero = tl.zeros(shape, tl.uint32)
    row_tile = row0 // 16 + tl.arange(0, ROWS)[:, None, None, None]
    col_tile = col0 // 16 + tl.arange(0, COLS)[None, None, :, None]
    lane = 4 * tl.arange(0, 8)[None, :, None, None] + tl.arange(0, 4)[None, None, None, :]
    w0, w1, w2, w3 = philox(
        zero + (32 * col_tile + lane).to(tl.uint32),
        zero + row_tile.to(tl.uint32),
        zero + tl.cast(head, tl.uint32),
        zero + tl.cast(sequence, tl.uint32),
        key0,
        key1,
    )
    # (row tile, row % 8, column tile, pair, parity, column half, row half)
    draws = tl.join(tl.join(_draws(w0), _draws(w1)), tl.join(_draws(w2), _draws(w3)))
    return _kept(draws.permute(0, 6, 1, 2, 5, 3, 4).reshape(BLOCK_M, BLOCK_N), threshold)


@triton.jit
def attention_keep_kernel(
    kept,
    seed,
    threshold,
    num_heads,
    rows,
    cols,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Fills a tile of kept, (sequences, num_heads, rows, cols) bytes. For tests of the rule.

    Grid: (tiles of rows, tiles of columns, sequences * num_heads); tiles must be whole.
    """
    index = tl.program_id(2)
    row0 = tl.program_id(0) * BLOCK_M
    col0 = tl.program_id(1) * BLOCK_N
    row = row0 + tl.arange(0, BLOCK_M)
    col = col0 + tl.arange(0, BLOCK_N)
    key0, key1 = load_key(seed)
    sequence = index // num_heads
    head = index % num_heads
    keep = attention_keep(key0, key1, sequence, head, row0, col0, threshold, BLOCK_M, BLOCK_N)
    offsets = row[:, None] * cols + col[None, :]
    tl.store(kept + index * rows * cols + offsets, keep.to(tl.uint8))


@triton.jit
def hidden_keep(key0, key1, row0, col0, threshold, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Returns which elements of (ROWS, COLS) hidden states are kept; COLS is a multiple of 256.

    ``row0`` is an int64, ``col0`` a multiple of 256.
    """
    BLOCKS: tl.constexpr = COLS // 256
    shape: tl.constexpr = (ROWS, BLOCKS, 32)
    zero = tl.zeros(shape, tl.uint32)
    row = row0 + tl.arange(0, ROWS)[:, None, None]
    block = col0 // 256 + tl.arange(0, BLOCKS)[None, :, None]
    w0, w1, w2, w3 = philox(
        zero + (32 * block + tl.arange(0, 32)[None, None, :]).to(tl.uint32),
        zero + (row & 0xFFFFFFFF).to(tl.uint32),
        zero + (row >> 32).to(tl.uint32),
        zero + _HIDDEN_MARK,
        key0,
        key1,
    )
    # (row, block, pair, parity, word % 2, word // 2)
    draws = tl.join(tl.join(_draws(w0), _draws(w1)), tl.join(_draws(w2), _draws(w3)))
    return _kept(draws.permute(0, 1, 5, 4, 2, 3).reshape(ROWS, COLS), threshold)
