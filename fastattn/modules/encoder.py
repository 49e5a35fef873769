"""An encoder that runs without padding, for every family whose layers work row by row.

The layers of an encoder take hidden states of any leading shape; only attention has to know where
sequences begin.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.bert import modeling_bert

from fastattn.integrations.transformers import NAME
from fastattn.modules.combined import Mixin, is_a
from fastattn.modules.fused import is_watched
from fastattn.ops.padding import (
    PackedLayout,
    dense_layout,
    gather_rows,
    is_sequences_mask,
    layout_of_mask,
    packed_rows,
    pad_input,
    sequences_layout,
)

# In Transformers 4.x BERT and its relatives choose among attention classes and make additive masks;
# from 5.0 on they call the attention interface and take the masks of
# fastattn.integrations.transformers.
HAS_ATTENTION_INTERFACE = not hasattr(modeling_bert, "BertSdpaSelfAttention")

# The keyword by which a head tells the encoder that it reads no row but the first of each sequence.
ONLY_FIRST_ROWS = "only_first_rows"

# The keywords of a batch without padding, (1, total), as Transformers names them, and the one by
# which a head asks for (batch, 1, hidden), the first row of each of its sequences.
CU_SEQLENS = "cu_seq_lens_q"
MAX_SEQLEN = "max_length_q"
PACKED = (CU_SEQLENS, "cu_seq_lens_k", MAX_SEQLEN, "max_length_k")
FIRST_ROWS_OF_PACKED = "first_rows_of_packed"
# What a head keeps from its own loss, where that would read rows of other sequences, or of none; it
# passes by here.
HIDDEN_LABELS = "labels_of_packed"

# The keyword by which a head tells the encoder that it reads rows of padding.
KEEP_PADDING = "keep_padding"


class UnpaddedEncoder(Mixin):
    """The stock encoder, run on the tokens alone.

        (batch, seqlen, hidden) -> gather -> (1, total, hidden) -> the stock layers -> scatter

    Attention finds where sequences begin in the PackedLayout that takes the mask's place. Padding
    rows of the result are zero.
    """

    word: ClassVar = "Unpadded"
    config: Any

    # Whether masks are added to the scores: 0 where there is a token, the least number elsewhere.
    mask_is_added = not HAS_ATTENTION_INTERFACE
    # Whether two tokens must be as far apart without padding as with it.
    keeps_distances = False
    # Whether the model reads the first row of each sequence even where that row is padding.
    first_row_is_read = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Takes and returns what the stock encoder does.

        Padding is removed for a mask of (batch, 1, 1, seqlen), which is what a (batch, seqlen)
        mask arrives as. Any other mask says more than which rows are padding: all rows run.
        """
        only_first_rows = kwargs.pop(ONLY_FIRST_ROWS, False) and self._may_leave_out_rows()
        if kwargs.get(CU_SEQLENS) is not None:
            return self._forward_sequences(hidden_states, only_first_rows, *args, **kwargs)
        if is_sequences_mask(attention_mask, hidden_states):
            return self._forward_sequences_of_mask(hidden_states, attention_mask, *args, **kwargs)
        keep_padding = kwargs.pop(KEEP_PADDING, False)
        mask = self._padding_mask(attention_mask, hidden_states, kwargs)
        has_padding, layout = False, None
        if mask is not None:
            has_padding, layout = layout_of_mask(
                mask,
                starts=self.first_row_is_read,
                not_empty=only_first_rows,
                no_gaps=self.keeps_distances,
            )
            layout = None if keep_padding else layout
        # A bias by distance is smaller for packed sequences, even where nothing is removed.
        is_worth_it = only_first_rows or self.keeps_distances
        if is_worth_it and not has_padding and (attention_mask is None or mask is not None):
            layout = dense_layout(hidden_states)
        if layout is not None:
            # A sequence without tokens has no first row.
            only_first_rows = only_first_rows and layout.min_seqlen > 0
            layout = layout._replace(only_first_rows=only_first_rows)
            return self._forward_packed(hidden_states, layout, *args, **kwargs)
        if mask is not None:
            attention_mask = self._stock_mask(mask) if has_padding else None
        return self.forward_padded(hidden_states, attention_mask, *args, **kwargs)

    def _stock_mask(self, mask: Tensor) -> Tensor:
        """Returns a (batch, seqlen) mask in a form that the layers take."""
        return mask[:, None, None, :]

    def forward_padded(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The stock encoder."""
        return super().forward(hidden_states, *args, **kwargs)

    def _forward_sequences(
        self, hidden_states: Tensor, only_first_rows: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Runs the stock layers on a batch that came without padding, (1, total, hidden).

        The last hidden state is that of all rows, or, if a head wants them, of first rows.
        """
        cu_seqlens, _, max_seqlen, _ = (kwargs.pop(name, None) for name in PACKED)
        first_rows = kwargs.pop(FIRST_ROWS_OF_PACKED, False)
        kwargs.pop(HIDDEN_LABELS, None)
        layout = sequences_layout(hidden_states, cu_seqlens, max_seqlen)
        layout = layout._replace(only_first_rows=only_first_rows and first_rows)
        outputs = super().forward(hidden_states, layout, *args, **kwargs)
        if not first_rows:
            return outputs
        rows = outputs[0][0]
        if not layout.only_first_rows:
            rows = gather_rows(rows, layout.first_rows)
        outputs.last_hidden_state = rows[:, None]
        return outputs

    def _forward_sequences_of_mask(self, hidden_states: Tensor, mask: Any, **kwargs: Any) -> Any:
        """The same in a model that hands no keywords down; returns all rows."""
        raise NotImplementedError

    def _forward_packed(
        self, hidden_states: Tensor, layout: PackedLayout, *args: Any, **kwargs: Any
    ) -> Any:
        """Runs the stock layers on (1, total, hidden)."""
        tokens = packed_rows(hidden_states, layout)
        rotation = kwargs.get("position_embeddings")
        if rotation is not None:
            kwargs["position_embeddings"] = tuple(packed_rows(x, layout) for x in rotation)
        outputs = super().forward(tokens, layout, *args, **kwargs)
        indices = layout.indices
        if layout.only_first_rows:
            indices = indices.index_select(0, layout.first_rows)
        padded = pad_input(outputs[0][0], indices, layout.batch_size, layout.seqlen)
        if isinstance(outputs, tuple):
            return (padded, *outputs[1:])
        outputs.last_hidden_state = padded
        return outputs

    def _padding_mask(
        self, mask: Tensor | None, hidden_states: Tensor, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Returns (batch, seqlen), True = token, if the mask says just that, else None."""
        if mask is None or mask.ndim != 4 or kwargs.get("past_key_values") is not None:
            return None
        batch_size, seqlen = hidden_states.shape[:2]
        if tuple(mask.shape) != (batch_size, 1, 1, seqlen):
            return None
        if (mask.dtype != torch.bool) != self.mask_is_added:
            return None  # not the mask that this model makes of a 2-D one
        mask = mask[:, 0, 0]
        if mask.dtype == torch.bool:
            return mask
        if HAS_ATTENTION_INTERFACE and self.config._attn_implementation != NAME:
            return None  # the same mask for every attention, and another was chosen since
        return mask == 0

    def _may_leave_out_rows(self) -> bool:
        """Whether the last layer can, and nobody but the encoder's caller sees its rows."""
        layers = getattr(self, "layer", None)
        last: Any = layers[-1] if layers else None
        if last is None or not is_a(last, FirstRowsLayer):
            return False
        attention = last.first_rows_attention
        if not is_a(attention, Mixin) or attention.config._attn_implementation != NAME:
            return False
        return not any(map(is_watched, (self, *last.modules())))


class FirstRowsLayer(Mixin):
    """A last layer that computes only the rows which are read, where that is one per sequence.

    Keys and values are those of all rows; the rest of the layer is row by row. The rows that are
    computed are the same as in the stock layer.
    """

    word: ClassVar = "FirstRows"

    @property
    def first_rows_attention(self) -> Any:
        """The layer's attention, which has ``forward_first_rows``."""
        raise NotImplementedError

    def attend(self, rows: Tensor, tokens: Tensor, layout: PackedLayout, **kwargs: Any) -> Tensor:
        """Attention of the first row of each sequence over all of its rows: (batch, hidden)."""
        return self.first_rows_attention.forward_first_rows(rows, tokens, layout)

    def finish(self, context: Tensor, rows: Tensor) -> Tensor:
        """The layer after attention, row by row."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedLayout | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """(1, total, hidden) -> (1, batch, hidden) if the layout says so, else the stock layer."""
        layout = attention_mask
        if not (isinstance(layout, PackedLayout) and layout.only_first_rows):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        tokens = hidden_states[0]
        rows = gather_rows(tokens, layout.first_rows)
        context = self.attend(rows, tokens, layout, **kwargs)
        return self.finish(context[None], rows[None])
