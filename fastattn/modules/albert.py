"""ALBERT's layers, whose halves end inside attention and inside the layer.

attention             query, key, value                       FusedAlbertAttention
attention             dense, dropout, residual, LayerNorm     FusedAlbertOutput
layer                 ffn, gelu                               FusedAlbertIntermediate
layer                 ffn_output, residual, LayerNorm         FusedAlbertLayerOutput
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fastattn.integrations.transformers import NAME
from fastattn.modules.bert import attend
from fastattn.modules.combined import Mixin
from fastattn.modules.fused import (
    add_norm,
    drops_plainly,
    fuses_gelu,
    product,
    products,
)
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.padding import PackedLayout


class _AlbertAttention(Mixin):
    """Stock attention in two pieces, so that each can be replaced by itself."""

    config: Any
    scaling: float
    query: nn.Module
    key: nn.Module
    value: nn.Module
    dense: nn.Module
    attention_dropout: nn.Dropout
    output_dropout: nn.Dropout
    LayerNorm: Any
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
        projected = self.project(hidden_states)
        out, weights = attend(
            self,
            projected,
            self.attention_head_size,
            attention_mask,
            dropout=self.attention_dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.finish(out, hidden_states), weights

    def project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The query, key and value of all heads, each (..., hidden)."""
        return self.query(hidden_states), self.key(hidden_states), self.value(hidden_states)

    def finish(self, context: Tensor, residual: Tensor) -> Tensor:
        """What follows attention."""
        return self.LayerNorm(residual + self.output_dropout(self.dense(context)))


class FusedAlbertAttention(_AlbertAttention):
    """Its three projections computed together."""

    word: ClassVar = "Fused"

    def project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The query, key and value of all heads, each (..., hidden)."""
        return products((self.query, self.key, self.value), hidden_states)


class FusedAlbertOutput(_AlbertAttention):
    """Bias, dropout, residual and LayerNorm in one operator."""

    word: ClassVar = "Fused"

    def finish(self, context: Tensor, residual: Tensor) -> Tensor:
        """What follows attention."""
        dropout = self.output_dropout
        if not drops_plainly(dropout):
            return super().finish(context, residual)
        p = dropout.p if dropout.training else 0.0
        return add_norm(self.LayerNorm, *product(self.dense, context), residual, p)


class _AlbertLayer(Mixin):
    """The stock layer in pieces, so that each can be replaced by itself."""

    attention: Any
    chunk_size_feed_forward: int
    ffn: Any
    ffn_output: Any
    activation: nn.Module
    full_layer_layer_norm: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Takes and returns what the stock layer does."""
        if self.chunk_size_feed_forward:
            return super().forward(hidden_states, attention_mask, **kwargs)
        x, _ = self.attention(hidden_states, attention_mask, **kwargs)
        return self.finish(self.middle(x), x)

    def middle(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., intermediate)."""
        return self.activation(self.ffn(x))

    def finish(self, middle: Tensor, residual: Tensor) -> Tensor:
        """(..., intermediate) and the residual (..., hidden) -> (..., hidden)."""
        return self.full_layer_layer_norm(self.ffn_output(middle) + residual)


class FusedAlbertIntermediate(_AlbertLayer):
    """Bias and GELU in one operator."""

    word: ClassVar = "Fused"
    activation_name: ClassVar = "activation"

    def middle(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., intermediate)."""
        if fuses_gelu(self.activation, self.ffn, x):
            return bias_gelu(*product(self.ffn, x))
        return super().middle(x)


class FusedAlbertLayerOutput(_AlbertLayer):
    """Bias, residual and LayerNorm in one operator."""

    word: ClassVar = "Fused"

    def finish(self, middle: Tensor, residual: Tensor) -> Tensor:
        """(..., intermediate) and the residual (..., hidden) -> (..., hidden)."""
        return add_norm(self.full_layer_layer_norm, *product(self.ffn_output, middle), residual)
