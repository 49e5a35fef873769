"""ViT's layers, which normalize before each half.

attention     q_proj, k_proj, v_proj     FusedViTAttention
mlp           fc1, gelu                  FusedViTMLP
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fastattn.integrations.transformers import NAME
from fastattn.modules.bert import attend
from fastattn.modules.combined import Mixin
from fastattn.modules.fused import applied, fuses_gelu, product, products
from fastattn.ops.gelu import bias_gelu


class FusedViTAttention(Mixin):
    """Self-attention on :func:`fastattn.attention`, its projections computed together."""

    word: ClassVar = "Fused"
    config: Any
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    head_dim: int
    attention_dropout: float
    scaling: float

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Takes and returns what the stock layer does."""
        if self.config._attn_implementation != NAME:
            return super().forward(hidden_states, attention_mask, **kwargs)
        projected = products((self.q_proj, self.k_proj, self.v_proj), hidden_states)
        out, weights = attend(
            self,
            projected,
            self.head_dim,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return applied(self.o_proj, out), weights


class FusedViTMLP(Mixin):
    """The feed-forward part with its first product's bias and GELU in one operator."""

    word: ClassVar = "Fused"
    activation_name: ClassVar = "activation_fn"
    fc1: nn.Module
    fc2: nn.Module
    activation_fn: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        if not fuses_gelu(self.activation_fn, self.fc1, hidden_states):
            return super().forward(hidden_states)
        return applied(self.fc2, bias_gelu(*product(self.fc1, hidden_states)))
