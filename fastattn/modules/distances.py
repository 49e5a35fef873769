"""Encoders whose layers share something that depends on the distance of two tokens, as a bias does.

It is computed once, for the longest sequence, and serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from fastattn.modules.encoder import UnpaddedEncoder
from fastattn.ops.padding import PackedLayout, packed_rows, pad_input, sequences_layout


class UnpaddedDistancesEncoder(UnpaddedEncoder):
    """The layers, run one by one on the tokens alone."""

    keeps_distances = True
    layer: Any

    def relations(self, longest: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Returns what the layers share, as their keywords.

        Args:
            longest: (1, max_seqlen, hidden), of the longest sequence's shape; its values are not
                read.
            kwargs: those of the stock encoder that are about it.
        """
        raise NotImplementedError

    def _forward_packed(self, hidden_states: Tensor, layout: PackedLayout, **kwargs: Any) -> Any:
        """Runs the stock layers on (1, total, hidden)."""

        def padded(tokens: Tensor) -> Tensor:
            return pad_input(tokens[0], layout.indices, layout.batch_size, layout.seqlen)

        tokens = packed_rows(hidden_states, layout)
        return self._run(hidden_states, tokens, layout, padded, **kwargs)

    def _forward_sequences_of_mask(self, hidden_states: Tensor, mask: Any, **kwargs: Any) -> Any:
        """Runs the stock layers on a batch that came without padding; returns all rows."""
        layout = sequences_layout(hidden_states, mask[:, 0, 0, 0], mask.shape[1])
        return self._run(hidden_states, hidden_states, layout, _unchanged, **kwargs)

    def _run(
        self,
        hidden_states: Tensor,
        tokens: Tensor,
        layout: PackedLayout,
        padded: Callable[[Tensor], Tensor],
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Runs the layers.

        Args:
            hidden_states: what the encoder was given.
            tokens: (1, total, hidden), the same packed.
            padded: makes packed states those of the batch that the encoder was given.
        """
        shared = self.relations(hidden_states[:1, : layout.max_seqlen], **kwargs)
        states, weights = [hidden_states], []
        for layer in self.layer:
            tokens, *more = layer(tokens, layout, output_attentions=output_attentions, **shared)
            if output_attentions:
                weights += more
            if output_hidden_states:
                states.append(padded(tokens))
        last = states[-1] if output_hidden_states else padded(tokens)
        outputs = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )
        return outputs if return_dict else outputs.to_tuple()


def _unchanged(tokens: Tensor) -> Tensor:
    return tokens
