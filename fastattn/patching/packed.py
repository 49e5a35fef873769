"""Batches without padding: sequences that lie one after the other in one row of tokens.

    input_ids (1, total)   cu_seq_lens_q (batch + 1,)   max_length_q   labels

:mod:`fastattn.data.packing` makes them, and Transformers' ``DataCollatorWithFlattening`` with
``return_flash_attn_kwargs=True``. The encoder knows what to do with them
(:mod:`fastattn.modules.encoder`); the hooks of this file see to what is around it:

- position ids count from the start of each sequence, by the family's rule;
- the pooler, and heads for sequences, get the first row of each sequence;
- the loss of question answering is a softmax over the rows of each sequence.

Heads for rows need nothing: their loss is a mean over the rows that have labels.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from fastattn.modules.encoder import (
    CU_SEQLENS,
    FIRST_ROWS_OF_PACKED,
    HIDDEN_SPANS,
    MAX_SEQLEN,
)
from fastattn.patching.changes import has_hook, keep_hook
from fastattn.patching.family import Family
from fastattn.patching.registry import Target

_NAME = "packed"
_SPANS = ("start_positions", "end_positions")


def is_packed(kwargs: dict[str, Any]) -> bool:
    """Whether a call's keywords say that its batch comes without padding."""
    return kwargs.get(CU_SEQLENS) is not None


def serve_packed_batches(target: Target, family: Family) -> None:
    """Makes a body, and the heads around it, take batches without padding."""
    body = target.body
    if family.attention is None or not family.takes_packed:
        for module in (body, *target.heads):
            _hook(module, _refuse, None)
        return
    _hook(body, _BeforeBody(_places(body)), _pool_first_rows)
    for head in target.heads:
        if head.base_model is not body:
            continue
        if type(head).__name__.endswith("MultipleChoice"):
            _hook(head, _refuse_choices, None)
        elif type(head) in family.first_row_heads:
            _hook(head, _ask_for_first_rows, None)
        elif _scores_spans(family, head):
            _hook(head, _HideSpans(_places(head)), _add_span_loss)


def _scores_spans(family: Family, head: nn.Module) -> bool:
    loss = family.row_losses.get(type(head))
    return loss is not None and loss.label == _SPANS[0]


def _hook(module: nn.Module, before: Any, after: Any) -> None:
    if not has_hook(module, _NAME):
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
        keep_hook(module, _NAME, handle)
        if after is not None:
            handle = module.register_forward_hook(after, with_kwargs=True)
            keep_hook(module, f"after {_NAME}", handle)


def _places(module: Any) -> dict[str, int]:
    """Returns the places of a forward method's arguments."""
    return {name: i for i, name in enumerate(inspect.signature(module.forward).parameters)}


@dataclass(frozen=True)
class _BeforeBody:
    """Before a body: checks a packed batch, completes it, and numbers its positions.

    An object and not a closure, so that a patched model can be pickled.
    """

    places: dict[str, int]

    def __call__(
        self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not is_packed(kwargs):
            return None
        kwargs = dict(zip(self.places, args, strict=False)) | kwargs
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        tokens: Any = ids if ids is not None else embeds
        cu_seqlens = kwargs[CU_SEQLENS]
        _check(type(body).__name__, tokens, cu_seqlens, kwargs)
        kwargs[MAX_SEQLEN] = _longest(kwargs, tokens.shape[1])
        first = _first_position(body)
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = _positions(cu_seqlens, tokens.shape[1])[None] + first
        else:
            _check_positions(type(body).__name__, kwargs["position_ids"], first)
        return (), kwargs


def _longest(kwargs: dict[str, Any], total: int) -> int:
    """Returns the longest length, or more."""
    longest = kwargs.get(MAX_SEQLEN)
    if longest is not None:
        return int(longest)
    # A compiled graph has to do with a bound: reading the tensor would break it.
    return total if torch.compiler.is_compiling() else int(kwargs[CU_SEQLENS].diff().max())


def _check(name: str, tokens: Tensor, cu_seqlens: Tensor, kwargs: dict[str, Any]) -> None:
    """Raises ValueError if the batch is not one of packed sequences."""
    if tokens.shape[0] != 1:
        raise ValueError(
            f"{name}: cu_seq_lens_q must come with input_ids of shape (1, total); got "
            f"{tuple(tokens.shape)}. Lay the sequences one after the other, or leave it out."
        )
    for other in ("attention_mask", "past_key_values"):
        if kwargs.get(other) is not None:
            raise ValueError(
                f"{name}: {other} must not come with cu_seq_lens_q, which says where the "
                f"sequences of a batch without padding begin; got both. Leave out {other}."
            )
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return  # reading it would wait for the device
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or not _rises(cu_seqlens, tokens.shape[1]):
        raise ValueError(
            f"{name}: cu_seq_lens_q must rise from 0 to at most the number of tokens, "
            f"{tokens.shape[1]}; got {cu_seqlens.tolist()}. Leave out empty sequences."
        )


def _check_positions(name: str, position_ids: Tensor, first: int) -> None:
    """Raises ValueError if positions are given that a family's tokens never have.

    Collators count from 0 unless they are told otherwise. Waits for the device, but only where a
    family counts from elsewhere.
    """
    if first == 0 or torch.compiler.is_compiling():
        return
    lowest = int(position_ids.min())
    if lowest < first:
        raise ValueError(
            f"{name}: position_ids must begin at {first}, after padding's; got {lowest}. Leave "
            "them out of the packed batch: the patched model counts them."
        )


def _rises(cu_seqlens: Tensor, total: int) -> bool:
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    return first == 0 and last <= total and bool((cu_seqlens.diff() > 0).all())


def _positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """(batch + 1,) -> (total,) int64: the place of each row in its sequence; waits for nothing."""
    rows = torch.arange(total, device=cu_seqlens.device)
    starts = cu_seqlens.long()
    sequence = torch.searchsorted(starts[1:].contiguous(), rows, right=True)
    return rows - starts.index_select(0, sequence)


def _first_position(body: Any) -> int:
    """Returns the position id of a sequence's first token: RoBERTa's count from after padding's."""
    padding = getattr(body.embeddings, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _pool_first_rows(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
    """After a body: makes the pooler's output that of each sequence.

    Under a head that asked for first rows it is that already.
    """
    pooler = getattr(body, "pooler", None)
    if not is_packed(kwargs) or pooler is None or kwargs.get(FIRST_ROWS_OF_PACKED):
        return None
    rows = outputs[0][0].index_select(0, kwargs[CU_SEQLENS][:-1].long())
    pooled = pooler(rows[:, None])
    if isinstance(outputs, tuple):
        return (outputs[0], pooled, *outputs[2:])
    outputs.pooler_output = pooled
    return outputs


def _ask_for_first_rows(
    head: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a head for sequences.

    Raises:
        ValueError: hidden states are asked for, the last of which would be first rows as well.
    """
    if not is_packed(kwargs):
        return None
    if kwargs.get("output_hidden_states") or head.config.output_hidden_states:
        raise ValueError(
            f"{type(head).__name__}: output_hidden_states must be False for packed sequences; got "
            "True. Ask model.base_model for them, without labels."
        )
    return args, {**kwargs, FIRST_ROWS_OF_PACKED: True}


def _refuse(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a model that takes none."""
    if is_packed(kwargs):
        raise ValueError(
            f"{type(module).__name__}: cu_seq_lens_q must be left out, because this model does not "
            f"hand it down, or reads the padded batch, in Transformers {transformers.__version__}; "
            "got packed sequences. Use padded batches: a patched model removes the padding."
        )


def _refuse_choices(head: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a head for multiple choice."""
    if is_packed(kwargs):
        raise ValueError(
            f"{type(head).__name__}: input_ids must be (batch, choices, seqlen), because the head "
            "tells the choices of a question by it; got packed sequences. Use padded batches: a "
            "patched model removes the padding."
        )


@dataclass(frozen=True)
class _HideSpans:
    """Before a head for question answering: keeps the spans from its own loss.

    That is a softmax over the whole row of tokens.
    """

    places: dict[str, int]

    def __call__(
        self, head: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not is_packed(kwargs):
            return None
        kwargs = dict(zip(self.places, args, strict=False)) | kwargs
        spans = tuple(kwargs.pop(name, None) for name in _SPANS)
        if any(span is None for span in spans):
            return (), kwargs  # no loss, as in stock
        return (), {**kwargs, HIDDEN_SPANS: spans}


def _add_span_loss(head: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
    """After a head for question answering: its loss over each sequence alone.

    It is the mean of what the stock head gives for each sequence without padding.
    """
    spans = kwargs.get(HIDDEN_SPANS)
    if spans is None:
        return None
    is_tuple = isinstance(outputs, tuple)
    logits = outputs[:2] if is_tuple else (outputs.start_logits, outputs.end_logits)
    longest = _longest(kwargs, logits[0].shape[1])
    losses = [
        _span_loss(x[0], span, kwargs[CU_SEQLENS], longest)
        for x, span in zip(logits, spans, strict=True)
    ]
    loss = (losses[0] + losses[1]) / 2
    if is_tuple:
        return (loss, *outputs)
    return type(outputs)(**{**outputs, "loss": loss})


def _span_loss(logits: Tensor, span: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Cross-entropy of (total,) logits, a softmax per sequence, against (batch,) positions."""
    rows = cu_seqlens[:-1, None] + torch.arange(longest, device=logits.device)
    inside = rows < cu_seqlens[1:, None]
    scores = logits[rows.clamp(max=logits.shape[0] - 1)].masked_fill(~inside, float("-inf"))
    lengths = cu_seqlens.diff()
    if span.ndim > 1:
        span = span.squeeze(-1)
    # As in stock, a span outside of its sequence is not scored.
    span = span.clamp(min=0)
    target = torch.where(span < lengths, span, -100)
    return F.cross_entropy(scores, target.long(), ignore_index=-100)
