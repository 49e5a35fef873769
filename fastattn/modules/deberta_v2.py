"""DeBERTa-v2 and v3: content attends to positions and positions to content, as a bias.

    s = (q @ k.T + q @ pos_k.T + pos_q @ k.T) / sqrt(head_dim * 3)

The first term is :func:`fastattn.attention`'s; the other two are its bias, computed by the stock
layer's own method and with a gradient for each of its entries. DeBERTa's dropout is plain dropout
of the attention weights.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastattn.integrations.transformers import attention_of_batch
from fastattn.modules.bert import dropout_p, split_heads
from fastattn.modules.combined import Mixin
from fastattn.modules.distances import UnpaddedDistancesEncoder
from fastattn.modules.fused import products
from fastattn.ops.padding import PackedLayout, pad_sequences


class ServedDisentangledAttention(Mixin):
    """Self-attention on :func:`fastattn.attention`."""

    word: ClassVar = "Served"
    query_proj: nn.Module
    key_proj: nn.Module
    value_proj: nn.Module
    pos_dropout: Any
    pos_att_type: Any
    relative_attention: bool
    num_attention_heads: int
    attention_head_size: int
    disentangled_attention_bias: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Takes and returns what the stock layer does; relative positions are by sequence."""
        projected = self.project(hidden_states, query_states)
        query, key, value = (split_heads(self, x) for x in projected)
        layout = attention_mask if isinstance(attention_mask, PackedLayout) else None
        terms = 1 + sum(kind in self.pos_att_type for kind in ("c2p", "p2c"))
        bias = None
        if self.relative_attention:
            rel_embeddings = self.pos_dropout(rel_embeddings)
            rows = [self._by_sequence(x, layout) for x in (query, key)]
            bias = self.disentangled_attention_bias(*rows, relative_pos, rel_embeddings, terms)
            if isinstance(bias, Tensor):
                bias = bias.unflatten(0, (-1, self.num_attention_heads))
            else:
                bias = None  # neither of the two terms
        mask = attention_mask
        if isinstance(mask, Tensor):
            query, bias = _masked(query, bias, mask.bool())
            mask = None
        out, weights = attention_of_batch(
            self,
            query,
            key,
            value,
            mask,
            dropout=dropout_p(self),
            # The stock layer divides by the root's float32, in models of float64 too.
            scaling=1.0 / _float32(math.sqrt(self.attention_head_size * terms)),
            is_causal=False,
            position_bias=bias,
            output_attentions=output_attentions,
        )
        return out.flatten(-2), weights

    def project(self, hidden_states: Tensor, query_states: Tensor | None) -> tuple[Tensor, ...]:
        """The query, key and value of all heads, each (..., hidden)."""
        query_states = hidden_states if query_states is None else query_states
        return (
            self.query_proj(query_states),
            self.key_proj(hidden_states),
            self.value_proj(hidden_states),
        )

    def _by_sequence(self, x: Tensor, layout: PackedLayout | None) -> Tensor:
        """(batch, seqlen, heads, dim), or packed -> (batch * heads, seqlen or max_seqlen, dim)."""
        if layout is not None:
            x = pad_sequences(x[0], layout)
        return x.transpose(1, 2).flatten(0, 1)


class FusedDisentangledProjections(Mixin):
    """Its three projections together; goes before ServedDisentangledAttention."""

    word: ClassVar = "Fused"
    query_proj: nn.Module
    key_proj: nn.Module
    value_proj: nn.Module

    def project(self, hidden_states: Tensor, query_states: Tensor | None) -> tuple[Tensor, ...]:
        """The query, key and value of all heads, each (..., hidden)."""
        layers = (self.query_proj, self.key_proj, self.value_proj)
        if query_states is None:
            return products(layers, hidden_states)
        query, *_ = products(layers[:1], query_states)
        return query, *products(layers[1:], hidden_states)


def _float32(x: float) -> float:
    """Rounds to the 24 bits of a float32."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(mantissa, 24)), exponent - 24)


def _masked(query: Tensor, bias: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a query and a bias that mask as the stock layer does.

    A query with no key to attend to has the same score for all keys there, and their mean.

    Args:
        query: (batch, seqlen, num_heads, head_dim).
        mask: (batch, 1, seqlen, seqlen) bool, True = attend.
    """
    has_key = mask.any(dim=-1, keepdim=True)  # (batch, 1, seqlen, 1)
    query = query.masked_fill(~has_key.transpose(1, 2), 0.0)
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    bias = zero if bias is None else bias
    outside = torch.where(has_key, float("-inf"), zero)
    return query, torch.where(mask, bias, outside)


class UnpaddedDebertaEncoder(UnpaddedDistancesEncoder):
    """The layers, run on the tokens alone, with a bias for each sequence."""

    get_rel_pos: Any
    get_rel_embedding: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Takes and returns what the stock encoder does.

        Padding is removed for a mask of (batch, seqlen), kept for one of (batch, seqlen, 1).
        """
        assert attention_mask is not None  # the body makes one
        if attention_mask.ndim == 3 and attention_mask.shape[2] == 1:
            return self.forward_padded(hidden_states, attention_mask[:, :, 0], *args, **kwargs)
        return super().forward(hidden_states, attention_mask, *args, **kwargs)

    def _padding_mask(
        self, mask: Tensor | None, hidden_states: Tensor, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Returns (batch, seqlen), True = token, if the mask says just that, else None."""
        queries = kwargs.get("query_states")
        if mask is None or mask.shape != hidden_states.shape[:2] or queries is not None:
            return None
        return mask != 0

    def _stock_mask(self, mask: Tensor) -> Tensor:
        """Returns a (batch, seqlen) mask in a form that the stock encoder takes."""
        return mask.long()

    def relations(self, longest: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Returns the buckets of distances, (1, max_seqlen, max_seqlen), and their embeddings."""
        return {
            "query_states": None,
            "relative_pos": self.get_rel_pos(longest, None, kwargs.get("relative_pos")),
            "rel_embeddings": self.get_rel_embedding(),
        }


def hide_mask_of_sequences(
    embeddings: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before the embeddings: they multiply by their mask, which is not one of padding here."""
    mask = kwargs.get("mask")
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.dtype == torch.int32:
        return args, {**kwargs, "mask": None}
    return None
