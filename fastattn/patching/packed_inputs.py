"""Bodies whose layers are their own, without an encoder around them: their inputs are packed.

    input_ids (batch, seqlen) -> gather -> (1, total) -> the whole stock body -> scatter

Positions are packed along with the tokens, and every mask is the PackedLayout. A batch without
padding is packed as well: a window then needs no mask of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastattn.integrations.transformers import NAME
from fastattn.modules.encoder import CU_SEQLENS, KEEP_PADDING
from fastattn.ops.padding import (
    PackedLayout,
    dense_layout,
    layout_of_mask,
    packed_rows,
    pad_input,
)
from fastattn.patching.arguments import argument, with_argument

# The layers choose between these by their kind.
MASKS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class PackInputs:
    """Before a body: takes the padding out of what it is given.

    An object and not a closure, so that a patched model can be pickled.
    """

    first_row_is_read: bool  # even where that row is padding

    def __call__(
        self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get(CU_SEQLENS) is not None:
            return args, kwargs  # it has none
        kwargs = dict(kwargs)
        keep_padding = kwargs.pop(KEEP_PADDING, False)
        given = {name: argument(body, args, kwargs, name) for name in _INPUTS}
        layout = None
        if body.config._attn_implementation == NAME:
            layout = self._layout(given, keep_padding)
        if layout is None:
            return args, kwargs
        if given["position_ids"] is None:
            tokens = (
                given["input_ids"] if given["inputs_embeds"] is None else given["inputs_embeds"]
            )
            given["position_ids"] = torch.arange(layout.seqlen, device=tokens.device)[None]
        packed: dict[str, Any] = {
            name: packed_rows(x, layout) for name, x in given.items() if x is not None
        }
        packed["attention_mask"] = dict.fromkeys(MASKS, layout)
        for name, x in packed.items():
            args, kwargs = with_argument(body, args, kwargs, name, x)
        return args, kwargs

    def _layout(self, given: dict[str, Any], keep_padding: bool) -> PackedLayout | None:
        """Returns the layout to pack a batch by, or None if it stays as it is."""
        mask, ids, embeds = given["attention_mask"], given["input_ids"], given["inputs_embeds"]
        tokens = ids if embeds is None else embeds
        if (ids is None) == (embeds is None) or not isinstance(tokens, Tensor):
            return None  # the body says what is wrong
        if mask is None:
            return dense_layout(tokens)
        if not isinstance(mask, Tensor) or mask.shape != tokens.shape[:2]:
            return None
        has_padding, layout = layout_of_mask(
            mask if mask.dtype == torch.bool else mask != 0,
            starts=self.first_row_is_read,
            no_gaps=True,  # a window measures distances
        )
        if not has_padding:
            return dense_layout(tokens)
        return None if keep_padding else layout


_INPUTS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")


def pad_outputs(
    body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
) -> Any:
    """After a body: puts the padding back into the hidden states, last and recorded."""
    if kwargs.get(CU_SEQLENS) is not None:
        return None
    masks = argument(body, args, kwargs, "attention_mask")
    layout = masks.get(MASKS[0]) if isinstance(masks, dict) else None
    if not isinstance(layout, PackedLayout):
        return None

    def padded(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(padded(y) for y in x)
        if not isinstance(x, Tensor) or x.ndim != 3:
            return x  # attention weights have their padding
        return pad_input(x[0], layout.indices, layout.batch_size, layout.seqlen)

    if isinstance(outputs, tuple):
        return padded(outputs)
    for name, x in outputs.items():
        outputs[name] = padded(x)
    return outputs
