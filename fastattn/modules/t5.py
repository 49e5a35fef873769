"""The layers of T5's encoder, which have no biases and normalize before each half.

SelfAttention        q, k, v, o      FusedT5Attention
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fastattn.integrations.transformers import NAME, attention_of_batch
from fastattn.modules.combined import Mixin
from fastattn.modules.fused import applied, products
from fastattn.ops.padding import PackedLayout


class FusedT5Attention(Mixin):
    """Self-attention on :func:`fastattn.attention`, its projections computed together."""

    word: ClassVar = "Fused"
    config: Any
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    key_value_proj_dim: int
    dropout: float
    scaling: float
    has_relative_attention_bias: bool
    compute_bias: Any

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | PackedLayout | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Takes and returns what the stock layer does; the bias of packed tokens is by sequence."""
        attends_to_itself = key_value_states is None and past_key_values is None
        has_bias = position_bias is not None or self.has_relative_attention_bias
        if not (attends_to_itself and has_bias) or self.config._attn_implementation != NAME:
            return super().forward(
                hidden_states, mask, key_value_states, position_bias, past_key_values, **kwargs
            )
        projected = products((self.q, self.k, self.v), hidden_states)
        query, key, value = (x.unflatten(-1, (-1, self.key_value_proj_dim)) for x in projected)
        if position_bias is None:
            seqlen = hidden_states.shape[1]
            position_bias = self.compute_bias(seqlen, seqlen, device=hidden_states.device)
        out, weights = attention_of_batch(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            position_bias=position_bias,
            **kwargs,
        )
        return applied(self.o, out.flatten(-2)), position_bias, weights
