"""ModernBERT's layers, whose query, key and value are one projection already.

attn     Wqkv, Wo     FusedModernBertAttention
mlp      Wi, Wo       FusedModernBertMLP
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.modernbert import modeling_modernbert

from fastattn.integrations.transformers import NAME, attention_of_batch
from fastattn.modules.combined import Mixin
from fastattn.modules.fused import applied
from fastattn.ops.padding import PackedLayout


class FusedModernBertAttention(Mixin):
    """Self-attention on :func:`fastattn.attention`, its heads never transposed."""

    word: ClassVar = "Fused"
    config: Any
    Wqkv: nn.Module
    Wo: nn.Module
    out_drop: Any
    head_dim: int
    attention_dropout: float
    sliding_window: int | None

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Takes and returns what the stock layer does."""
        if self.config._attn_implementation != NAME or position_embeddings is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
        qkv = applied(self.Wqkv, hidden_states).unflatten(-1, (3, -1, self.head_dim))
        query, key, value = qkv.unbind(dim=-3)
        cos, sin = position_embeddings
        query, key = modeling_modernbert.apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
        out, weights = attention_of_batch(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.out_drop(applied(self.Wo, out.flatten(-2))), weights


class FusedModernBertMLP(Mixin):
    """The feed-forward part."""

    word: ClassVar = "Fused"
    Wi: nn.Module
    Wo: nn.Module
    act: Any
    drop: Any

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        x, gate = applied(self.Wi, hidden_states).chunk(2, dim=-1)
        return applied(self.Wo, self.drop(self.act(x) * gate))
