"""ESM's layers, which normalize before each half and rotate queries and keys.

attention.self     query, key, value      FusedEsmSelfAttention
intermediate       dense, gelu            FusedEsmIntermediate
output, twice      dense                  FusedEsmOutput
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.esm import modeling_esm

from fastattn.integrations.transformers import NAME, attention_of_batch
from fastattn.modules.bert import attend_first_rows, dropout_p, split_heads
from fastattn.modules.combined import Mixin
from fastattn.modules.encoder import FirstRowsLayer
from fastattn.modules.fused import applied, product, products, serves_gelu
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.padding import PackedLayout, row_places

Rotation = tuple[Tensor, Tensor]  # cos and sin of the angles, each (1 or batch, seqlen, head_dim)


class FusedEsmSelfAttention(Mixin):
    """Self-attention on :func:`fastattn.attention`, its projections computed together."""

    word: ClassVar = "Fused"
    config: Any
    query: nn.Module
    key: nn.Module
    value: nn.Module
    attention_head_size: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: Rotation | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Takes and returns what the stock layer does."""
        if encoder_hidden_states is not None or self.config._attn_implementation != NAME:
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                position_embeddings,
                **kwargs,
            )
        projected = products((self.query, self.key, self.value), hidden_states)
        query, key, value = (split_heads(self, x) for x in projected)
        query = self._rotated(self._scaled(query), position_embeddings)
        key = self._rotated(key, position_embeddings)
        out, weights = attention_of_batch(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout_p(self),
            scaling=self.scaling,
            **kwargs,
        )
        return out.flatten(-2), weights

    def forward_first_rows(
        self, rows: Tensor, tokens: Tensor, layout: PackedLayout, rotation: Rotation | None
    ) -> Tensor:
        """Attention of the first row of each sequence over all of its rows.

        Args:
            rows: (batch, hidden), the first row of each sequence.
            tokens: (total, hidden), the sequences one after the other.
            rotation: of all tokens, or None if positions are not rotated.

        Returns:
            (batch, hidden).
        """
        (query,) = products((self.query,), rows)
        key, value = products((self.key, self.value), tokens)
        query, key = self._scaled(split_heads(self, query)), split_heads(self, key)
        if rotation is not None:
            cos, sin = (x.index_select(1, layout.first_rows) for x in rotation)
            query = self._rotated(query[None], (cos, sin))[0]
            key = self._rotated(key[None], rotation)[0]
        return attend_first_rows(self, query, key, split_heads(self, value), layout)

    def _scaled(self, query: Tensor) -> Tensor:
        """Scales the query here and not the scores, as the stock layer does."""
        return query * self.attention_head_size**-0.5

    def _rotated(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """Rotates (batch, seqlen, num_heads, head_dim) by the angles of its positions."""
        if rotation is None:
            return x
        cos, sin = rotation
        # It rotates two tensors by one rule, each by itself; one of no heads costs nothing.
        rotated, _ = modeling_esm.apply_rotary_pos_emb(x, x[:, :, :0], cos, sin, unsqueeze_dim=2)
        return rotated


class FusedEsmIntermediate(Mixin):
    """The middle of the feed-forward part, whose GELU is the exact one written out."""

    word: ClassVar = "Fused"
    dense: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., hidden) -> (..., intermediate)."""
        if not serves_gelu(self.dense, hidden_states):
            return super().forward(hidden_states)
        return bias_gelu(*product(self.dense, hidden_states))


class FusedEsmOutput(Mixin):
    """The end of each half of a layer."""

    word: ClassVar = "Fused"
    dense: nn.Module
    dropout: Any

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """(..., in_features) and the residual (..., hidden) -> (..., hidden)."""
        return self.dropout(applied(self.dense, hidden_states)) + input_tensor


class FirstRowsEsmLayer(FirstRowsLayer):
    """The last layer under a head that reads first rows."""

    attention: Any
    feed_forward_chunk: Any

    @property
    def first_rows_attention(self) -> Any:
        """The layer's attention."""
        return self.attention.self

    def attend(self, rows: Tensor, tokens: Tensor, layout: PackedLayout, **kwargs: Any) -> Tensor:
        """Attention of normalized rows."""
        norm, rotation = self.attention.LayerNorm, kwargs.get("position_embeddings")
        return self.first_rows_attention.forward_first_rows(
            norm(rows), norm(tokens), layout, rotation
        )

    def finish(self, context: Tensor, rows: Tensor) -> Tensor:
        """The layer after attention, row by row."""
        return self.feed_forward_chunk(self.attention.output(context, rows))


def embed_sequences(body: Any, ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor | None:
    """Embeds packed tokens, if what a token becomes depends on the others of its sequence.

    With token dropout a sequence is scaled by how many of its tokens are masked. The stock code
    does so on the padded batch, which is made for it here: ids, and embeddings of one layer.

    Args:
        ids: (1, total).
        cu_seqlens: (batch + 1,).
        max_seqlen: the longest length, or more.

    Returns:
        (1, total, hidden); or None if each token is embedded by itself, as the model does.
    """
    if not body.embeddings.token_dropout:
        return None
    total = ids.shape[1]
    starts, ends = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    rows = starts + torch.arange(max_seqlen, device=ids.device)
    is_token = rows < ends
    padded = ids[0][rows.clamp(max=total - 1)]
    padded = padded.masked_fill(~is_token, body.embeddings.padding_idx)
    embedded = body.embeddings(input_ids=padded, attention_mask=is_token.long())
    sequence, place = row_places(cu_seqlens, total)
    slot = sequence * max_seqlen + place
    # Rows of no sequence, at the end, get what the first has.
    slot = slot.masked_fill(sequence == starts.shape[0], 0)
    return embedded.flatten(0, 1).index_select(0, slot)[None]
