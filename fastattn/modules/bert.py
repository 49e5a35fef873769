"""BERT's encoder without padding, and its layers with fused parts.

All are subclasses without new state, so that a module of the stock class becomes one of these, and
back, by changing ``__class__`` (:mod:`fastattn.patching.changes` says why that way).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.bert import modeling_bert

from fastattn.integrations.transformers import NAME, attention_forward
from fastattn.modules.fused import (
    FusedIntermediate,
    FusedOutput,
    is_watched,
    products,
)
from fastattn.ops.attention import attention
from fastattn.ops.padding import (
    PackedLayout,
    dense_layout,
    gather_rows,
    packed_layout,
    pad_input,
)

# In Transformers 4.x BERT chooses among attention classes and makes additive masks; from 5.0 on it
# calls the attention interface and takes the masks of fastattn.integrations.transformers.
HAS_ATTENTION_INTERFACE = not hasattr(modeling_bert, "BertSdpaSelfAttention")


# The keyword by which a head tells the encoder that it reads no row but the first of each sequence.
ONLY_FIRST_ROWS = "only_first_rows"


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
        only_first_rows = kwargs.pop(ONLY_FIRST_ROWS, False) and self._may_leave_out_rows()
        mask = _padding_mask(attention_mask, hidden_states, kwargs)
        has_padding, layout = False, None
        if mask is not None:
            has_padding, layout = _layout(mask, self.first_row_is_read)
        if only_first_rows and not has_padding and (attention_mask is None or mask is not None):
            layout = dense_layout(hidden_states)
        if layout is not None:
            # A sequence without tokens has no first row.
            only_first_rows = only_first_rows and layout.min_seqlen > 0
            layout = layout._replace(only_first_rows=only_first_rows)
            return self._forward_packed(hidden_states, layout, *args, **kwargs)
        if mask is not None:
            attention_mask = mask[:, None, None, :] if has_padding else None
        return super().forward(hidden_states, attention_mask, *args, **kwargs)

    def _forward_packed(
        self, hidden_states: Tensor, layout: PackedLayout, *args: Any, **kwargs: Any
    ) -> Any:
        """Runs the stock layers on (1, total, hidden)."""
        tokens = hidden_states.flatten(0, 1)
        if layout.total < tokens.shape[0]:
            tokens = gather_rows(tokens, layout.indices)
        outputs = super().forward(tokens[None], layout, *args, **kwargs)
        indices = layout.indices
        if layout.only_first_rows:
            indices = indices.index_select(0, layout.first_rows)
        padded = pad_input(outputs[0][0], indices, layout.batch_size, layout.seqlen)
        if isinstance(outputs, tuple):
            return (padded, *outputs[1:])
        outputs.last_hidden_state = padded
        return outputs

    def _may_leave_out_rows(self) -> bool:
        """Whether the last layer can, and nobody but the encoder's caller sees its rows."""
        last = self.layer[-1]
        if type(last) is not FirstRowsBertLayer or self.config._attn_implementation != NAME:
            return False
        return not any(map(is_watched, (self, *last.modules())))


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


class FusedBertSelfAttention(modeling_bert.BertSelfAttention):
    """Self-attention on :func:`fastattn.attention`, its projections computed together."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Takes and returns what the stock layer does."""
        if past_key_values is not None or self.config._attn_implementation != NAME:
            return super().forward(hidden_states, attention_mask, past_key_values, **kwargs)
        projected = products((self.query, self.key, self.value), hidden_states)
        query, key, value = (split_heads(self, x).transpose(1, 2) for x in projected)
        out, weights = attention_forward(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=_dropout_p(self),
            scaling=self.scaling,
            **kwargs,
        )
        return out.flatten(-2), weights

    def forward_first_rows(self, rows: Tensor, tokens: Tensor, layout: PackedLayout) -> Tensor:
        """Attention of the first row of each sequence over all of its rows.

        Args:
            rows: (batch, hidden), the first row of each sequence.
            tokens: (total, hidden), the sequences one after the other.

        Returns:
            (batch, hidden).
        """
        (q,) = products((self.query,), rows)
        k, v = products((self.key, self.value), tokens)
        out = attention(
            *(split_heads(self, x) for x in (q, k, v)),
            cu_seqlens_q=torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device),
            cu_seqlens_k=layout.cu_seqlens,
            max_seqlen_q=1,
            max_seqlen_k=layout.max_seqlen,
            softmax_scale=self.scaling,
            dropout_p=_dropout_p(self),
        )
        return out.flatten(-2)


class FirstRowsBertLayer(modeling_bert.BertLayer):
    """A last layer that computes only the rows which are read, where that is one per sequence.

    Keys and values are those of all rows; the rest of the layer is row by row. The rows that are
    computed are the same as in the stock layer.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """(1, total, hidden) -> (1, batch, hidden) if the layout says so, else the stock layer."""
        layout = attention_mask
        if not (isinstance(layout, PackedLayout) and layout.only_first_rows):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        tokens = hidden_states[0]
        rows = gather_rows(tokens, layout.first_rows)
        context = self.attention.self.forward_first_rows(rows, tokens, layout)
        return self.feed_forward_chunk(self.attention.output(context[None], rows[None]))


class FusedBertSelfOutput(FusedOutput, modeling_bert.BertSelfOutput):
    """The end of the attention half of a layer."""


class FusedBertOutput(FusedOutput, modeling_bert.BertOutput):
    """The end of the feed-forward half of a layer."""


class FusedBertIntermediate(FusedIntermediate, modeling_bert.BertIntermediate):
    """The middle of the feed-forward half of a layer."""


def split_heads(layer: Any, x: Tensor) -> Tensor:
    """(..., hidden) -> (..., num_heads, head_dim)."""
    return x.unflatten(-1, (layer.num_attention_heads, layer.attention_head_size))


def _dropout_p(layer: Any) -> float:
    return layer.dropout.p if layer.training else 0.0


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
        projected = products((self.query, self.key, self.value), hidden_states)
        query, key, value = (split_heads(self, x).transpose(1, 2) for x in projected)
        out, _ = attention_forward(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=_dropout_p(self),
            is_causal=False,
            head_mask=head_mask,
            cross_attention_states=encoder_hidden_states,
            past_key_values=past_key_values,
            output_attentions=output_attentions,
        )
        return out.flatten(-2), None
