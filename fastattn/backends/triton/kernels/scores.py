"""The rule of the scores, shared by the forward kernel and every backward one.

    s2 = log2(e) * (softcap(softmax_scale * q @ k.T) + bias - slope * |row + diagonal - col|)
    s2 = -inf                          where the key is padding or outside the window

A tile is (rows, columns) or its transpose: ``row`` and ``col`` are index vectors that broadcast
against each other to the shape of the tile, (M, 1) and (1, N), or (1, M) and (N, 1).

``place`` says which scores they are: (sequence, head, seqlen_q, seqlen_k, key_end, bias, slope,
key0, key1), where keys from key_end on are padding, and ``bias`` points to the head's first one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn.backends.triton.kernels.philox import attention_keep, load_key

_LOG2_E = tl.constexpr(1.4426950408889634)
_SMALLEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def place_of(rule, sequence, head, seqlen_q, seqlen_k):
    """Returns the place of a head's scores in a sequence; see above."""
    key_end = seqlen_k
    if rule.key_mask is not None:
        key_end = tl.load(rule.key_ends + sequence)
    bias = 0
    if rule.bias is not None:
        bias = rule.bias + tl.cast(sequence, tl.int64) * rule.bias_batch_stride
        bias += tl.cast(head, tl.int64) * rule.bias_head_stride
    slope = 0.0
    if rule.slopes is not None:
        # The rows behind the last packed sequence have no slope, nor any score.
        any_score = (seqlen_q > 0) & (seqlen_k > 0)
        slopes = rule.slopes + sequence * rule.slopes_batch_stride
        slope = tl.load(slopes + head, mask=any_score, other=0.0)
    key0 = 0
    key1 = 0
    if rule.seed is not None:
        key0, key1 = load_key(rule.seed)
    return sequence, head, seqlen_q, seqlen_k, key_end, bias, slope, key0, key1


@triton.jit
def keys_attended(rule, place, col):
    """Returns which keys are not padding."""
    sequence, _, _, seqlen_k, key_end, _, _, _, _ = place
    attended = col < key_end
    if rule.key_mask is not None:
        mask = rule.key_mask + tl.cast(sequence, tl.int64) * seqlen_k
        attended = tl.load(mask + col, mask=attended, other=0) != 0
    return attended


@triton.jit
def tanh(x):
    """tanh by exp2, which every GPU has; near 0, where that cancels, by its series."""
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)  # exp(-2 * |x|)
    large = (1.0 - e) / (1.0 + e)
    large = tl.where(x < 0.0, -large, large)
    y = x * x
    series = -0.053968254 + y * 0.021869488
    series = x * (1.0 + y * (-0.33333334 + y * (0.13333334 + y * series)))
    return tl.where(y < 0.0625, series, large)


@triton.jit
def score_tile(products, row, col, rule, place):
    """Returns s2 of a tile before any mask, and with a softcap the tanh in it.

    ``products`` is q @ k.T.
    """
    _, _, seqlen_q, seqlen_k, _, bias, slope, _, _ = place
    capped = products * rule.scale
    s2 = capped
    if rule.cap is not None:
        capped = tanh(capped)
        s2 = capped * rule.cap
    if rule.bias is not None:
        offsets = row.to(tl.int64) * rule.bias_row_stride + col.to(tl.int64) * rule.bias_col_stride
        inside = (row < seqlen_q) & (col < seqlen_k)
        added = tl.load(bias + offsets, mask=inside, other=0.0)
        # A finite score stays finite, so that a row of -FLT_MAX is uniform as in plain softmax.
        s2 = tl.where(
            added == float("-inf"),
            added,
            tl.maximum(s2 + tl.maximum(added * _LOG2_E, _SMALLEST), _SMALLEST),
        )
    if rule.slopes is not None:
        distance = tl.abs(row + (seqlen_k - seqlen_q) - col)
        s2 -= slope * _LOG2_E * distance.to(tl.float32)
    return s2, capped


@triton.jit
def weights(s2, lse2, rule):
    """Returns p, from log2(e) * lse."""
    exponent = s2 - lse2
    if rule.bias is not None:  # whose -FLT_MAX leaves no digits: p is at most 1
        exponent = tl.minimum(exponent, 0.0)
    return tl.exp2(exponent)


@triton.jit
def in_window(row, col, rule, place):
    """Returns which elements of a tile lie within the window, which has a bound."""
    _, _, seqlen_q, seqlen_k, _, _, _, _, _ = place
    distance = col - row - (seqlen_k - seqlen_q)
    if rule.left is None:
        inside = distance <= rule.right
    else:
        inside = distance >= -rule.left
        if rule.right is not None:
            inside = inside & (distance <= rule.right)
    return inside


@triton.jit
def keep_tile(rule, place, row0, col0, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Returns which weights of a tile dropout keeps."""
    sequence, head, _, _, _, _, _, key0, key1 = place
    return attention_keep(key0, key1, sequence, head, row0, col0, rule.threshold, BLOCK_M, BLOCK_N)


@triton.jit
def mask_tile(tile, value, attended, row, col, rule, place):
    """Returns a tile of scores with a value where a query does not see a key.

    It is applied to every tile: a second loop without it is 1.5 instructions of 20 less for an
    element with dropout (sm_90, 2026-11-28), and twice the code to compile before the first call.
    """
    seen = attended
    if rule.left is not None or rule.right is not None:
        seen = seen & in_window(row, col, rule, place)
    return tl.where(seen, tile, value)


@triton.jit
def key_range(row0, rule, place, BLOCK_M: tl.constexpr):
    """Returns (first, end): the keys that some of BLOCK_M rows from ``row0`` may see."""
    _, _, seqlen_q, seqlen_k, end, _, _, _, _ = place
    diagonal = row0 + seqlen_k - seqlen_q
    first = row0 * 0
    if rule.right is not None:
        end = tl.minimum(end, diagonal + BLOCK_M + rule.right)
    if rule.left is not None:  # Dropout is drawn for 16 keys at a time.
        first = tl.maximum(diagonal - rule.left, 0) // 16 * 16
    return first, end


@triton.jit
def query_range(col0, rule, place, BLOCK_N: tl.constexpr):
    """Returns (first, end): the queries that may see some of BLOCK_N keys from ``col0``."""
    _, _, seqlen_q, seqlen_k, key_end, _, _, _, _ = place
    diagonal = col0 - (seqlen_k - seqlen_q)
    first = col0 * 0
    end = tl.where(col0 < key_end, seqlen_q, 0)
    if rule.right is not None:  # Dropout is drawn for 16 queries at a time.
        first = tl.maximum(diagonal - rule.right, 0) // 16 * 16
    if rule.left is not None:
        end = tl.minimum(end, diagonal + BLOCK_N + rule.left)
    return first, end
