"""Where the padding at the end of each sequence of a batch begins."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["seqlen_k"])
def key_ends_kernel(key_ends, key_mask, seqlen_k, BLOCK: tl.constexpr):
    """Fills one more than the last key that is attended to, 0 without any. Grid: (batch,)."""
    sequence = tl.program_id(0)
    mask = key_mask + tl.cast(sequence, tl.int64) * seqlen_k
    last = tl.zeros((BLOCK,), tl.int32)
    for col0 in tl.range(0, seqlen_k, BLOCK):
        col = col0 + tl.arange(0, BLOCK)
        attended = tl.load(mask + col, mask=col < seqlen_k, other=0) != 0
        last = tl.maximum(last, tl.where(attended, col + 1, 0))
    tl.store(key_ends + sequence, tl.max(last, 0))
