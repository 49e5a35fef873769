"""The attention weights of Transformers' ``output_attentions``, computed anew for who asks.

They are stock's: after dropout, in the layout of the padded batch. Where padding was removed, its
queries have no states, so their rows are zero; stock fills such rows with weights of no meaning.
As in stock, it is with them that the values are summed, so that a loss has a gradient by each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastattn import dropout
from fastattn.ops.attention import attention, autocast
from fastattn.ops.checks import check_window
from fastattn.ops.padding import PackedLayout, gather_rows, pad_input, sequence_slots
from fastattn.ops.probabilities import attention_probabilities


def attention_and_weights(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """:func:`fastattn.attention` of a batch, and its weights.

    Args:
        q, k, v: (batch, seqlen, num_heads or num_heads_kv, head_dim).
        options: those of :func:`fastattn.attention`.

    Returns:
        out, and (batch, num_heads, seqlen_q, seqlen_k).
    """
    q, k, v = autocast(q, k, v)  # as attention does: the weights come from the same numbers
    seed = _next_seed(q.device) if options.get("dropout_p") else None
    _, lse = attention(q, k, v, return_lse=True, **options)
    weights = _weights(q, k, lse, seed, options)
    is_token = options.get("key_padding_mask")
    if is_token is not None:  # a padding row may hold anything, NaN included
        v = v.masked_fill(~is_token[:, :, None, None], 0.0)
    return _sums(weights, v), weights


def attention_and_weights_of_packed(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same for a batch without its padding.

    Args:
        q, k, v: (total, num_heads or num_heads_kv, head_dim).

    Returns:
        out, and (batch, num_heads, seqlen, seqlen), zero wherever there is padding.
    """
    q, k, v = autocast(q, k, v)  # as attention does: the weights come from the same numbers
    seed = _next_seed(q.device) if options.get("dropout_p") else None
    _, lse = attention(
        q,
        k,
        v,
        cu_seqlens_q=layout.cu_seqlens,
        max_seqlen_q=layout.max_seqlen,
        max_seqlen_k=layout.max_seqlen,
        return_lse=True,
        **options,
    )
    # Each sequence from its own start on: (batch, max_seqlen, ...).
    slots = sequence_slots(layout)
    padded_q, padded_k, padded_lse = (
        pad_input(x, slots, layout.batch_size, layout.max_seqlen)
        for x in (q, k, lse.transpose(0, 1))
    )
    is_token = torch.arange(layout.max_seqlen, device=q.device) < layout.cu_seqlens.diff()[:, None]
    padded_lse = padded_lse.transpose(1, 2).masked_fill(~is_token[:, None], float("-inf"))
    options["key_padding_mask"] = is_token
    compact = _weights(padded_q, padded_k, padded_lse, seed, options)
    # To where the tokens were; whatever is padding reads a row, or column, of zeros.
    where = torch.full((layout.batch_size * layout.seqlen,), layout.max_seqlen, device=q.device)
    where = where.index_copy(0, layout.indices, slots % layout.max_seqlen).view(
        layout.batch_size, 1, -1
    )
    heads, seqlen = compact.shape[1], layout.seqlen
    compact = F.pad(compact, (0, 1, 0, 1))
    rows = where[..., None].expand(-1, heads, -1, layout.max_seqlen + 1)
    cols = where[:, :, None].expand(-1, heads, seqlen, -1)
    weights = compact.gather(2, rows).gather(3, cols)
    padded_v = pad_input(v, layout.indices, layout.batch_size, layout.seqlen)
    return gather_rows(_sums(weights, padded_v).flatten(0, 1), layout.indices), weights


def _sums(weights: Tensor, v: Tensor) -> Tensor:
    """Returns the values' sums with their weights, (batch, seqlen_q, num_heads, head_dim)."""
    v = v.repeat_interleave(weights.shape[1] // max(v.shape[2], 1), dim=2)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def _weights(
    q: Tensor, k: Tensor, lse: Tensor, seed: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Returns the weights for the options of a call."""
    scale = options.get("softmax_scale")
    return attention_probabilities(
        q,
        k,
        lse,
        softmax_scale=q.shape[-1] ** -0.5 if scale is None else scale,
        key_padding_mask=options.get("key_padding_mask"),
        bias=options.get("bias"),
        window=check_window(options.get("window", (-1, -1)), options.get("causal", False)),
        softcap=options.get("softcap", 0.0),
        dropout_p=options.get("dropout_p", 0.0),
        seed=seed,
    )


def _next_seed(device: torch.device) -> Tensor:
    """Returns the seed that the next call of attention on the device will draw."""
    twin = torch.Generator(device)
    if device.type == "cpu":
        twin.set_state(torch.get_rng_state())
    else:
        twin.set_state(torch.get_device_module(device).get_rng_state(device))
    return dropout.draw_seed(device, twin)
