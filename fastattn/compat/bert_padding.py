"""``flash_attn.bert_padding`` of flash-attn 2.8 on :mod:`fastattn.ops.padding`.

Unlike there, ``unpad_input`` has five results here: since 2.7 flash-attn knows, beside the tokens
of the mask, places that are kept in memory and attended by nobody.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastattn.ops import padding
from fastattn.ops.checks import as_int
from fastattn.ops.padding import pad_input

__all__ = [
    "index_first_axis",
    "index_put_first_axis",
    "pad_input",
    "unpad_input",
    "unpad_input_for_concatenated_sequences",
]


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """Returns ``input[indices]``; the indices must be distinct."""
    return padding.gather_rows(input, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """Returns (first_axis_dim, ...) zeros with ``values`` at the distinct ``indices``."""
    return padding.scatter_rows(values, indices, first_axis_dim)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Takes the tokens out of a padded batch.

    Args:
        hidden_states: (batch, seqlen, ...).
        attention_mask: (batch, seqlen), bool or a number; not zero = token.
        unused_mask: the same for places that are taken out too, and count as unused.

    Returns:
        hidden_states (total, ...), tokens and unused places in the order of the batch; their
        indices (total,) in the flattened batch; cu_seqlens (batch + 1,) int32; the longest length;
        and how many of each sequence are tokens, (batch,) int32.

    Raises:
        ValueError, TypeError: shapes disagree, or a mask is not one.
    """
    taken = attention_mask if unused_mask is None else (attention_mask != 0) | (unused_mask != 0)
    rows, indices, cu_seqlens, longest = padding.unpad_input(hidden_states, taken)
    used = (attention_mask != 0).sum(dim=-1, dtype=torch.int32)
    return rows, indices, cu_seqlens, longest, used


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Takes the tokens out of a batch whose rows hold several sequences each.

    Args:
        hidden_states: (batch, seqlen, ...).
        attention_mask_in_length: (batch, seqlen) int. The numbers that are not zero are the lengths
            of a row's sequences, which lie one after the other from its begin: [2, 3, 0, 0, 0, 0]
            says two tokens, then three, then padding.

    Returns:
        hidden_states (total, ...); their indices (total,) in the flattened batch; cu_seqlens
        (sequences + 1,) int32; the longest length.
    """
    places = torch.arange(attention_mask_in_length.shape[-1], device=hidden_states.device)
    mask = places < attention_mask_in_length.sum(dim=-1, keepdim=True)
    rows, indices, _, _ = padding.unpad_input(hidden_states, mask)
    lengths = attention_mask_in_length[attention_mask_in_length != 0]
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest = attention_mask_in_length.max() if attention_mask_in_length.numel() else 0
    return rows, indices, cu_seqlens, as_int(longest)
