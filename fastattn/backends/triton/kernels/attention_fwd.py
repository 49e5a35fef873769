"""Attention forward: out and lse.

One program owns BLOCK_M queries of one head of one sequence and streams the keys by, BLOCK_N at a
time, with a running maximum and sum in float32 (Dao, "FlashAttention-2", 2023, algorithm 1).
Blocks in which every key is seen skip the masks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn.backends.triton.kernels.blocks import (
    dot,
    load_all_rows,
    load_rows,
    locate_sequence,
    locate_tile,
    narrow,
    rows_of,
    store_rows,
)
from fastattn.backends.triton.kernels.scores import (
    in_window,
    keep_tile,
    key_range,
    keys_attended,
    place_of,
    score_tile,
)

_LN_2 = tl.constexpr(0.6931471805599453)


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
    first,
    end,
    rule,
    place,
    ALL_SEEN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the keys from ``first`` to ``end`` to the running result of a block of queries."""
    row = row0 + tl.arange(0, BLOCK_M)
    for col0 in tl.range(first, end, BLOCK_N):
        col = col0 + tl.arange(0, BLOCK_N)
        if ALL_SEEN:
            k_tile = load_all_rows(k_base, col, k_stride, HEAD_DIM, BLOCK_D)
        else:
            attended = keys_attended(rule, place, col)
            k_tile = load_rows(k_base, col, k_stride, attended, HEAD_DIM, BLOCK_D)
        products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        products = dot(q_tile, tl.trans(k_tile), products, PRECISION)
        s2, _ = score_tile(products, row[:, None], col[None, :], rule, place)
        if not ALL_SEEN:
            seen = attended[None, :]
            if rule.left is not None or rule.right is not None:
                seen = seen & in_window(row[:, None], col[None, :], rule, place)
            s2 = tl.where(seen, s2, float("-inf"))

        new_max = tl.maximum(row_max, tl.max(s2, 1))
        # A row that has seen no key yet: -inf - -inf would be NaN.
        origin = tl.where(new_max == float("-inf"), 0.0, new_max)
        p = tl.exp2(s2 - origin[:, None])
        decay = tl.exp2(row_max - origin)
        row_sum = row_sum * decay + tl.sum(p, 1)
        row_max = new_max
        if rule.seed is not None:
            keep = keep_tile(rule, place, row0, col0, BLOCK_M, BLOCK_N, False)
            p = tl.where(keep, p, 0.0)
        if ALL_SEEN:
            v_tile = load_all_rows(v_base, col, v_stride, HEAD_DIM, BLOCK_D)
        else:
            v_tile = load_rows(v_base, col, v_stride, attended, HEAD_DIM, BLOCK_D)
        acc = dot(narrow(p, v_tile.dtype), v_tile, acc * decay[:, None], PRECISION)
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=["batch_size", "rows_q", "rows_k", "seqlen_q", "seqlen_k"])
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
    rows_q,
    rows_k,
    seqlen_q,
    seqlen_k,
    heads_per_kv,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fills BLOCK_M rows of out and lse. Grid: (tiles of all sequences, num_heads)."""
    PACKED: tl.constexpr = cu_seqlens_q is not None
    head = tl.program_id(1)
    sequence, row0 = locate_tile(tl.program_id(0), cu_seqlens_q, batch_size, seqlen_q, BLOCK_M)
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
    q_tile = load_rows(q_base, row, q.row_stride, row < length_q, HEAD_DIM, BLOCK_D)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    first, full_end, end = key_range(row0, rule, place, BLOCK_M, BLOCK_N)
    for phase in tl.static_range(2):
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
            first if phase == 0 else full_end,
            full_end if phase == 0 else end,
            rule,
            place,
            phase == 0,
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
    store_rows(out_base, row, out.row_stride, row < length_q, out_tile, HEAD_DIM, BLOCK_D)
    lse_row = tl.where(empty, float("-inf"), _LN_2 * (row_max + tl.log2(row_sum)))
    lse_base = rows_of(lse, sequence, start_q, head, PACKED)
    tl.store(lse_base + row, lse_row, mask=row < length_q)
