"""Batches without padding: sequences that lie one after the other in one row of tokens.

    input_ids (1, total)   cu_seq_lens_q (batch + 1,)   max_length_q   labels

:mod:`fastattn.data.packing` makes them, and Transformers' ``DataCollatorWithFlattening`` with
``return_flash_attn_kwargs=True``. The encoder knows what to do with them
(:mod:`fastattn.modules.encoder`); the hooks of this file see to what is around it:

- position ids count from the start of each sequence, by the family's rule;
- the pooler, and heads for sequences, get the first row of each sequence, or the mean of its rows;
- models that hand no keywords down say in the mask's place where sequences begin;
- the loss of question answering is a softmax over the rows of each sequence;
- that of ELECTRA's pretraining, which has a label for every row, is a mean over those of sequences.

Other heads for rows need nothing: their loss is a mean over the rows that have labels. So rows of
no sequence, behind the last one, are computed, but nothing reads them: their gradients are zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from fastattn.integrations.transformers import refuse_attention_weights_of_packed
from fastattn.modules.encoder import (
    CU_SEQLENS,
    FIRST_ROWS_OF_PACKED,
    HIDDEN_LABELS,
    MAX_SEQLEN,
)
from fastattn.ops.checks import as_int, can_be_read, is_known
from fastattn.ops.padding import PackedLayout, row_places, sequences_layout, sequences_mask
from fastattn.patching.arguments import argument
from fastattn.patching.changes import has_hook, keep_hook
from fastattn.patching.family import Family
from fastattn.patching.packed_inputs import MASKS
from fastattn.patching.registry import Target

_NAME = "packed"
_SPANS = ("start_positions", "end_positions")
_LABELS = ("labels",)


def is_packed(kwargs: dict[str, Any]) -> bool:
    """Whether a call's keywords say that its batch comes without padding."""
    return kwargs.get(CU_SEQLENS) is not None


def takes_packed_batches(model: nn.Module) -> bool:
    """Whether a model was made to take batches without padding, or one inside it was."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(isinstance(hook, _BeforeBody) for hook in hooks)


def serve_packed_batches(target: Target, family: Family) -> None:
    """Makes a body, and the heads around it, take batches without padding."""
    body, by = target.body, family.packed_by
    if by is None or (family.attention is None and family.own_attention is None):
        for module in (body, *target.heads):
            _hook(module, _refuse, None)
        return
    _hook(body, _BeforeBody(_places(body), by, family.embed_packed), _AfterBody(by))
    if family.embeddings_hook is not None:
        _hook(body.embeddings, family.embeddings_hook, None)
    for head in target.heads:
        if head.base_model is not body:
            continue
        reads_first_rows = type(head) in family.first_row_heads
        if type(head).__name__.endswith("MultipleChoice"):
            _hook(head, _refuse_choices, None)
        elif _scores_spans(family, head):
            _hook(head, _HideLabels(_places(head), by, _SPANS), _add_span_loss)
        elif type(head).__name__ == "ElectraForPreTraining":
            _hook(head, _HideLabels(_places(head), by, _LABELS), _add_loss_of_all_rows)
        elif by == "mask":
            _hook(head, _HandDown(_places(head), reads_first_rows), None)
        elif reads_first_rows:
            _hook(head, _ask_for_first_rows, None)


def refuse_packed_batches(target: Target, family: Family) -> None:
    """Makes a body whose padding stays refuse what it would compute wrongly without a word.

    Where keywords reach the attention it sees where sequences begin; given position ids as well,
    as Transformers' collator gives them, it lacks nothing.
    """
    if family.packed_by is None:
        return
    modules = (target.body, *target.heads) if family.packed_by == "mask" else (target.body,)
    for module in modules:
        _hook(module, _RefuseWithPadding(_places(module), family.packed_by), None)


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
    by: str  # Family.packed_by
    embed: Callable[[Any, Tensor, Tensor, int], Tensor | None] | None  # Family.embed_packed

    def __call__(
        self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        handed_down = argument(body, args, kwargs, "attention_mask")
        if not is_packed(kwargs) and not isinstance(handed_down, PackedLayout):
            return None
        kwargs = dict(zip(self.places, args, strict=False)) | kwargs
        if isinstance(handed_down, PackedLayout):
            kwargs |= {
                "attention_mask": None,
                CU_SEQLENS: handed_down.cu_seqlens,
                MAX_SEQLEN: handed_down.max_seqlen,
                FIRST_ROWS_OF_PACKED: handed_down.only_first_rows,
            }
        name, tokens, cu_seqlens = type(body).__name__, _tokens(kwargs), kwargs[CU_SEQLENS]
        total = tokens.shape[1]
        _check(name, tokens, cu_seqlens, kwargs)
        wanted = kwargs.get("output_attentions")
        if wanted is None:
            wanted = getattr(body.config, "output_attentions", False)
        refuse_attention_weights_of_packed(wanted)
        kwargs[MAX_SEQLEN] = longest = _longest(kwargs, total)
        first = _first_position(body)
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = _positions(cu_seqlens, total)[None] + first
        else:
            _check_positions(name, kwargs["position_ids"], first)
        if self.embed is not None and kwargs.get("input_ids") is not None:
            embedded = self.embed(body, tokens, cu_seqlens, longest)
            if embedded is not None:
                kwargs |= {"input_ids": None, "inputs_embeds": embedded}
        if self.by == "mask":
            kwargs["attention_mask"] = sequences_mask(cu_seqlens, min(longest, total))
        elif self.by == "masks":
            kwargs.pop(HIDDEN_LABELS, None)  # the layers refuse keywords that they do not know
            first_rows = kwargs.pop(FIRST_ROWS_OF_PACKED, False)
            layout = sequences_layout(tokens, cu_seqlens, longest)
            layout = layout._replace(only_first_rows=first_rows)
            kwargs["attention_mask"] = dict.fromkeys(MASKS, layout)
        return (), kwargs


@dataclass(frozen=True)
class _HandDown:
    """Before a head that hands no keywords down: says in the mask's place where sequences begin."""

    places: dict[str, int]
    first_rows: bool  # whether the head reads no others

    def __call__(
        self, head: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not is_packed(kwargs):
            return None
        kwargs = dict(zip(self.places, args, strict=False)) | kwargs
        return (), _handed_down(head, kwargs, self.first_rows)


def _handed_down(head: Any, kwargs: dict[str, Any], first_rows: bool) -> dict[str, Any]:
    """Returns the keywords of a head with a mask that says where sequences begin."""
    tokens, cu_seqlens = _tokens(kwargs), kwargs[CU_SEQLENS]
    _check(type(head).__name__, tokens, cu_seqlens, kwargs)
    layout = sequences_layout(tokens, cu_seqlens, _longest(kwargs, tokens.shape[1]))
    return {**kwargs, "attention_mask": layout._replace(only_first_rows=first_rows)}


def _tokens(kwargs: dict[str, Any]) -> Any:
    """Returns the ids, (1, total), or embeddings of a call."""
    ids = kwargs.get("input_ids")
    return kwargs.get("inputs_embeds") if ids is None else ids


def _longest(kwargs: dict[str, Any], total: int) -> int:
    """Returns the longest length, or more."""
    longest: int | None = as_int(kwargs.get(MAX_SEQLEN))
    if longest is not None:
        return longest
    # A compiled graph has to do with a bound: reading the tensor would break it.
    return int(kwargs[CU_SEQLENS].diff().max()) if is_known(kwargs[CU_SEQLENS]) else total


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
    if not can_be_read(cu_seqlens):
        return
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or not _rises(cu_seqlens, tokens.shape[1]):
        raise ValueError(
            f"{name}: cu_seq_lens_q must rise from 0 to at most the number of tokens, "
            f"{tokens.shape[1]}; got {cu_seqlens.tolist()}. Leave out empty sequences."
        )


def _check_positions(name: str, position_ids: Tensor, first: int) -> None:
    """Raises ValueError if positions are given that a family's tokens never have.

    Collators count from 0 unless they are told otherwise. Waits for the device, but only where a
    family counts from elsewhere.
    """
    if first == 0 or not is_known(position_ids):
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
    """(batch + 1,) -> (total,) int64: the place of each row in its sequence; waits for nothing.

    Rows of no sequence, of which there may be more than a model has positions, are all at 0.
    """
    sequence, places = row_places(cu_seqlens, total)
    return places.masked_fill(sequence == cu_seqlens.shape[0] - 1, 0)


def _first_position(body: Any) -> int:
    """Returns the position id of a sequence's first token.

    RoBERTa's count from after padding's; so do ESM's, but for those that are angles.
    """
    if getattr(body.embeddings, "position_embedding_type", "absolute") == "rotary":
        return 0
    padding = getattr(body.embeddings, "padding_idx", None)
    return 0 if padding is None else padding + 1


@dataclass(frozen=True)
class _AfterBody:
    """After a body: hands on the rows that a head for sequences reads, or pools first rows.

    Where keywords reach the encoder, it has handed on the rows, and the pooler's output is theirs.
    """

    by: str  # Family.packed_by

    def __call__(
        self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> Any:
        if not is_packed(kwargs):
            return None
        first_rows = kwargs.get(FIRST_ROWS_OF_PACKED)
        if self.by == "masks":
            first_rows = kwargs["attention_mask"][MASKS[0]].only_first_rows
        elif self.by == "keywords" and first_rows:
            return None
        if first_rows:
            rows = _rows_read(body, outputs[0][0], kwargs)[:, None]
            if isinstance(outputs, tuple):
                return (rows, *outputs[1:])
            outputs.last_hidden_state = rows
            return outputs
        return _with_pooled_first_rows(body, kwargs, outputs)


def _rows_read(body: Any, rows: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """(total, hidden) -> (batch, hidden), which a head takes for first rows."""
    cu_seqlens = kwargs[CU_SEQLENS].long()
    if getattr(body.config, "classifier_pooling", None) != "mean":
        return rows.index_select(0, cu_seqlens[:-1])
    places = cu_seqlens[:-1, None] + torch.arange(kwargs[MAX_SEQLEN], device=rows.device)
    inside = places < cu_seqlens[1:, None]
    padded = rows[places.clamp(max=rows.shape[0] - 1)] * inside[..., None]
    return padded.sum(dim=1) / cu_seqlens.diff()[:, None]


def _with_pooled_first_rows(body: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
    """Makes the pooler's output that of each sequence, if there is a pooler."""
    pooler = getattr(body, "pooler", None)
    if pooler is None:
        return None
    rows = outputs[0][0].index_select(0, kwargs[CU_SEQLENS][:-1].long())
    activation = getattr(body, "pooler_activation", None)  # ALBERT's pooler is but a linear layer
    pooled = pooler(rows[:, None]) if activation is None else activation(pooler(rows))
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


@dataclass(frozen=True)
class _RefuseWithPadding:
    """Before a model whose padding is not removed."""

    places: dict[str, int]
    by: str  # Family.packed_by

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not is_packed(kwargs):
            return
        given = dict(zip(self.places, args, strict=False)) | kwargs
        if self.by == "mask" or given.get("position_ids") is None:
            raise ValueError(
                f"{type(module).__name__}: cu_seq_lens_q must be given to a model whose padding "
                "is removed; got one patched to keep it, where sequences would not be apart. See "
                "the report of fastattn.patch for the reason, or use padded batches."
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
class _HideLabels:
    """Before a head whose own loss is over the whole row of tokens: keeps the labels from it."""

    places: dict[str, int]
    by: str  # Family.packed_by
    names: tuple[str, ...]

    def __call__(
        self, head: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not is_packed(kwargs):
            return None
        kwargs = dict(zip(self.places, args, strict=False)) | kwargs
        if self.by == "mask":
            kwargs = _handed_down(head, kwargs, first_rows=False)
        labels = tuple(kwargs.pop(name, None) for name in self.names)
        if any(x is None for x in labels):
            return (), kwargs  # no loss, as in stock
        return (), {**kwargs, HIDDEN_LABELS: labels}


def _add_span_loss(head: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
    """After a head for question answering: its loss over each sequence alone.

    It is the mean of what the stock head gives for each sequence without padding.
    """
    spans = kwargs.get(HIDDEN_LABELS)
    if spans is None:
        return None
    logits = outputs[:2]
    longest = _longest(kwargs, logits[0].shape[1])
    losses = [
        _span_loss(x[0], span, kwargs[CU_SEQLENS], longest)
        for x, span in zip(logits, spans, strict=True)
    ]
    return _with_loss(outputs, (losses[0] + losses[1]) / 2)


def _add_loss_of_all_rows(
    head: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
) -> Any:
    """After ELECTRA's pretraining head: its loss over the rows of sequences, each of which has one.

    That it scores rows of -100 as well is as in stock, and so is its dtype.
    """
    if HIDDEN_LABELS not in kwargs:
        return None
    (labels,) = kwargs[HIDDEN_LABELS]
    logits, end = outputs[0], kwargs[CU_SEQLENS][-1]
    total = logits.shape[1]
    is_of_sequence = torch.arange(total, device=logits.device) < end
    weight = is_of_sequence * (total / end)  # the mean is over all rows
    return _with_loss(outputs, F.binary_cross_entropy_with_logits(logits, labels.float(), weight))


def _with_loss(outputs: Any, loss: Tensor) -> Any:
    """Returns outputs of a head that computed no loss with one."""
    if isinstance(outputs, tuple):
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
