"""How the layers of BERT and its relatives are fused, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastattn.modules.combined import Mixin, combined, is_a, stock_of
from fastattn.modules.encoder import ONLY_FIRST_ROWS
from fastattn.modules.fused import computes_gelu, is_watched
from fastattn.patching.changes import change_class, has_hook, keep_hook
from fastattn.patching.family import Family, is_stock_reader
from fastattn.patching.fusions import FIRST_ROWS, FUSIONS, GELU, QKV
from fastattn.patching.registry import Target, stock_name
from fastattn.patching.report import LEFT, REPLACED, LayerReport


def fuse_layers(target: Target, family: Family) -> list[LayerReport]:
    """Fuses the parts of the layers that were chosen; returns an entry for each part."""
    entries = []
    for path, part in target.body.named_modules():
        for name, mixin in family.fusions.get(stock_of(part), ()):
            reason = _not_fused(target, name, mixin, part)
            if reason is None and not isinstance(part, mixin):
                change_class(part, combined(mixin, type(part)))
            entries.append(_entry(target, path, part, name, reason))
    return entries


def project_together(target: Target, family: Family) -> list[LayerReport]:
    """Makes attention layers that are served project q, k and v at once.

    Returns:
        An entry for each layer, if their projections are three.
    """
    if family.fused_attention is None or (family.attention or family.own_attention) is None:
        return []
    entries = []
    for name, layer in target.attention:
        served = family.own_attention and is_a(layer, family.own_attention)
        if stock_of(layer) is not family.attention and not served:
            continue
        reason = None if QKV in target.fuse else f"not fused: {QKV} not chosen in fuse"
        if reason is None and not isinstance(layer, family.fused_attention):
            change_class(layer, combined(family.fused_attention, type(layer)))
        what = REPLACED if reason is None else LEFT
        entries.append(LayerReport(name, stock_name(layer), what, reason or FUSIONS[QKV]))
    return entries


def compute_first_rows(target: Target, family: Family, unpadded: bool) -> list[LayerReport]:
    """Leaves out the rows of the last layer that no head reads; returns entries if there are any.

    In Transformers 4.x a head has no way to tell the encoder so.

    Args:
        unpadded: whether padding is removed around the encoder; if not, all rows are needed.
    """
    heads = [head for head in target.heads if head.base_model is target.body]
    if not unpadded or not heads or not all(type(head) in family.first_row_heads for head in heads):
        return []
    if family.attention is None or family.first_rows_layer is None:
        return []
    last = family.last_layer(target.body)
    reason = _not_first_rows(target, family, heads)
    if reason is None:
        change_class(last, family.with_first_rows(last))
        for head in heads:
            if not has_hook(head, FIRST_ROWS):
                name = family.first_row_heads[type(head)]
                hook = _SayWhichRowsAreRead(name, tuple(family.readers))
                handle = head.register_forward_pre_hook(hook, with_kwargs=True)
                keep_hook(head, FIRST_ROWS, handle)
    number = len(family.layers(target.body)) - 1
    path = f"{family.encoder_name}.{family.layers_name}.{number}"
    return [_entry(target, path, last, FIRST_ROWS, reason)]


def _not_first_rows(target: Target, family: Family, heads: list[Any]) -> str | None:
    """Returns why all rows of the last layer are computed, or None."""
    attention = getattr(family.last_layer(target.body), family.attention_name)
    if FIRST_ROWS not in target.fuse:
        return f"all rows computed: {FIRST_ROWS} not chosen in fuse"
    assert family.fused_attention is not None  # whoever leaves out rows has one
    if not isinstance(getattr(attention, "self", attention), family.fused_attention):
        return f"all rows computed: that needs {QKV} in fuse"
    readers = [family.reader(head, target.body) for head in heads]
    own = [type(x).__name__ for x in readers if x is not None and not family.is_stock_reader(x)]
    return f"all rows computed: {own[0]} may read them" if own else None


def _not_fused(target: Target, name: str, mixin: type[Mixin], part: nn.Module) -> str | None:
    """Returns why a part is left as it is, or None."""
    if name not in target.fuse:
        return f"not fused: {name} not chosen in fuse"
    if name != GELU:
        return None
    name_of_activation = mixin.activation_name
    if name_of_activation is None:
        return None  # the exact GELU is part of its code
    activation = getattr(part, name_of_activation)
    if not computes_gelu(activation):
        kind = getattr(activation, "__name__", type(activation).__name__)
        return f"not fused: its activation, {kind}, is not the exact GELU"
    return None


def _entry(
    target: Target, path: str, part: nn.Module, name: str, reason: str | None
) -> LayerReport:
    full = ".".join(piece for piece in (target.name, path) if piece)
    what = REPLACED if reason is None else LEFT
    return LayerReport(full, stock_name(part), what, reason or FUSIONS[name])


@dataclass(frozen=True)
class _SayWhichRowsAreRead:
    """Before a head: tells the encoder that only first rows are read, unless others are seen.

    It holds what it needs of the family, which a compiler could not trace into.
    """

    reader_name: str | None  # the head's or the body's part that picks the rows
    readers: tuple[type[nn.Module], ...]

    def __call__(
        self, head: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        body = head.base_model
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) or getattr(body.config, name, False):
                return None
        if is_watched(body):
            return None
        if self.reader_name is not None:
            name = self.reader_name
            reader = getattr(head, name, None) or getattr(body, name, None)
            if reader is not None and not is_stock_reader(reader, self.readers):
                return None  # replaced after the patch
            if reader is not None and is_watched(reader):
                return None
        return args, {**kwargs, ONLY_FIRST_ROWS: True}
