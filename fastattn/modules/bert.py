"""BERT's encoder without padding, and the attention of Transformers 4.x's BERT.

Both are subclasses without new state, so that a module of the stock class becomes one of these, and
back, by changing ``__class__`` (:mod:`fastattn.patching.changes` says why that way).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.bert import modeling_bert

from fastattn.integrations.transformers import attention_forward
from fastattn.ops.padding import PackedLayout, gather_rows, packed_layout, pad_input

# In Transformers 4.x BERT chooses among attention classes and makes additive masks; from 5.0 on it
# calls the attention interface and takes the masks of fastattn.integrations.transformers.
HAS_ATTENTION_INTERFACE = not hasattr(modeling_bert, "BertSdpaSelfAttention")


class UnpaddedBertEncoder(modeling_bert.BertEncoder):
    """The stock encoder, run on the tokens alone.

        (batch, seqlen, hidden) -> gather -> (1, total, hidden) -> the stock layers -> scatter

    The layers work on any leading shape; only attention has to know where sequences begin, and
    finds it in the PackedLayout that takes the mask's place. Padding rows of the result are zero.
    """

    # Whether the model reads the first row of each sequence even where that row is padding.
    first_row_is_read = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Takes and returns what the stock encoder does.

        Padding is removed for a mask of (batch, 1, 1, seqlen), which is what a (batch, seqlen)
        mask arrives as. Any other mask says more than which rows are padding: all rows run.
        """
        mask = _padding_mask(attention_mask, hidden_states, kwargs)
        if mask is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        has_padding, layout = _layout(mask, self.first_row_is_read)
        if layout is not None:
            return self._forward_packed(hidden_states, layout, *args, **kwargs)
        kept = mask[:, None, None, :] if has_padding else None
        return super().forward(hidden_states, kept, *args, **kwargs)

    def _forward_packed(
        self, hidden_states: Tensor, layout: PackedLayout, *args: Any, **kwargs: Any
    ) -> Any:
        """Runs the stock layers on (1, total, hidden)."""
        tokens = gather_rows(hidden_states.flatten(0, 1), layout.indices)
        outputs = super().forward(tokens[None], layout, *args, **kwargs)
        padded = pad_input(outputs[0][0], layout.indices, layout.batch_size, layout.seqlen)
        if isinstance(outputs, tuple):
            return (padded, *outputs[1:])
        outputs.last_hidden_state = padded
        return outputs


def _padding_mask(
    mask: Tensor | None, hidden_states: Tensor, kwargs: dict[str, Any]
) -> Tensor | None:
    """Returns (batch, seqlen), True = token, if the mask says just that, else None."""
    if mask is None or mask.ndim != 4 or kwargs.get("past_key_values") is not None:
        return None
    batch_size, seqlen = hidden_states.shape[:2]
    if tuple(mask.shape) != (batch_size, 1, 1, seqlen):
        return None
    if (mask.dtype == torch.bool) != HAS_ATTENTION_INTERFACE:
        return None  # not the mask that this version makes of a 2-D one
    mask = mask[:, 0, 0]
    return mask if mask.dtype == torch.bool else mask == 0


@torch.compiler.disable
def _layout(mask: Tensor, first_row_is_read: bool) -> tuple[bool, PackedLayout | None]:
    """Returns whether there is padding, and the layout without it if it is to be removed.

    What depends on the mask's values is here, in one place: a compiler cannot trace it.
    """
    layout = packed_layout(mask)
    if layout.total == mask.numel():
        return False, None
    if layout.total == 0:
        return True, None  # the stock layers cannot reshape zero rows
    if first_row_is_read and bool((mask.any(dim=1) & ~mask[:, 0]).any()):
        return True, None
    return True, layout


class LegacyBertSelfAttention(modeling_bert.BertSelfAttention):
    """Self-attention of an encoder in Transformers 4.x on :func:`fastattn.attention`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,
        output_attentions: bool = False,
        cache_position: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Takes what the stock layer does; returns (batch, seqlen, hidden) and no weights.

        Raises:
            ValueError: a head mask, attention weights, a cache or cross-attention is asked for.
        """
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            linear(hidden_states).view(shape).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        out, _ = attention_forward(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            is_causal=False,
            head_mask=head_mask,
            cross_attention_states=encoder_hidden_states,
            past_key_values=past_key_values,
            output_attentions=output_attentions,
        )
        return out.flatten(-2), None
