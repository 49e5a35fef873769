"""How BERT and its relatives are patched: padding is removed once, around the whole encoder.

Which models these are, and what differs among them, is :mod:`fastattn.patching.families`' business;
the parts inside their layers are :mod:`fastattn.patching.bert_layers`'.

Results stay those of the stock model, except that padding rows of hidden states and logits are zero
states instead of what the stock layers compute there. Three things in a stock model read such rows.
Where one would, the batch keeps its padding, so that the loss and every gradient stay the same:

- the pooler, or a head for sequences, reads the first row of each, which is padding in a batch
  padded on the left;
- the loss of question answering is a softmax over all rows;
- the loss of token-level heads reads padding rows that are labelled other than -100.

``unpad=True`` removes padding there as well; ``unpad=False`` never does. Where a window or a bias
counts the distance of two tokens, padding between them is part of it, and always stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastattn.modules.bert import LegacySelfAttention
from fastattn.modules.combined import combined, stock_of
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE, KEEP_PADDING
from fastattn.ops.padding import has_padding_rows, labels_padding, pad_input
from fastattn.patching import families, packed_inputs
from fastattn.patching.arguments import argument, remember, with_argument
from fastattn.patching.attention_only import DECODES, SERVED, switch_attention
from fastattn.patching.bert_layers import compute_first_rows, fuse_layers, project_together
from fastattn.patching.changes import (
    change_attribute,
    change_class,
    has_hook,
    keep_hook,
    settle,
)
from fastattn.patching.family import Family, RowLoss
from fastattn.patching.packed import is_packed, refuse_packed_batches, serve_packed_batches
from fastattn.patching.packed_layers import FindLayout, pack_layers
from fastattn.patching.registry import Target, stock_name
from fastattn.patching.report import LEFT, REPLACED, LayerReport


def patch_body(target: Target) -> list[LayerReport]:
    """Serves the attention of a body and removes the padding around its encoder."""
    family = families.of(target.body)
    assert family is not None  # the registry sends no other body here
    for module in (target.body, *target.heads):
        remember(module)
    settle(target.body, {"unpad": target.unpad, "fuse": target.fuse})
    attention = _patch_attention(target, family)
    projections = project_together(target, family)
    reason = _not_unpaddable(target, family, attention)
    what = REPLACED if reason is None else LEFT
    if reason is None:
        _remove_padding(target, family)
        reason = _unpadded(target, family)
    else:
        refuse_packed_batches(target, family)
    encoder = LayerReport(
        ".".join(part for part in (target.name, family.encoder_name) if part),
        stock_name(family.encoder(target.body)),
        what,
        reason,
    )
    return [
        encoder,
        *attention,
        *projections,
        *fuse_layers(target, family),
        *compute_first_rows(target, family, unpadded=what == REPLACED),
    ]


def _patch_attention(target: Target, family: Family) -> list[LayerReport]:
    """Serves the attention layers; returns an entry for each."""
    if family.attention is not None:
        report = switch_attention(target)
        for _, layer in target.attention:
            if family.adds_mask and not hasattr(layer, "is_causal"):
                change_attribute(layer, "is_causal", False)  # without a mask it counts as causal
        return report
    reason = _not_served_without_interface(target, family)
    if reason is not None:
        return target.report_attention(LEFT, reason)
    for _, layer in target.attention:
        change_class(layer, combined(family.own_attention or LegacySelfAttention, stock_of(layer)))
    if family.own_attention:
        return target.report_attention(REPLACED, SERVED)
    # Anything but "sdpa" makes the model hand down one mask row for all queries.
    change_attribute(target.body, "attn_implementation", "fastattn")
    return target.report_attention(REPLACED, SERVED)


def _not_served_without_interface(target: Target, family: Family) -> str | None:
    """Returns why attention that does not call the interface cannot be served, or None."""
    config = target.body.config
    own = [
        type(layer).__name__
        for _, layer in target.attention
        if stock_of(layer) not in family.legacy_attention
    ]
    if own:
        return f"{own[0]} is an attention of its own"
    if family.own_attention:
        return None
    if config.is_decoder:
        kind = type(target.body).__name__.removesuffix("Model").upper()
        return f"a {kind} decoder needs Transformers 5, where {kind} has an attention interface"
    if config.position_embedding_type != "absolute":
        return f"position_embedding_type is {config.position_embedding_type}, not absolute"
    return None


def _not_unpaddable(target: Target, family: Family, attention: list[LayerReport]) -> str | None:
    """Returns why the padding around the encoder stays, or None."""
    body = target.body
    if family.never_unpadded:
        return f"not unpadded: {family.never_unpadded}"
    if target.unpad is False:
        return "not unpadded: unpad=False"
    if any(layer.what == LEFT for layer in attention):
        return "not unpadded: its attention is not served"
    if getattr(body.config, "is_decoder", False):
        return DECODES
    if getattr(body.config, "chunk_size_feed_forward", 0):
        return "not unpadded: chunk_size_feed_forward cuts the padded batch"
    stock = family.parts | family.legacy_attention
    own = [type(part).__name__ for part in _parts(body, family) if stock_of(part) not in stock]
    if own:
        return f"not unpadded: {own[0]} may need the padded batch"
    if target.unpad is None:
        for reader in family.readers_of(body, target.heads):
            if not family.is_stock_reader(reader):
                return f"not unpadded: {type(reader).__name__} may read rows of padding"
    return None


def _parts(body: Any, family: Family) -> list[nn.Module]:
    """Returns the encoder and what in it runs on hidden states, down to attention."""
    parts = [family.encoder(body)]
    convolution = getattr(parts[0], "conv", None)  # over neighbours, in some of DeBERTa's
    parts += [] if convolution is None else [convolution]
    for layer in family.layers(body):
        parts.append(layer)
        for inner in getattr(layer, family.inner_layers_name or "", (layer,)):
            parts.append(inner)
            attention = getattr(inner, family.attention_name, None)
            if attention is not None:  # one half of T5's layers has none
                parts += [attention, getattr(attention, "self", attention)]
    return parts


def _first_row_is_read(target: Target, family: Family) -> str | None:
    """Returns who reads the first row of a sequence, be it padding or not; None if nobody does."""
    if getattr(target.body, "pooler", None) is not None:
        return "the pooler reads"
    if not target.heads:
        return "a head may read"
    others = [head for head in target.heads if not family.reads_tokens_alone(head)]
    return "the head reads" if others else None


def _unpadded(target: Target, family: Family) -> str:
    """Returns what was done to the encoder, in words."""
    exceptions = []
    if target.unpad is None:
        reader = _first_row_is_read(target, family)
        if reader is not None:
            exceptions.append(f"a sequence begins with padding, which {reader}")
        for loss in _row_losses(target, family).values():
            if loss.label == "start_positions":
                exceptions.append("start_positions are given: that loss reads padding rows")
            else:
                exceptions.append("padding rows have labels other than -100")
    if family.counts_distances:
        exceptions.append(f"padding lies inside a sequence: {family.counts_distances}")
    text = f"padding removed once around {target.body.config.num_hidden_layers} layers"
    return text + (f", kept if {', or '.join(exceptions)}" if exceptions else "")


def _remove_padding(target: Target, family: Family) -> None:
    body, exact = target.body, target.unpad is None
    first_row_is_read = exact and _first_row_is_read(target, family) is not None
    if family.encoder_name:
        _unpad_encoder(body, family, first_row_is_read)
    elif family.packs_rows is not None:
        find = FindLayout(first_row_is_read, family.counts_distances is not None)
        pack_layers(body, family.layers(body), find, family.packs_rows)
    else:
        _pack_inputs(body, first_row_is_read)
    serve_packed_batches(target, family)
    for head, loss in _row_losses(target, family).items():
        if exact and not has_hook(head, "loss"):
            hook = _KeepRowsTheLossReads(loss, family.says_keep_by)
            keep_hook(head, "loss", head.register_forward_pre_hook(hook, with_kwargs=True))


def _unpad_encoder(body: Any, family: Family, first_row_is_read: bool) -> None:
    """Removes padding between a body's embeddings and its encoder."""
    encoder = family.encoder(body)
    change_class(encoder, combined(family.unpadded_encoder, stock_of(encoder)))
    change_attribute(encoder, "first_row_is_read", first_row_is_read)
    if family.adds_mask:
        change_attribute(encoder, "mask_is_added", True)
    if not has_hook(body, "hidden_states"):
        # An encoder that gets 2-D masks as they are takes no other for padding.
        if family.says_keep_by != "column":
            hook = _hand_mask_on if family.hands_mask_on else _keep_what_masks_say
            handle = body.register_forward_pre_hook(hook, with_kwargs=True)
            keep_hook(body, "mask", handle)
        handle = body.register_forward_hook(_pad_hidden_states, with_kwargs=True, prepend=True)
        keep_hook(body, "hidden_states", handle)


def _pack_inputs(body: Any, first_row_is_read: bool) -> None:
    """Removes padding from the inputs of a body that has no encoder."""
    hook = packed_inputs.PackInputs(first_row_is_read)
    keep_hook(body, "inputs", body.register_forward_pre_hook(hook, with_kwargs=True))
    if not has_hook(body, "hidden_states"):
        handle = body.register_forward_hook(
            packed_inputs.pad_outputs, with_kwargs=True, prepend=True
        )
        keep_hook(body, "hidden_states", handle)


def _row_losses(target: Target, family: Family) -> dict[Any, RowLoss]:
    """Returns the heads that compute a loss over rows, and what it reads."""
    return {
        head: loss
        for head in target.heads
        for kind, loss in family.row_losses.items()
        # T5's token classifier has a model without a decoder around the body.
        if target.body in (head.base_model, getattr(head.base_model, "encoder", None))
        and isinstance(head, kind)
    }


def _keep_what_masks_say(
    body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a body: spreads a user's mask of one row per sequence over all queries.

    The encoder removes padding for (batch, 1, 1, seqlen) masks, which it gets for 2-D ones. Who
    passes a mask of scores gets every row of it.
    """
    mask = argument(body, args, kwargs, "attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim < 3 or mask.shape[-2] != 1:
        return None
    if kwargs.get("past_key_values") is not None:
        return None
    full = mask.expand(*mask.shape[:-2], mask.shape[-1], mask.shape[-1])
    return with_argument(body, args, kwargs, "attention_mask", full)


def _hand_mask_on(
    body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The same before a body that makes other masks of 2-D ones: makes the encoder's here."""
    mask = argument(body, args, kwargs, "attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        ready = (mask != 0)[:, None, None, :]
        return with_argument(body, args, kwargs, "attention_mask", ready)
    return _keep_what_masks_say(body, args, kwargs)


def _pad_hidden_states(
    body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
) -> Any:
    """After a body: puts padding back into the hidden states of the layers, if asked for.

    They are recorded inside the encoder, by Transformers' own hooks or code, as (1, total, hidden).
    """
    if is_packed(kwargs):
        return None
    last = outputs[0]
    values = outputs if isinstance(outputs, tuple) else outputs.to_tuple()
    states = next((x for x in values if isinstance(x, tuple) and _are_packed(x, last)), None)
    if states is None:
        return None
    is_token = argument(body, args, kwargs, "attention_mask") != 0
    # Rows that are tokens come first, in their order. Their number is that of the states: a graph
    # that is being compiled knows it, and not that it is the mask's.
    order = is_token.flatten().argsort(descending=True, stable=True)
    batch_size, seqlen = last.shape[:2]
    padded = tuple(
        x
        if x is None or has_padding_rows(x, batch_size, seqlen)
        else pad_input(x[0], order.narrow(0, 0, x.shape[1]), batch_size, seqlen)
        for x in states
    )
    if isinstance(outputs, tuple):
        return tuple(padded if x is states else x for x in outputs)
    outputs.hidden_states = padded
    return outputs


def _are_packed(states: tuple[Any, ...], last: Tensor) -> bool:
    """Whether these are hidden states and at least one of them has no padding."""
    tensors = [x for x in states if x is not None]
    return all(isinstance(x, Tensor) and x.ndim == 3 for x in tensors) and any(
        not has_padding_rows(x, *last.shape[:2]) for x in tensors
    )


@dataclass(frozen=True)
class _KeepRowsTheLossReads:
    """Before a head: keeps the padding of a batch whose loss reads padding rows.

    An object and not a closure, so that a patched model can be pickled.
    """

    loss: RowLoss
    says_keep_by: str

    def __call__(
        self, head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if is_packed(kwargs):
            return None
        labels, of_next = self._scored_labels(head, args, kwargs)
        mask = argument(head, args, kwargs, "attention_mask")
        if labels is None or mask is None or mask.ndim != 2:
            return None
        is_token = mask != 0
        if torch.compiler.is_compiling() and labels.shape == mask.shape:
            # A graph cannot choose: it takes the padding away, and refuses labels that need it.
            checked = torch.ops.fastattn.unlabelled_padding(is_token, labels, of_next)
            return with_argument(head, args, kwargs, "attention_mask", checked)
        if labels.shape == mask.shape and not labels_padding(is_token, labels, of_next):
            return None
        if self.says_keep_by == "keyword":
            return args, {**kwargs, KEEP_PADDING: True}
        if self.says_keep_by == "column":
            return with_argument(head, args, kwargs, "attention_mask", mask[:, :, None])
        batch_size, seqlen = mask.shape
        # A mask with a row for each query is taken as it is, and keeps all rows.
        full = is_token[:, None, :].expand(batch_size, seqlen, seqlen)
        full = full[:, None] if HAS_ATTENTION_INTERFACE else full.to(torch.float32)
        return with_argument(head, args, kwargs, "attention_mask", full)

    def _scored_labels(
        self, head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor | None, bool]:
        """Returns the labels of the loss, and whether row i is scored against label i + 1."""
        labels = argument(head, args, kwargs, self.loss.label)
        of_next = self.loss.of_next
        # Who splits a sequence over processes shifts its labels before.
        shifted = kwargs.get("shift_labels") if of_next else None
        return (labels, of_next) if labels is None or shifted is None else (shifted, False)
