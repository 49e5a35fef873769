"""Attention in plain torch: the definition of every option, and the truth of every test.

    s    = softmax_scale * q @ k.T              scores, (batch, num_heads, seqlen_q, seqlen_k)
    s    = softcap * tanh(s / softcap)          if softcap > 0
    s    = s + bias - alibi_slope * |row + seqlen_k - seqlen_q - col|
    s    = -inf                                 where a key is padding or outside the window
    lse  = log(sum(exp(s)))                     natural logarithm, -inf for a row with no key
    p    = exp(s - lse)                         0 for a row with no key
    out  = (keep * keep_scale * p) @ v          keep: the dropout rule of fastattn.dropout

It is written for reading, and differentiates (twice, if need be) by torch's own autograd. The
score matrix is stored whole: use it where exactness matters and size does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastattn import dropout


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of sums, maxima and lse for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    key_padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of :func:`fastattn.attention`, whose arguments these are.

    Args:
        window: (left, right); causal attention is a right bound of 0.
        seed: scalar int64 tensor, needed if dropout_p > 0.
        compute_dtype: dtype of the two matrix products. None: float32, or float64 for float64
            inputs. The dtype of q gives what a plain torch implementation in that dtype gives.

    Returns:
        out, with the shape and dtype of q; lse in float32 (float64 for float64 inputs),
        (batch, num_heads, seqlen_q), or (num_heads, total_q) for packed inputs.
    """
    options: dict[str, Any] = dict(
        softmax_scale=softmax_scale,
        bias=bias,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        seed=seed,
        compute_dtype=compute_dtype,
    )
    if cu_seqlens_q is None:
        lengths_q = torch.full((q.shape[0],), q.shape[1], device=q.device)
        lengths_k = torch.full((k.shape[0],), k.shape[1], device=q.device)
        return _attention_batch(q, k, v, lengths_q, lengths_k, key_padding_mask, **options)

    if cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
    max_seqlen_q = longest(cu_seqlens_q) if max_seqlen_q is None else max_seqlen_q
    max_seqlen_k = longest(cu_seqlens_k) if max_seqlen_k is None else max_seqlen_k
    out, lse = _attention_batch(
        _pad(q, cu_seqlens_q, max_seqlen_q),
        _pad(k, cu_seqlens_k, max_seqlen_k),
        _pad(v, cu_seqlens_k, max_seqlen_k),
        cu_seqlens_q.diff(),
        cu_seqlens_k.diff(),
        None,
        **options,
    )
    total_q = q.shape[0]  # not len(), which an exported program would take for a constant
    return _unpad(out, cu_seqlens_q, total_q, 0.0), _unpad(
        lse.transpose(1, 2), cu_seqlens_q, total_q, float("-inf")
    ).transpose(0, 1)


def longest(cu_seqlens: Tensor) -> int:
    """Returns the length of the longest sequence; waits for the device."""
    return int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0


def _pad(packed: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """(total, ...) -> (batch, max_seqlen, ...). What lies past a sequence's end is zero."""
    position = torch.arange(max_seqlen, device=packed.device)
    index = cu_seqlens[:-1, None] + position
    valid = position < cu_seqlens.diff()[:, None]
    if packed.shape[0] == 0:
        # The empty sum is 0 and keeps the result in packed's graph.
        return packed.new_zeros(*valid.shape, *packed.shape[1:]) + packed.sum()
    padded = packed[torch.where(valid, index, 0)]
    return torch.where(valid[:, :, None, None], padded, 0.0)


def _unpad(padded: Tensor, cu_seqlens: Tensor, total: int, fill: float) -> Tensor:
    """(batch, max_seqlen, ...) -> (total, ...). Rows of no sequence are ``fill``."""
    if padded.shape[0] == 0 or padded.shape[1] == 0:
        return padded.new_full((total, *padded.shape[2:]), fill) + padded.sum()
    row = torch.arange(total, device=padded.device, dtype=cu_seqlens.dtype)
    valid = row < cu_seqlens[-1]
    sequence = torch.searchsorted(cu_seqlens.contiguous(), row, right=True) - 1
    sequence = sequence.clamp(max=cu_seqlens.shape[0] - 2)
    position = torch.where(valid, row - cu_seqlens[sequence], 0)
    valid = valid.view(-1, *[1] * (padded.ndim - 2))
    return torch.where(valid, padded[sequence, position], fill)


def _attention_batch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_q: Tensor,
    lengths_k: Tensor,
    key_padding_mask: Tensor | None,
    *,
    softmax_scale: float,
    bias: Tensor | None,
    window: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    compute_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Attention of (batch, seqlen, heads, head_dim) with a length for each sequence."""
    out_dtype, stats_dtype = q.dtype, statistics_dtype(q.dtype)
    compute_dtype = compute_dtype or stats_dtype
    batch_size, seqlen_q, num_heads, _ = q.shape
    seqlen_k = k.shape[1]
    row = torch.arange(seqlen_q, device=q.device)[None, :, None]
    col = torch.arange(seqlen_k, device=q.device)[None, None, :]

    key_valid = col[0] < lengths_k[:, None]  # (batch, seqlen_k)
    if key_padding_mask is not None:
        key_valid = key_valid & key_padding_mask
    # A padding key may hold anything, NaN included, and 0 * NaN would reach the output.
    k, v = (torch.where(key_valid[:, :, None, None], x, 0.0).to(compute_dtype) for x in (k, v))
    groups = num_heads // max(k.shape[2], 1)
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))

    s = torch.einsum("bihd,bjhd->bhij", q.to(compute_dtype), k).to(stats_dtype) * softmax_scale
    if softcap > 0.0:
        s = softcap * torch.tanh(s / softcap)
    if bias is not None:
        s = s + bias.to(stats_dtype)
    # The last query of a sequence is aligned with its last key.
    diagonal = row + (lengths_k - lengths_q)[:, None, None]  # (batch, seqlen_q, 1)
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(stats_dtype).reshape(-1, num_heads, 1, 1)
        s = s - slopes * (diagonal - col).abs()[:, None]

    attend = key_valid[:, None, :].expand(batch_size, seqlen_q, seqlen_k)
    left, right = window
    if left >= 0:
        attend = attend & (col >= diagonal - left)
    if right >= 0:
        attend = attend & (col <= diagonal + right)
    s = s.masked_fill(~attend[:, None], float("-inf"))

    if seqlen_k == 0:
        row_max = s.new_zeros(*s.shape[:-1], 1)
    else:
        row_max = s.detach().amax(dim=-1, keepdim=True)
        row_max = torch.where(row_max == float("-inf"), 0.0, row_max)
    exp_s = torch.exp(s - row_max)
    row_sum = exp_s.sum(dim=-1, keepdim=True)
    empty = row_sum == 0.0
    safe_sum = torch.where(empty, 1.0, row_sum)
    lse = torch.where(empty, float("-inf"), row_max + torch.log(safe_sum)).squeeze(-1)
    p = exp_s / safe_sum

    if dropout_p > 0.0:
        if seed is None:
            raise ValueError("attention: seed must be given if dropout_p > 0; got None.")
        keep = dropout.keep_mask(seed, batch_size, num_heads, seqlen_q, seqlen_k, dropout_p)
        p = p * keep * dropout.keep_scale(dropout_p)
    out = torch.einsum("bhij,bjhd->bihd", p.to(compute_dtype), v)
    return out.to(out_dtype), lse
