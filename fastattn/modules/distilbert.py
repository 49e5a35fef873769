"""DistilBERT's layers, whose parts are cut in other places than BERT's.

attention                q_lin, k_lin, v_lin, out_lin       FusedDistilBertAttention
sa_layer_norm            after attention                    FusedBlock
ffn                      lin1, gelu, lin2, dropout          FusedFFN: lin1, gelu
output_layer_norm        after ffn                          FusedBlock: lin2 and what follows
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.distilbert import modeling_distilbert

from fastattn.integrations.transformers import NAME
from fastattn.modules.bert import attend, attend_first_rows, dropout_p, split_heads
from fastattn.modules.combined import Mixin, is_a, stock_of
from fastattn.modules.encoder import FirstRowsLayer
from fastattn.modules.fused import (
    add_norm,
    drops_plainly,
    fuses_gelu,
    is_called_for_its_class,
    product,
    products,
)
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.padding import PackedLayout


class FusedDistilBertAttention(Mixin):
    """Self-attention on :func:`fastattn.attention`, its projections computed together."""

    word: ClassVar = "Fused"
    config: Any
    dropout: nn.Dropout
    q_lin: nn.Module
    k_lin: nn.Module
    v_lin: nn.Module
    out_lin: Any
    scaling: float
    attention_head_size: int

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Takes and returns what the stock layer does."""
        if self.config._attn_implementation != NAME:
            return super().forward(hidden_states, attention_mask, **kwargs)
        context, weights = self.context(hidden_states, attention_mask, **kwargs)
        return self.out_lin(context), weights

    def context(
        self, hidden_states: Tensor, attention_mask: Tensor | PackedLayout | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention without the projection of its output, (batch, seqlen, hidden), and weights."""
        projected = products((self.q_lin, self.k_lin, self.v_lin), hidden_states)
        return attend(
            self,
            projected,
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
            (batch, hidden), not yet through ``out_lin``.
        """
        (query,) = products((self.q_lin,), rows)
        key, value = products((self.k_lin, self.v_lin), tokens)
        query, key, value = (split_heads(self, x) for x in (query, key, value))
        return attend_first_rows(self, query, key, value, layout)


class FusedFFN(Mixin):
    """The feed-forward part with its first product's bias and GELU in one operator."""

    word: ClassVar = "Fused"
    activation_name: ClassVar = "activation"
    lin1: nn.Module
    lin2: Any
    dropout: Any
    activation: nn.Module

    def ff_chunk(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        return self.dropout(self.lin2(self.middle(x)))

    def middle(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden_dim)."""
        if fuses_gelu(self.activation, self.lin1, x):
            return bias_gelu(*product(self.lin1, x))
        return self.activation(self.lin1(x))


class FusedBlock(Mixin):
    """A block in which each half ends in one operator: dropout, residual and LayerNorm."""

    word: ClassVar = "Fused"
    attention: Any
    ffn: Any
    sa_layer_norm: Any
    output_layer_norm: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Takes and returns what the stock block does."""
        attention = self.attention
        if (
            is_a(attention, FusedDistilBertAttention)
            and attention.config._attn_implementation == NAME
            and is_called_for_its_class(attention)
            and not kwargs.get("output_attentions")  # which hooks on attention's output record
        ):
            context, _ = attention.context(hidden_states, attention_mask, **kwargs)
            return self.finish(context, hidden_states)
        out, _ = attention(hidden_states, attention_mask=attention_mask, **kwargs)
        return self.after_attention(add_norm(self.sa_layer_norm, out, None, hidden_states))

    def finish(self, context: Tensor, rows: Tensor) -> Tensor:
        """From attention, not yet through ``out_lin``, to the end; rows are the residual."""
        x, x_bias = product(self.attention.out_lin, context)
        return self.after_attention(add_norm(self.sa_layer_norm, x, x_bias, rows))

    def after_attention(self, x: Tensor) -> Tensor:
        """The block's second half."""
        ffn, norm = self.ffn, self.output_layer_norm
        in_parts = (
            stock_of(ffn) is modeling_distilbert.FFN
            and is_called_for_its_class(ffn)
            and not ffn.chunk_size_feed_forward
            and drops_plainly(ffn.dropout)
        )
        if not in_parts:
            return add_norm(norm, ffn(x), None, x)
        middle = ffn.middle(x) if isinstance(ffn, FusedFFN) else ffn.activation(ffn.lin1(x))
        y, y_bias = product(ffn.lin2, middle)
        p = ffn.dropout.p if ffn.dropout.training else 0.0
        return add_norm(norm, y, y_bias, x, p)


class FirstRowsBlock(FirstRowsLayer):
    """The last block under a head that reads first rows."""

    attention: Any
    ffn: Any
    sa_layer_norm: Any
    output_layer_norm: Any

    @property
    def first_rows_attention(self) -> Any:
        """The block's attention."""
        return self.attention

    def finish(self, context: Tensor, rows: Tensor) -> Tensor:
        """The block after attention, row by row."""
        x = self.sa_layer_norm(self.attention.out_lin(context) + rows)
        return self.output_layer_norm(self.ffn(x) + x)


class FirstRowsFusedBlock(FirstRowsLayer, FusedBlock):
    """The same, with the ends of a FusedBlock."""

    word: ClassVar = "FirstRows"
    finish = FusedBlock.finish

    @property
    def first_rows_attention(self) -> Any:
        """The block's attention."""
        return self.attention
