"""Attention backward: the gradient of the bias, summed over the dimensions it is broadcast along.

A program owns one tile of the bias, computes the gradient of every score that reads it, and adds
them up in registers: nothing of the size of all scores is stored, and there are no atomics. It runs
only when the bias asks for a gradient. Rows of q, k, v and dout serve one tile only, so BLOCK_D of
their columns are multiplied at a time: whole rows of 128 or 256 would not fit into registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn.backends.triton.kernels.attention_bwd import grad_tile, load_statistics
from fastattn.backends.triton.kernels.blocks import (
    LENGTHS,
    dot,
    load_rows,
    locate_program,
    locate_sequence,
    rows_of,
    statistics_of,
)
from fastattn.backends.triton.kernels.scores import keys_attended, place_of


@triton.jit
def _add_head(
    dbias_tile,
    dout,
    lse,
    delta,
    q,
    k,
    v,
    rule,
    place,
    start_q,
    start_k,
    seqlen_q,
    num_heads,
    heads_per_kv,
    row_range,
    col_range,
    PACKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the gradients of a head's scores within a range of rows and columns."""
    sequence, head, length_q, _, _, _, _, _, _ = place
    row_first, row_end = row_range
    col_first, col_end = col_range
    q_base = rows_of(q, sequence, start_q, head, PACKED)
    dout_base = rows_of(dout, sequence, start_q, head, PACKED)
    k_base = rows_of(k, sequence, start_k, head // heads_per_kv, PACKED)
    v_base = rows_of(v, sequence, start_k, head // heads_per_kv, PACKED)
    lse_base = statistics_of(lse, sequence, start_q, head, num_heads, seqlen_q, PACKED)
    delta_base = statistics_of(delta, sequence, start_q, head, num_heads, seqlen_q, PACKED)
    for row0 in tl.range(row_first, row_end, BLOCK_M):
        row = row0 + tl.arange(0, BLOCK_M)
        valid = row < length_q
        lse2, row_delta = load_statistics(lse_base, delta_base, row, valid)
        for col0 in tl.range(col_first, col_end, BLOCK_N):
            attended = keys_attended(rule, place, col0 + tl.arange(0, BLOCK_N))
            products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            dp = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for d0 in tl.range(0, HEAD_DIM, BLOCK_D):
                q_part = load_rows(
                    q_base, row0, q.row_stride, valid, HEAD_DIM, BLOCK_M, BLOCK_D, d0
                )
                k_part = load_rows(
                    k_base, col0, k.row_stride, attended, HEAD_DIM, BLOCK_N, BLOCK_D, d0
                )
                products = dot(q_part, tl.trans(k_part), products, PRECISION)
                dout_part = load_rows(
                    dout_base, row0, dout.row_stride, valid, HEAD_DIM, BLOCK_M, BLOCK_D, d0
                )
                v_part = load_rows(
                    v_base, col0, v.row_stride, attended, HEAD_DIM, BLOCK_N, BLOCK_D, d0
                )
                dp = dot(dout_part, tl.trans(v_part), dp, PRECISION)
            dscore, _ds = grad_tile(
                products, dp, lse2, row_delta, attended, row0, col0, rule, place, BLOCK_M, BLOCK_N
            )
            dbias_tile += dscore
    return dbias_tile


@triton.jit(
    do_not_specialize=[*LENGTHS, "shared_sequences", "shared_heads", "bias_rows", "bias_cols"]
)
def dbias_kernel(
    dbias,
    dout,
    lse,
    delta,
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
    shared_sequences,
    shared_heads,
    bias_heads,
    bias_rows,
    bias_cols,
    ONE_ROW: tl.constexpr,
    ONE_COL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fills a tile of dbias, (bias_batch, bias_heads, bias_rows, bias_cols) float32, contiguous.

    A program serves ``shared_sequences`` sequences and ``shared_heads`` heads: all of them where
    the bias is broadcast, else one. ONE_ROW, ONE_COL: it is broadcast along queries, along keys.
    Grid: (tiles of rows times tiles of columns times bias_heads times bias_batch,).
    """
    PACKED: tl.constexpr = cu_seqlens_q is not None
    index, bias_index = locate_program(tiles)
    row0 = index // tl.cdiv(bias_cols, BLOCK_N) * BLOCK_M
    col0 = index % tl.cdiv(bias_cols, BLOCK_N) * BLOCK_N
    bias_head = bias_index % bias_heads
    bias_sequence = bias_index // bias_heads
    tile = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in tl.range(0, shared_sequences):
        sequence = bias_sequence + i
        start_q, length_q = locate_sequence(sequence, cu_seqlens_q, batch_size, rows_q, seqlen_q)
        start_k, length_k = locate_sequence(sequence, cu_seqlens_k, batch_size, rows_k, seqlen_k)
        row_end = length_q if ONE_ROW else tl.minimum(row0 + BLOCK_M, length_q)
        col_end = length_k if ONE_COL else tl.minimum(col0 + BLOCK_N, length_k)
        for j in tl.range(0, shared_heads):
            tile = _add_head(
                tile,
                dout,
                lse,
                delta,
                q,
                k,
                v,
                rule,
                place_of(rule, sequence, bias_head + j, length_q, length_k),
                start_q,
                start_k,
                seqlen_q,
                num_heads,
                heads_per_kv,
                (row0, row_end),
                (col0, col_end),
                PACKED,
                HEAD_DIM,
                BLOCK_M,
                BLOCK_N,
                BLOCK_D,
                PRECISION,
            )
    row = row0 + tl.arange(0, BLOCK_M)
    col = col0 + tl.arange(0, BLOCK_N)
    if ONE_ROW:
        tile = tl.broadcast_to(tl.sum(tile, 0)[None, :], (BLOCK_M, BLOCK_N))
    if ONE_COL:
        tile = tl.broadcast_to(tl.sum(tile, 1)[:, None], (BLOCK_M, BLOCK_N))
    row_index = (tl.cast(bias_sequence, tl.int64) * bias_heads + bias_head) * bias_rows + row
    offsets = row_index[:, None] * bias_cols + col[None, :]
    tl.store(dbias + offsets, tile, mask=(row[:, None] < bias_rows) & (col[None, :] < bias_cols))
