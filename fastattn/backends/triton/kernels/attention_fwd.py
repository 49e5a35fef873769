"""Attention forward: out and lse.

One program owns BLOCK_M queries of one head of one sequence and streams the keys by, BLOCK_N at a
time, with a running maximum and sum in float32 (Dao, "FlashAttention-2", 2023, algorithm 1).
Where s2 is nothing but scale * q @ k.T, maxima are those of q @ k.T, so that scaling and
subtracting are one instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn.backends.triton.kernels.blocks import (
    LENGTHS,
    dot,
    load_rows,
    locate_program,
    locate_sequence,
    locate_tile,
    narrow,
    rows_of,
    statistics_of,
    store_rows,
)
from fastattn.backends.triton.kernels.scores import (
    keep_tile,
    key_range,
    keys_attended,
    mask_tile,
    place_of,
    score_tile,
)

_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def unit_of(rule):
    """Returns what a running maximum is multiplied with to give s2."""
    unit = 1.0
    if rule.cap is None and rule.bias is None and rule.slopes is None:
        unit = rule.scale
    return unit


@triton.jit
def _meet_keys(
    acc,
    row_max,
    row_sum,
    q_tile,
    k_base,
    k_stride,
    v_base,
    v_stride,
    row0,
    rule,
    place,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the keys that a block of queries may see to its running result.

    ``row_max`` is in units of ``unit_of``.
    """
    PLAIN: tl.constexpr = rule.cap is None and rule.bias is None and rule.slopes is None
    unit = unit_of(rule)
    row = row0 + tl.arange(0, BLOCK_M)
    first, end = key_range(row0, rule, place, BLOCK_M)
    for col0 in tl.range(first, end, BLOCK_N):
        col = col0 + tl.arange(0, BLOCK_N)
        attended = keys_attended(rule, place, col)
        k_tile = load_rows(k_base, col0, k_stride, attended, HEAD_DIM, BLOCK_N, BLOCK_D)
        products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        products = dot(q_tile, tl.trans(k_tile), products, PRECISION)
        s = products
        if not PLAIN:
            s, _ = score_tile(products, row[:, None], col[None, :], rule, place)
        seen = attended[None, :]
        s = mask_tile(s, float("-inf"), seen, row[:, None], col[None, :], rule, place)

        new_max = tl.maximum(row_max, tl.max(s, 1))
        # A row that has seen no key yet: -inf - -inf would be NaN.
        origin = tl.where(new_max == float("-inf"), 0.0, new_max)
        p = tl.exp2(s * unit - (origin * unit)[:, None])
        decay = tl.exp2((row_max - origin) * unit)
        row_sum = row_sum * decay + tl.sum(p, 1)
        row_max = new_max
        if rule.seed is not None:
            keep = keep_tile(rule, place, row0, col0, BLOCK_M, BLOCK_N)
            # Choosing p itself would be done in 16 bits, which is slow.
            p *= tl.where(keep, 1.0, 0.0)
        v_tile = load_rows(v_base, col0, v_stride, attended, HEAD_DIM, BLOCK_N, BLOCK_D)
        acc = dot(narrow(p, v_tile.dtype), v_tile, acc * decay[:, None], PRECISION)
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=LENGTHS)
def attention_fwd_kernel(
    out,
    lse,
    q,
    k,
    v,
    rule,
    cu_seqlens_q,
    cu_seqlens_k,
    batch_size,
    tiles,
    rows_q,
    rows_k,
    seqlen_q,
    seqlen_k,
    num_heads,
    heads_per_kv,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fills BLOCK_M rows of out and lse. Grid: (tiles of all sequences times num_heads,)."""
    PACKED: tl.constexpr = cu_seqlens_q is not None
    tile, head = locate_program(tiles)
    sequence, row0 = locate_tile(tile, cu_seqlens_q, batch_size, seqlen_q, BLOCK_M)
    start_q, length_q = locate_sequence(sequence, cu_seqlens_q, batch_size, rows_q, seqlen_q)
    if row0 >= length_q:
        return
    start_k, length_k = locate_sequence(sequence, cu_seqlens_k, batch_size, rows_k, seqlen_k)
    if PACKED:
        # Rows behind the last sequence see no key: out = 0, lse = -inf.
        length_k = tl.where(sequence < batch_size, length_k, 0)
    place = place_of(rule, sequence, head, length_q, length_k)

    row = row0 + tl.arange(0, BLOCK_M)
    q_base = rows_of(q, sequence, start_q, head, PACKED)
    k_base = rows_of(k, sequence, start_k, head // heads_per_kv, PACKED)
    v_base = rows_of(v, sequence, start_k, head // heads_per_kv, PACKED)
    q_tile = load_rows(q_base, row0, q.row_stride, row < length_q, HEAD_DIM, BLOCK_M, BLOCK_D)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    acc, row_max, row_sum = _meet_keys(
        acc,
        row_max,
        row_sum,
        q_tile,
        k_base,
        k.row_stride,
        v_base,
        v.row_stride,
        row0,
        rule,
        place,
        HEAD_DIM,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        PRECISION,
    )

    empty = row_sum == 0.0
    row_sum = tl.where(empty, 1.0, row_sum)
    out_tile = acc * (rule.keep_scale / row_sum)[:, None]
    out_base = rows_of(out, sequence, start_q, head, PACKED)
    store_rows(out_base, row0, out.row_stride, row < length_q, out_tile, HEAD_DIM, BLOCK_M, BLOCK_D)
    lse_row = tl.where(empty, float("-inf"), _LN_2 * (row_max * unit_of(rule) + tl.log2(row_sum)))
    lse_base = statistics_of(lse, sequence, start_q, head, num_heads, seqlen_q, PACKED)
    tl.store(lse_base + row, lse_row, mask=row < length_q)
