"""Attention backward: delta, then dk and dv, then dq. No atomics, so the result is deterministic.

    p    = 2^(s2 - log2(e) * lse)           recomputed
    dp   = keep * keep_scale * (dout @ v.T)
    ds   = p * (dp - delta)                 delta = rowsum(out * dout) - dlse
    ds   = ds * (1 - tanh^2)                with a softcap
    dv   = keep_scale * (keep * p).T @ dout
    dk   = softmax_scale * ds.T @ q
    dq   = softmax_scale * ds @ k

A program of dk and dv owns BLOCK_N keys of one key head, and meets the queries of every head that
shares it. It turns p and ds over in 16 bits, for the products with dout and q; turning the scores
themselves over, (keys, queries), would leave the draws of dropout with other threads than those
that hold what they serve. A program of dq owns BLOCK_M queries of one head.
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
    query_range,
    score_tile,
    weights,
)

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["tiles", "rows", "num_heads"])
def delta_kernel(
    delta,
    out,
    dout,
    dlse,
    tiles,
    rows,
    num_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Fills BLOCK_M rows of delta, float32. Grid: (tiles of rows * num_heads * batch or 1,)."""
    tile, index = locate_program(tiles)
    sequence = index // num_heads
    head = index % num_heads
    row0 = tile * BLOCK_M
    row = row0 + tl.arange(0, BLOCK_M)
    valid = row < rows
    out_base = rows_of(out, sequence, 0, head, False)
    dout_base = rows_of(dout, sequence, 0, head, False)
    out_tile = load_rows(out_base, row0, out.row_stride, valid, HEAD_DIM, BLOCK_M, BLOCK_D)
    dout_tile = load_rows(dout_base, row0, dout.row_stride, valid, HEAD_DIM, BLOCK_M, BLOCK_D)
    total = tl.sum(out_tile.to(tl.float32) * dout_tile.to(tl.float32), 1)
    if dlse is not None:
        dlse_base = statistics_of(dlse, sequence, 0, head, num_heads, rows, False)
        total -= tl.load(dlse_base + row, mask=valid, other=0.0)
    tl.store(
        statistics_of(delta, sequence, 0, head, num_heads, rows, False) + row, total, mask=valid
    )


@triton.jit
def load_statistics(lse_base, delta_base, row, valid):
    """Returns log2(e) * lse and delta of rows. +inf, hence p = 0, where a row sees no key."""
    lse = tl.load(lse_base + row, mask=valid, other=float("-inf"))
    delta = tl.load(delta_base + row, mask=valid, other=0.0)
    return tl.where(lse == float("-inf"), float("inf"), lse * _LOG2_E), delta


@triton.jit
def score_grad(p, dp, capped, delta, keep, rule):
    """Returns keep * p and the gradient of the scores with bias, and that of q @ k.T.

    The last is without softmax_scale; ``keep`` is not used without dropout.
    """
    kept = p
    if rule.seed is not None:
        factor = tl.where(keep, 1.0, 0.0)  # choosing p itself would be done in 16 bits, slowly
        kept = p * factor
        dp = dp * factor * rule.keep_scale
    dscore = p * (dp - delta)
    ds = dscore
    if rule.cap is not None:
        ds = dscore * (1.0 - capped * capped)
    return kept, dscore, ds


@triton.jit
def _meet_queries(
    dk,
    dv,
    k_tile,
    v_tile,
    q_base,
    q_stride,
    dout_base,
    dout_stride,
    lse_base,
    delta_base,
    col0,
    rule,
    place,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds what the queries of a head that may see the keys give to dk and dv.

    Which keys are padding makes no difference here: a key's gradients come from its own scores,
    and those of padding are not stored.
    """
    _, _, seqlen_q, _, _, _, _, _, _ = place
    col = col0 + tl.arange(0, BLOCK_N)
    first, end = query_range(col0, rule, place, BLOCK_N)
    for row0 in tl.range(first, end, BLOCK_M):
        row = row0 + tl.arange(0, BLOCK_M)
        valid = row < seqlen_q
        q_tile = load_rows(q_base, row0, q_stride, valid, HEAD_DIM, BLOCK_M, BLOCK_D)
        lse2, delta = load_statistics(lse_base, delta_base, row, valid)
        products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        products = dot(q_tile, tl.trans(k_tile), products, PRECISION)
        s2, capped = score_tile(products, row[:, None], col[None, :], rule, place)
        p = weights(s2, lse2[:, None], rule)
        if rule.left is not None or rule.right is not None:
            p = mask_tile(p, 0.0, valid[:, None], row[:, None], col[None, :], rule, place)
        dout_tile = load_rows(dout_base, row0, dout_stride, valid, HEAD_DIM, BLOCK_M, BLOCK_D)
        dp = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        dp = dot(dout_tile, tl.trans(v_tile), dp, PRECISION)
        keep = True
        if rule.seed is not None:
            keep = keep_tile(rule, place, row0, col0, BLOCK_M, BLOCK_N)
        kept, _dscore, ds = score_grad(p, dp, capped, delta[:, None], keep, rule)
        dv = dot(tl.trans(narrow(kept, dout_tile.dtype)), dout_tile, dv, PRECISION)
        dk = dot(tl.trans(narrow(ds, q_tile.dtype)), q_tile, dk, PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=LENGTHS)
def dkdv_kernel(
    dk,
    dv,
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
    softmax_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fills BLOCK_N rows of dk and dv. Grid: (tiles of all sequences times num_heads_kv,)."""
    PACKED: tl.constexpr = cu_seqlens_q is not None
    tile, head_kv = locate_program(tiles)
    sequence, col0 = locate_tile(tile, cu_seqlens_k, batch_size, seqlen_k, BLOCK_N)
    start_k, length_k = locate_sequence(sequence, cu_seqlens_k, batch_size, rows_k, seqlen_k)
    if col0 >= length_k:
        return
    start_q, length_q = locate_sequence(sequence, cu_seqlens_q, batch_size, rows_q, seqlen_q)
    if PACKED:  # Rows behind the last sequence are seen by no query: their gradients are 0.
        length_q = tl.where(sequence < batch_size, length_q, 0)
    col = col0 + tl.arange(0, BLOCK_N)
    within = col < length_k
    any_head = place_of(rule, sequence, head_kv * heads_per_kv, length_q, length_k)
    attended = keys_attended(rule, any_head, col)
    k_base = rows_of(k, sequence, start_k, head_kv, PACKED)
    v_base = rows_of(v, sequence, start_k, head_kv, PACKED)
    k_tile = load_rows(k_base, col0, k.row_stride, attended, HEAD_DIM, BLOCK_N, BLOCK_D)
    v_tile = load_rows(v_base, col0, v.row_stride, attended, HEAD_DIM, BLOCK_N, BLOCK_D)
    dk_tile = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_tile = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for head in tl.range(head_kv * heads_per_kv, (head_kv + 1) * heads_per_kv):
        place = place_of(rule, sequence, head, length_q, length_k)
        dk_tile, dv_tile = _meet_queries(
            dk_tile,
            dv_tile,
            k_tile,
            v_tile,
            rows_of(q, sequence, start_q, head, PACKED),
            q.row_stride,
            rows_of(dout, sequence, start_q, head, PACKED),
            dout.row_stride,
            statistics_of(lse, sequence, start_q, head, num_heads, seqlen_q, PACKED),
            statistics_of(delta, sequence, start_q, head, num_heads, seqlen_q, PACKED),
            col0,
            rule,
            place,
            HEAD_DIM,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
            PRECISION,
        )

    dk_tile = tl.where(attended[:, None], dk_tile * softmax_scale, 0.0)
    dv_tile = tl.where(attended[:, None], dv_tile * rule.keep_scale, 0.0)
    dk_base = rows_of(dk, sequence, start_k, head_kv, PACKED)
    dv_base = rows_of(dv, sequence, start_k, head_kv, PACKED)
    store_rows(dk_base, col0, dk.row_stride, within, dk_tile, HEAD_DIM, BLOCK_N, BLOCK_D)
    store_rows(dv_base, col0, dv.row_stride, within, dv_tile, HEAD_DIM, BLOCK_N, BLOCK_D)


@triton.jit
def grad_tile(
    products,
    dp,
    lse2,
    delta,
    attended,
    row0,
    col0,
    rule,
    place,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Returns the gradients of the scores with bias and of q @ k.T, of one tile.

    ``products`` is q @ k.T, ``dp`` is dout @ v.T; ``attended`` says which keys are not padding.
    """
    row = row0 + tl.arange(0, BLOCK_M)
    col = col0 + tl.arange(0, BLOCK_N)
    s2, capped = score_tile(products, row[:, None], col[None, :], rule, place)
    p = weights(s2, lse2[:, None], rule)
    p = mask_tile(p, 0.0, attended[None, :], row[:, None], col[None, :], rule, place)
    keep = True
    if rule.seed is not None:
        keep = keep_tile(rule, place, row0, col0, BLOCK_M, BLOCK_N)
    _, dscore, ds = score_grad(p, dp, capped, delta[:, None], keep, rule)
    return dscore, ds


@triton.jit(do_not_specialize=LENGTHS)
def dq_kernel(
    dq,
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
    softmax_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fills BLOCK_M rows of dq. Grid: (tiles of all sequences times num_heads,)."""
    PACKED: tl.constexpr = cu_seqlens_q is not None
    tile, head = locate_program(tiles)
    sequence, row0 = locate_tile(tile, cu_seqlens_q, batch_size, seqlen_q, BLOCK_M)
    start_q, length_q = locate_sequence(sequence, cu_seqlens_q, batch_size, rows_q, seqlen_q)
    if row0 >= length_q:
        return
    start_k, length_k = locate_sequence(sequence, cu_seqlens_k, batch_size, rows_k, seqlen_k)
    if PACKED:
        length_k = tl.where(sequence < batch_size, length_k, 0)
    place = place_of(rule, sequence, head, length_q, length_k)

    row = row0 + tl.arange(0, BLOCK_M)
    valid = row < length_q
    q_base = rows_of(q, sequence, start_q, head, PACKED)
    dout_base = rows_of(dout, sequence, start_q, head, PACKED)
    k_base = rows_of(k, sequence, start_k, head // heads_per_kv, PACKED)
    v_base = rows_of(v, sequence, start_k, head // heads_per_kv, PACKED)
    lse_base = statistics_of(lse, sequence, start_q, head, num_heads, seqlen_q, PACKED)
    delta_base = statistics_of(delta, sequence, start_q, head, num_heads, seqlen_q, PACKED)
    q_tile = load_rows(q_base, row0, q.row_stride, valid, HEAD_DIM, BLOCK_M, BLOCK_D)
    dout_tile = load_rows(dout_base, row0, dout.row_stride, valid, HEAD_DIM, BLOCK_M, BLOCK_D)
    lse2, row_delta = load_statistics(lse_base, delta_base, row, valid)
    dq_tile = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first, end = key_range(row0, rule, place, BLOCK_M)
    for col0 in tl.range(first, end, BLOCK_N):
        attended = keys_attended(rule, place, col0 + tl.arange(0, BLOCK_N))
        k_tile = load_rows(k_base, col0, k.row_stride, attended, HEAD_DIM, BLOCK_N, BLOCK_D)
        v_tile = load_rows(v_base, col0, v.row_stride, attended, HEAD_DIM, BLOCK_N, BLOCK_D)
        products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        products = dot(q_tile, tl.trans(k_tile), products, PRECISION)
        dp = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        dp = dot(dout_tile, tl.trans(v_tile), dp, PRECISION)
        _, ds = grad_tile(
            products, dp, lse2, row_delta, attended, row0, col0, rule, place, BLOCK_M, BLOCK_N
        )
        dq_tile = dot(narrow(ds, k_tile.dtype), k_tile, dq_tile, PRECISION)
    dq_base = rows_of(dq, sequence, start_q, head, PACKED)
    dq_tile = dq_tile * softmax_scale
    store_rows(dq_base, row0, dq.row_stride, valid, dq_tile, HEAD_DIM, BLOCK_M, BLOCK_D)
