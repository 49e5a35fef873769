"""MPNet: attention with a bias by distance, which every layer shares.

attention.attn      q, k, v                             ServedMPNetAttention, FusedMPNetProjections
attention           attn.o, dropout, + residual, LayerNorm      FusedMPNetOutput
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fastattn.modules.bert import attend, dropout_p
from fastattn.modules.combined import Mixin, is_a
from fastattn.modules.distances import UnpaddedDistancesEncoder
from fastattn.modules.fused import (
    add_norm,
    drops_plainly,
    is_called_for_its_class,
    product,
    products,
)
from fastattn.ops.padding import PackedLayout


class ServedMPNetAttention(Mixin):
    """Self-attention on :func:`fastattn.attention`."""

    word: ClassVar = "Served"
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: Any
    dropout: nn.Dropout
    attention_head_size: int

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """Takes and returns what the stock layer does; the bias of packed tokens is by sequence."""
        context, weights = self.context(
            hidden_states, attention_mask, position_bias, output_attentions
        )
        out = self.o(context)
        return (out,) if weights is None else (out, weights)

    def context(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None,
        position_bias: Tensor | None,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention without the projection of its output, (batch, seqlen, hidden), and weights."""
        return attend(
            self,
            self.project(hidden_states),
            self.attention_head_size,
            attention_mask,
            dropout=dropout_p(self),
            is_causal=False,
            position_bias=position_bias,
            output_attentions=output_attentions,
        )

    def project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The query, key and value of all heads, each (..., hidden)."""
        return self.q(hidden_states), self.k(hidden_states), self.v(hidden_states)


class FusedMPNetProjections(Mixin):
    """Its three projections computed together; goes before ServedMPNetAttention."""

    word: ClassVar = "Fused"
    q: nn.Module
    k: nn.Module
    v: nn.Module

    def project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The query, key and value of all heads, each (..., hidden)."""
        return products((self.q, self.k, self.v), hidden_states)


class FusedMPNetOutput(Mixin):
    """The end of the attention half: bias, dropout, residual and LayerNorm in one operator."""

    word: ClassVar = "Fused"
    attn: Any
    dropout: Any
    LayerNorm: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """Takes and returns what the stock layer does."""
        attn, dropout = self.attn, self.dropout
        fused = (
            is_a(attn, ServedMPNetAttention)
            and is_called_for_its_class(attn)
            and drops_plainly(dropout)
        )
        if not fused:
            return super().forward(
                hidden_states, attention_mask, position_bias, output_attentions, **kwargs
            )
        context, weights = attn.context(
            hidden_states, attention_mask, position_bias, output_attentions
        )
        p = dropout.p if dropout.training else 0.0
        out = add_norm(self.LayerNorm, *product(attn.o, context), hidden_states, p)
        return (out,) if weights is None else (out, weights)


class UnpaddedMPNetEncoder(UnpaddedDistancesEncoder):
    """The layers, run on the tokens alone, with one bias for all sequences."""

    compute_position_bias: Any

    def relations(self, longest: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Returns the bias, (1, num_heads, max_seqlen, max_seqlen)."""
        return {"position_bias": self.compute_position_bias(longest)}
