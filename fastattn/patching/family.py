"""What a family of encoders is described by; :mod:`fastattn.patching.families` describes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastattn.modules.combined import Mixin, combined, stock_of
from fastattn.modules.encoder import FirstRowsLayer, UnpaddedEncoder
from fastattn.patching.packed_layers import PackRows

# The fusions of one stock class: their names, and the mixins that make them.
Fusions = tuple[tuple[str, type[Mixin]], ...]


@dataclass(frozen=True)
class RowLoss:
    """A head's loss over rows: it reads every row with a label."""

    label: str  # the argument that asks for the loss
    of_next: bool = False  # whether row i is scored against label i + 1


@dataclass(frozen=True)
class Family:
    """One family's classes."""

    parts: frozenset[type[nn.Module]]  # of the encoder down to attention, which run without padding
    attention: type[nn.Module] | None  # calls the interface; None if it does not
    fused_attention: type[Mixin] | None  # None if q, k and v are one projection already
    fusions: Mapping[type[nn.Module], Fusions]
    row_losses: Mapping[type[nn.Module], RowLoss]
    # Head that reads the first row of each sequence -> the part of it, or of its body, that does
    # so, by name; None for the head's own forward, or the body's.
    first_row_heads: Mapping[type[nn.Module], str | None]
    all_row_heads: tuple[type[nn.Module], ...]  # that treat every row alike
    encoder_name: str = "encoder"  # the body's attribute; "" if the layers are the body's own
    layers_name: str = "layer"  # the encoder's attribute
    inner_layers_name: str | None = None  # the layer's attribute, if it is a group of layers
    attention_name: str = "attention"  # the layer's attribute
    # Before each layer, if padding is removed where the layers of such a body begin; None if it is
    # removed from what the body is given.
    packs_rows: PackRows | None = None
    # Of those that do not call the interface, the ones that can be served, and what serves them.
    legacy_attention: frozenset[type[nn.Module]] = frozenset()
    own_attention: type[Mixin] | None = None  # None: LegacySelfAttention, in Transformers 4.x
    unpadded_encoder: type[UnpaddedEncoder] = UnpaddedEncoder
    # Of a last layer, and of one that is fused as a whole; None if it computes all rows.
    first_rows_layer: type[FirstRowsLayer] | None = None
    first_rows_fused_layer: type[FirstRowsLayer] | None = None
    readers: frozenset[type[nn.Module]] = field(default=frozenset())  # the named parts' classes
    pooler_name: str | None = "pooler"  # the body's part that picks first rows; None: the body does
    never_unpadded: str | None = None  # why no batch of this family has padding to remove
    adds_mask: bool = False  # whether the encoder's masks are added to the scores
    # Whether the distance of two tokens must be the same with padding and without: what counts it.
    counts_distances: str | None = None
    # Whether the encoder gets a (batch, seqlen) mask only if the body is given one made ready.
    hands_mask_on: bool = False
    # How a head says that it reads rows of padding: "mask", with a row for each query; "keyword",
    # where a mask could not say it; "column", a (batch, seqlen, 1) mask.
    says_keep_by: str = "mask"
    # How packed sequences reach the layers: "keywords" of the batch, which all modules hand down;
    # "mask", in its place where they hand down no more; "masks", of a body with no encoder. None: a
    # batch must not come without padding.
    packed_by: str | None = None
    # (body, ids, cu_seqlens, max_seqlen) -> embedded, if tokens are not embedded each by itself.
    embed_packed: Callable[[Any, Tensor, Tensor, int], Tensor | None] | None = None
    # Before the body's embeddings, if they read a mask that is in "mask"'s place.
    embeddings_hook: Callable[..., Any] | None = None

    def encoder(self, body: Any) -> Any:
        """Returns the part of a body that runs without padding."""
        return getattr(body, self.encoder_name) if self.encoder_name else body

    def layers(self, body: Any) -> Any:
        """Returns the encoder's layers, or groups of layers."""
        return getattr(self.encoder(body), self.layers_name)

    def last_layer(self, body: Any) -> Any:
        """Returns the last layer of a body's encoder."""
        return self.layers(body)[-1]

    def with_first_rows(self, layer: nn.Module) -> type[nn.Module]:
        """Returns the class of a last layer that can leave out rows, fused as it is now."""
        stock = stock_of(layer)
        fusing = tuple(mixin for _, mixin in self.fusions.get(stock, ()))
        is_fused = bool(fusing) and isinstance(layer, fusing)
        mixin = self.first_rows_fused_layer if is_fused else self.first_rows_layer
        assert mixin is not None  # the caller has seen that there is one
        return combined(mixin, stock)

    def reader(self, head: Any, body: Any) -> nn.Module | None:
        """Returns the part that picks the first rows for a head, or None if there is none."""
        name = self.first_row_heads.get(type(head))
        return getattr(head, name, None) or getattr(body, name, None) if name else None

    def readers_of(self, body: Any, heads: Iterable[Any]) -> list[nn.Module]:
        """Returns the parts of a body and its heads that pick rows."""
        found = [getattr(body, self.pooler_name, None) if self.pooler_name else None]
        found += [self.reader(head, body) for head in heads]
        return [reader for reader in found if reader is not None]

    def is_stock_reader(self, reader: nn.Module) -> bool:
        """Whether a part reads the first row of each sequence, and nothing else."""
        return is_stock_reader(reader, self.readers)

    def reads_tokens_alone(self, head: Any) -> bool:
        """Whether a head reads no row of padding but through its loss."""
        if getattr(head.config, "classifier_pooling", None) == "mean":
            return True  # weighted by the mask
        return isinstance(head, self.all_row_heads)


def is_stock_reader(reader: nn.Module, readers: Collection[type[nn.Module]]) -> bool:
    """Whether a part of one of the classes reads the first row of each sequence, nothing else."""
    # PEFT wraps the parts of a head that it trains in full.
    reader = getattr(reader, "original_module", reader)
    summary = getattr(reader, "summary_type", "first")
    return type(reader) in readers and summary == "first"


def row_losses(find: Any) -> dict[type[nn.Module], RowLoss]:
    """Returns the heads with losses over rows.

    ELECTRA's pretraining is not among them: it chooses its rows by the mask.
    """
    by_label = find("ForTokenClassification", "ForMaskedLM")
    losses = {cls: RowLoss("labels") for cls in by_label}
    losses |= {
        cls: RowLoss("labels")
        for cls in find("ForPreTraining")
        if hasattr(cls, "get_output_embeddings") and not cls.__name__.startswith("Electra")
    }
    losses |= {cls: RowLoss("labels", of_next=True) for cls in find("LMHeadModel", "ForCausalLM")}
    return losses | {cls: RowLoss("start_positions") for cls in find("ForQuestionAnswering")}


def all_row_heads(find: Any) -> tuple[type[nn.Module], ...]:
    """Returns the heads that treat every row alike. They may have a pooler all the same."""
    return find(
        "ForTokenClassification",
        "ForMaskedLM",
        "LMHeadModel",
        "ForCausalLM",
        "ForQuestionAnswering",
        "ForPreTraining",
    )
