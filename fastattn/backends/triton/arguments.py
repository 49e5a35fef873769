"""What the kernels are told, in named tuples, which Triton passes as they are.

A field that is None is a constant of the compiled kernel: the code for an absent option is not
there. Strides count elements.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Rows of each head: of q, k, v, out and their gradients.

    In the packed layout the batch stride is not used.
    """

    data: Tensor
    batch_stride: int
    row_stride: int
    head_stride: int


class Rule(NamedTuple):
    """The rule of the scores: what happens to q @ k.T before and after the softmax."""

    scale: float  # softmax_scale * log2(e); with a softcap softmax_scale / softcap
    cap: float | None  # softcap * log2(e)
    left: int | None  # the window's bounds
    right: int | None
    bias: Tensor | None  # strides of 0 where it is broadcast
    bias_batch_stride: int
    bias_head_stride: int
    bias_row_stride: int
    bias_col_stride: int
    slopes: Tensor | None
    slopes_batch_stride: int
    key_mask: Tensor | None  # uint8, (batch, seqlen_k)
    key_ends: Tensor | None  # with a key_mask: the last key attended to, plus 1
    seed: Tensor | None
    threshold: int  # of the 16-bit draws
    keep_scale: float  # 1 without dropout
