"""The attention weights of a call, from what it leaves behind: the log of its softmax's sums."""

from __future__ import annotations

import torch
from torch import Tensor

from fastattn import dropout
from fastattn.reference import statistics_dtype


def attention_probabilities(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    softmax_scale: float,
    key_padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """The weights with which :func:`fastattn.attention` summed its values.

        p = dropout(exp(softmax_scale * q @ k.T + bias - lse))

    They are as many as the scores that attention does not store: for looking at, not for speed.

    Args:
        q, k: (batch, seqlen, num_heads or num_heads_kv, head_dim), those of the call.
        lse: (batch, num_heads, seqlen_q), what the call returned. Rows of -inf have no weights.
        softmax_scale, key_padding_mask, bias, window, softcap: those of the call; causal attention
            is a window with a right bound of 0.
        dropout_p, seed: those of the call, for weights as they were after dropout.

    Returns:
        (batch, num_heads, seqlen_q, seqlen_k), in the dtype of q; differentiable.
    """
    stats_dtype = statistics_dtype(q.dtype)
    batch_size, seqlen_q, num_heads, _ = q.shape
    seqlen_k = k.shape[1]
    if key_padding_mask is not None:
        # A padding key may hold anything, NaN included.
        k = k.masked_fill(~key_padding_mask[:, :, None, None], 0.0)
    k = k.repeat_interleave(num_heads // max(k.shape[2], 1), dim=2)
    s = torch.einsum("bihd,bjhd->bhij", q.to(stats_dtype), k.to(stats_dtype)) * softmax_scale
    if softcap > 0.0:
        s = softcap * torch.tanh(s / softcap)
    if bias is not None:
        s = s + bias.to(stats_dtype)
    attend = _attended(seqlen_q, seqlen_k, window, q.device)
    if key_padding_mask is not None:
        attend = attend & key_padding_mask[:, None, None, :]
    lse = lse.to(stats_dtype)[..., None]
    attend = attend & (lse > float("-inf"))
    # exp of what is masked would overflow, and its gradient with it.
    p = torch.exp((s - lse).masked_fill(~attend, float("-inf")))
    if dropout_p > 0.0:
        assert seed is not None  # the caller drew it
        keep = dropout.keep_mask(seed, batch_size, num_heads, seqlen_q, seqlen_k, dropout_p)
        p = p * keep * dropout.keep_scale(dropout_p)
    return p.to(q.dtype)


def _attended(
    seqlen_q: int, seqlen_k: int, window: tuple[int, int], device: torch.device
) -> Tensor:
    """Returns which keys the window leaves to each query: (seqlen_q, seqlen_k) bool."""
    # The last query is aligned with the last key.
    diagonal = torch.arange(seqlen_q, device=device)[:, None] + (seqlen_k - seqlen_q)
    col = torch.arange(seqlen_k, device=device)[None, :]
    left, right = window
    attend = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool, device=device)
    if left >= 0:
        attend &= col >= diagonal - left
    if right >= 0:
        attend &= col <= diagonal + right
    return attend
