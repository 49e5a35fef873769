"""How the layers of a BertModel are fused, part by part."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.bert import modeling_bert

from fastattn.modules import bert as modules
from fastattn.modules.fused import computes_gelu, is_watched
from fastattn.patching.changes import change_class, has_hook, keep_hook, own_hooks, stock_class
from fastattn.patching.fusions import FIRST_ROWS, FUSIONS, GELU, LAYER_NORM, QKV
from fastattn.patching.registry import Target, stock_name
from fastattn.patching.report import LEFT, REPLACED, LayerReport

# Stock class -> the name of its fusion, and the class that fuses it.
_PARTS = {
    modeling_bert.BertSelfOutput: (LAYER_NORM, modules.FusedBertSelfOutput),
    modeling_bert.BertOutput: (LAYER_NORM, modules.FusedBertOutput),
    modeling_bert.BertIntermediate: (GELU, modules.FusedBertIntermediate),
}
# The heads that read the pooler's output and nothing else, unless hidden states are asked for.
_POOLED_HEADS = (
    modeling_bert.BertForSequenceClassification,
    modeling_bert.BertForNextSentencePrediction,
    modeling_bert.BertForMultipleChoice,
)


def fuse_layers(target: Target) -> list[LayerReport]:
    """Fuses the parts of the layers that were chosen; returns an entry for each part."""
    entries = []
    for path, part in target.body.named_modules():
        if stock_class(part) in _PARTS:
            name, fused = _PARTS[stock_class(part)]
            reason = _not_fused(target, name, part)
            if reason is None:
                change_class(part, fused)
            entries.append(_entry(target, path, part, name, reason))
    return entries


def project_together(target: Target) -> None:
    """Makes attention layers that go through the interface project q, k and v at once."""
    for _, layer in target.attention:
        if QKV in target.fuse and stock_class(layer) is modeling_bert.BertSelfAttention:
            change_class(layer, modules.FusedBertSelfAttention)


def compute_first_rows(target: Target, unpadded: bool) -> list[LayerReport]:
    """Leaves out the rows of the last layer that no head reads; returns entries if there are any.

    In Transformers 4.x a head has no way to tell the encoder so.

    Args:
        unpadded: whether padding is removed around the encoder; if not, all rows are needed.
    """
    heads = [head for head in target.heads if head.base_model is target.body]
    if not unpadded or not heads or not all(type(head) in _POOLED_HEADS for head in heads):
        return []
    if not modules.HAS_ATTENTION_INTERFACE:
        return []
    last = target.body.encoder.layer[-1]
    reason = None
    if FIRST_ROWS not in target.fuse:
        reason = f"all rows computed: {FIRST_ROWS} not chosen in fuse"
    elif type(last.attention.self) is not modules.FusedBertSelfAttention:
        reason = f"all rows computed: that needs {QKV} in fuse"
    if reason is None:
        change_class(last, modules.FirstRowsBertLayer)
        for head in heads:
            if not has_hook(head, FIRST_ROWS):
                handle = head.register_forward_pre_hook(_say_which_rows_are_read, with_kwargs=True)
                keep_hook(head, FIRST_ROWS, handle)
    path = f"encoder.layer.{len(target.body.encoder.layer) - 1}"
    return [_entry(target, path, last, FIRST_ROWS, reason)]


def _not_fused(target: Target, name: str, part: nn.Module) -> str | None:
    """Returns why a part is left as it is, or None."""
    if name not in target.fuse:
        return f"not fused: {name} not chosen in fuse"
    if name == GELU and not computes_gelu(part.intermediate_act_fn):
        kind = getattr(
            part.intermediate_act_fn, "__name__", type(part.intermediate_act_fn).__name__
        )
        return f"not fused: its activation, {kind}, is not the exact GELU"
    return None


def _entry(
    target: Target, path: str, part: nn.Module, name: str, reason: str | None
) -> LayerReport:
    full = ".".join(piece for piece in (target.name, path) if piece)
    what = REPLACED if reason is None else LEFT
    return LayerReport(full, stock_name(part), what, reason or FUSIONS[name])


def _say_which_rows_are_read(
    head: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a head: tells the encoder that only first rows are read, unless others are seen."""
    body = head.base_model
    for name in ("output_hidden_states", "output_attentions"):
        if kwargs.get(name) or getattr(body.config, name, False):
            return None
    if is_watched(body, but=own_hooks(body)) or is_watched(body.pooler):
        return None
    return args, {**kwargs, modules.ONLY_FIRST_ROWS: True}
