"""The layers of the encoders of BART and Marian, which normalize after each half.

self_attn               q_proj, k_proj, v_proj               FusedBartAttention
self_attn_layer_norm    out_proj and what follows            FusedBartNorms
fc1, activation_fn      gelu                                 FusedBartIntermediate
final_layer_norm        fc2 and what follows                 FusedBartNorms
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastattn.integrations.transformers import NAME, attention_of_batch
from fastattn.modules.combined import Mixin, is_a
from fastattn.modules.fused import (
    add_norm,
    applied,
    fuses_gelu,
    is_called_for_its_class,
    product,
    products,
)
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.padding import PackedLayout


class FusedBartAttention(Mixin):
    """Self-attention on :func:`fastattn.attention`, its projections computed together."""

    word: ClassVar = "Fused"
    config: Any
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: Any
    head_dim: int
    dropout: float
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Takes and returns what the stock layer does."""
        attends_to_itself = key_value_states is None and past_key_values is None
        if not attends_to_itself or self.config._attn_implementation != NAME:
            return super().forward(
                hidden_states, key_value_states, past_key_values, attention_mask, **kwargs
            )
        context, weights = self.context(hidden_states, attention_mask, **kwargs)
        return applied(self.out_proj, context), weights

    def context(
        self, hidden_states: Tensor, attention_mask: Tensor | PackedLayout | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention without the projection of its output, (batch, seqlen, hidden), and weights."""
        projected = products((self.q_proj, self.k_proj, self.v_proj), hidden_states)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)) for x in projected)
        out, weights = attention_of_batch(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return out.flatten(-2), weights


class _BartLayer(Mixin):
    """The stock layer in pieces, so that each can be replaced by itself."""

    self_attn: Any
    self_attn_layer_norm: Any
    activation_fn: nn.Module
    activation_dropout: float
    dropout: float
    fc1: Any
    fc2: Any
    final_layer_norm: Any

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | PackedLayout | None, **kwargs: Any
    ) -> Tensor:
        """Takes and returns what the stock layer does."""
        x = self.attend(hidden_states, attention_mask, **kwargs)
        middle = F.dropout(self.middle(x), self.activation_dropout, self.training)
        out = self.finish(middle, x)
        if out.dtype == torch.float16 and not torch.isfinite(out).all():
            largest = torch.finfo(out.dtype).max - 1000  # as in stock
            out = out.clamp(-largest, largest)
        return out

    def attend(
        self, hidden_states: Tensor, attention_mask: Tensor | PackedLayout | None, **kwargs: Any
    ) -> Tensor:
        """The half with attention: (..., hidden) -> (..., hidden)."""
        x, _ = self.self_attn(hidden_states, attention_mask=attention_mask, **kwargs)
        x = F.dropout(x, self.dropout, self.training)
        return self.self_attn_layer_norm(hidden_states + x)

    def middle(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., intermediate)."""
        return self.activation_fn(self.fc1(x))

    def finish(self, middle: Tensor, residual: Tensor) -> Tensor:
        """(..., intermediate) and the residual (..., hidden) -> (..., hidden)."""
        x = F.dropout(self.fc2(middle), self.dropout, self.training)
        return self.final_layer_norm(residual + x)


class FusedBartIntermediate(_BartLayer):
    """Bias and GELU in one operator."""

    word: ClassVar = "Fused"
    activation_name: ClassVar = "activation_fn"

    def middle(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., intermediate)."""
        if fuses_gelu(self.activation_fn, self.fc1, x):
            return bias_gelu(*product(self.fc1, x))
        return super().middle(x)


class FusedBartNorms(_BartLayer):
    """Each half ends in one operator: bias, dropout, residual and LayerNorm."""

    word: ClassVar = "Fused"

    def attend(
        self, hidden_states: Tensor, attention_mask: Tensor | PackedLayout | None, **kwargs: Any
    ) -> Tensor:
        """The half with attention: (..., hidden) -> (..., hidden)."""
        attention = self.self_attn
        if (
            is_a(attention, FusedBartAttention)
            and attention.config._attn_implementation == NAME
            and is_called_for_its_class(attention)
            and not kwargs.get("output_attentions")  # which hooks on attention's output record
        ):
            context, _ = attention.context(hidden_states, attention_mask, **kwargs)
            out, bias = product(attention.out_proj, context)
        else:
            out, bias = attention(hidden_states, attention_mask=attention_mask, **kwargs)[0], None
        return self._normed(self.self_attn_layer_norm, out, bias, hidden_states)

    def finish(self, middle: Tensor, residual: Tensor) -> Tensor:
        """(..., intermediate) and the residual (..., hidden) -> (..., hidden)."""
        return self._normed(self.final_layer_norm, *product(self.fc2, middle), residual)

    def _normed(self, norm: Any, x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
        """LayerNorm of ``dropout(x + bias) + residual``."""
        p = self.dropout if self.training else 0.0
        if p < 1.0:
            return add_norm(norm, x, bias, residual, p)
        return norm(residual)  # which is all that is left
