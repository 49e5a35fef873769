"""Bodies that embed by themselves and count positions by rows: their layers run without padding.

    (batch, seqlen) -> the stock embeddings -> gather -> (1, total, hidden) -> the stock layers
    -> scatter, after the body

The layout travels among the body's keywords, which it hands to each layer; a hook before a layer
takes it out, puts it in the mask's place, and packs the rows if no layer before has done so. A
layer that is skipped at random, or run anew for its gradients, thus finds all it needs in its
arguments. What reads the result knows its padding: a decoder masks those keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastattn.integrations.transformers import NAME
from fastattn.modules.encoder import KEEP_PADDING
from fastattn.ops.padding import (
    PackedLayout,
    has_padding_rows,
    layout_of_mask,
    packed_rows,
    pad_input,
)
from fastattn.patching.arguments import argument
from fastattn.patching.changes import has_hook, keep_hook

LAYOUT = "packed_layout"


@dataclass(frozen=True)
class FindLayout:
    """Before a body: computes the layout of a padded batch.

    An object and not a closure, so that a patched model can be pickled.
    """

    first_row_is_read: bool  # even where that row is padding
    keeps_distances: bool  # whether two tokens must be as far apart without padding as with it

    def __call__(
        self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        keep_padding = kwargs.pop(KEEP_PADDING, False)
        mask = argument(body, args, kwargs, "attention_mask")
        tokens = argument(body, args, kwargs, "input_ids")
        if tokens is None:
            tokens = argument(body, args, kwargs, "inputs_embeds")
        fits = isinstance(mask, Tensor) and tokens is not None and mask.shape == tokens.shape[:2]
        if keep_padding or not fits or body.config._attn_implementation != NAME:
            return args, kwargs
        _, layout = layout_of_mask(
            mask if mask.dtype == torch.bool else mask != 0,
            starts=self.first_row_is_read,
            no_gaps=self.keeps_distances,
        )
        if layout is None:
            return args, kwargs
        # The mask stays: a body that kept its keywords to itself would still mask its padding.
        return args, {**kwargs, LAYOUT: layout}


@dataclass(frozen=True)
class PackRows:
    """Before a layer of a body that calls it with hidden states and mask first."""

    def __call__(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layout = kwargs.get(LAYOUT)
        if layout is None:
            return None
        kwargs = {name: x for name, x in kwargs.items() if name != LAYOUT}
        rows, _, *more = args
        if has_padding_rows(rows, layout.batch_size, layout.seqlen):
            rows = packed_rows(rows, layout)
        return (rows, layout, *self.others(layer, layout, more)), kwargs

    def others(self, layer: Any, layout: PackedLayout, more: list[Any]) -> list[Any]:
        """Returns the arguments after hidden states and mask."""
        return more


@dataclass(frozen=True)
class PackRowsAndBias(PackRows):
    """Before a layer of T5: makes the bias of the longest sequence, which serves all."""

    def others(self, layer: Any, layout: PackedLayout, more: list[Any]) -> list[Any]:
        """Returns the arguments after hidden states and mask, the first of them the bias.

        It is (1, num_heads, max_seqlen, max_seqlen); the first layer makes it and hands it on.
        """
        bias, *rest = more
        if bias is None:
            longest = layout.max_seqlen
            attention = layer.layer[0].SelfAttention
            bias = attention.compute_bias(longest, longest, device=layout.indices.device)
        return [bias, *rest]


def pack_layers(body: Any, layers: Any, find: FindLayout, pack: PackRows) -> None:
    """Removes padding between a body's embeddings and its layers, and puts it back after it."""
    keep_hook(body, "inputs", body.register_forward_pre_hook(find, with_kwargs=True))
    for layer in layers:
        if not has_hook(layer, "rows"):
            handle = layer.register_forward_pre_hook(pack, with_kwargs=True)
            keep_hook(layer, "rows", handle)
    if not has_hook(body, "hidden_states"):
        handle = body.register_forward_hook(_pad_outputs, with_kwargs=True, prepend=True)
        keep_hook(body, "hidden_states", handle)


def _pad_outputs(
    body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
) -> Any:
    """After a body: puts the padding back into the hidden states, last and recorded."""
    layout = kwargs.get(LAYOUT)
    if layout is None:
        return None
    if isinstance(outputs, tuple):
        return _padded(outputs, layout)
    for name, x in outputs.items():
        outputs[name] = _padded(x, layout)
    return outputs


def _padded(x: Any, layout: PackedLayout) -> Any:
    """Returns hidden states (batch, seqlen, hidden); anything else as it is."""
    if isinstance(x, tuple):
        return tuple(_padded(y, layout) for y in x)
    shape = (layout.batch_size, layout.seqlen)
    if not isinstance(x, Tensor) or x.ndim != 3 or has_padding_rows(x, *shape):
        return x  # attention weights have their padding; every layer may have been skipped
    return pad_input(x[0], layout.indices, *shape)
