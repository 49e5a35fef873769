"""The layers of BERT, and of the models whose layers are BERT's under other names.

attention.self     query, key, value      FusedSelfAttention
attention.output   dense, LayerNorm       fastattn.modules.fused.FusedOutput
intermediate       dense, gelu            fastattn.modules.fused.FusedIntermediate
output             dense, LayerNorm       fastattn.modules.fused.FusedOutput
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastattn.integrations.transformers import NAME, attention_of_rows
from fastattn.modules.combined import Mixin
from fastattn.modules.encoder import FirstRowsLayer
from fastattn.modules.fused import products
from fastattn.ops.attention import attention
from fastattn.ops.padding import PackedLayout


class FusedSelfAttention(Mixin):
    """Self-attention on :func:`fastattn.attention`, its projections computed together."""

    word: ClassVar = "Fused"
    config: Any
    dropout: nn.Dropout
    query: nn.Module
    key: nn.Module
    value: nn.Module
    attention_head_size: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Takes and returns what the stock layer does."""
        cache = args[0] if args else kwargs.pop("past_key_values", None)
        if cache is not None or self.config._attn_implementation != NAME:
            if cache is not None:
                kwargs["past_key_values"] = cache
            return super().forward(hidden_states, attention_mask, **kwargs)
        return attend(
            self,
            products((self.query, self.key, self.value), hidden_states),
            self.attention_head_size,
            attention_mask,
            dropout=dropout_p(self),
            scaling=self.scaling,
            **kwargs,
        )

    def forward_first_rows(self, rows: Tensor, tokens: Tensor, layout: PackedLayout) -> Tensor:
        """Attention of the first row of each sequence over all of its rows.

        Args:
            rows: (batch, hidden), the first row of each sequence.
            tokens: (total, hidden), the sequences one after the other.

        Returns:
            (batch, hidden).
        """
        (query,) = products((self.query,), rows)
        key, value = products((self.key, self.value), tokens)
        query, key, value = (split_heads(self, x) for x in (query, key, value))
        return attend_first_rows(self, query, key, value, layout)


class FirstRowsBertLayer(FirstRowsLayer):
    """The last layer under a head that reads first rows."""

    attention: Any
    feed_forward_chunk: Any

    @property
    def first_rows_attention(self) -> Any:
        """The layer's attention."""
        return self.attention.self

    def finish(self, context: Tensor, rows: Tensor) -> Tensor:
        """The layer after attention, row by row."""
        return self.feed_forward_chunk(self.attention.output(context, rows))


class LegacySelfAttention(Mixin):
    """Self-attention of an encoder in Transformers 4.x on :func:`fastattn.attention`."""

    word: ClassVar = "Legacy"
    dropout: nn.Dropout
    query: nn.Module
    key: nn.Module
    value: nn.Module
    attention_head_size: int

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,
        output_attentions: bool = False,
        cache_position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Takes what the stock layer does; returns the weights if they are asked for.

        Raises:
            ValueError: a head mask, a cache or cross-attention is asked for.
        """
        return attend(
            self,
            products((self.query, self.key, self.value), hidden_states),
            self.attention_head_size,
            attention_mask,
            dropout=dropout_p(self),
            is_causal=False,
            head_mask=head_mask,
            cross_attention_states=encoder_hidden_states,
            past_key_values=past_key_values,
            output_attentions=output_attentions,
        )


def attend(
    layer: Any,
    projected: tuple[Tensor, ...],
    head_dim: int,
    attention_mask: Tensor | PackedLayout | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention on the outputs of three projections.

    Every view is an operator to autograd, about 4 us of a call, so there are as few as can be.

    Args:
        projected: query, key and value of all heads, each (batch, seqlen, hidden), or
            (1, total, hidden) with a PackedLayout.
        **options: those of :func:`fastattn.integrations.transformers.attention_of_rows`.

    Returns:
        The shape of the query, and the weights or None.
    """
    shape = projected[0].shape
    leading = shape[1:2] if isinstance(attention_mask, PackedLayout) else shape[:2]
    q, k, v = (x.view(*leading, x.shape[-1] // head_dim, head_dim) for x in projected)
    out, weights = attention_of_rows(layer, q, k, v, attention_mask, **options)
    return out.reshape(shape), weights


def attend_first_rows(
    layer: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout
) -> Tensor:
    """Attention of one query per sequence, (batch, num_heads, head_dim): (batch, hidden).

    Key and value are (total, num_heads, head_dim).
    """
    out: Any = attention(
        query,
        key,
        value,
        cu_seqlens_q=torch.arange(query.shape[0] + 1, dtype=torch.int32, device=query.device),
        cu_seqlens_k=layout.cu_seqlens,
        max_seqlen_q=1,
        max_seqlen_k=layout.max_seqlen,
        softmax_scale=layer.scaling,
        dropout_p=dropout_p(layer),
    )
    return out.flatten(-2)


def split_heads(layer: Any, x: Tensor) -> Tensor:
    """(..., hidden) -> (..., num_heads, head_dim)."""
    return x.unflatten(-1, (-1, layer.attention_head_size))


def dropout_p(layer: Any) -> float:
    """The probability of dropping an attention weight now."""
    if not layer.training:
        return 0.0
    return getattr(layer.dropout, "p", layer.dropout)  # a module, or the number
