"""The families of encoders that get everything: what their parts are called, and what heads read.

All but DistilBERT build their layers as BERT does, under names that begin with their own. So a
family is described by the file of its model and that beginning; what a model lacks is skipped.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastattn.modules import bert, distilbert
from fastattn.modules.combined import Mixin, combined, stock_of
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE, FirstRowsLayer
from fastattn.modules.fused import FusedIntermediate, FusedOutput
from fastattn.patching.fusions import GELU, LAYER_NORM

# File under transformers.models -> the beginning of its classes' names.
_LIKE_BERT = {
    "bert.modeling_bert": "Bert",
    "roberta.modeling_roberta": "Roberta",
    "xlm_roberta.modeling_xlm_roberta": "XLMRoberta",
    "camembert.modeling_camembert": "Camembert",
    "electra.modeling_electra": "Electra",
    "data2vec.modeling_data2vec_text": "Data2VecText",
}
_DISTILBERT = "distilbert.modeling_distilbert"
_MODELS = "transformers.models."


@dataclass(frozen=True)
class RowLoss:
    """A head's loss over rows: it reads every row with a label."""

    label: str  # the argument that asks for the loss
    of_next: bool = False  # whether row i is scored against label i + 1


@dataclass(frozen=True)
class Family:
    """One family's classes."""

    encoder_name: str  # the body's attribute
    parts: frozenset[type[nn.Module]]  # of the encoder down to attention, which run without padding
    attention: type[nn.Module] | None  # calls the interface; None in Transformers 4.x
    fused_attention: type[Mixin]
    legacy_attention: frozenset[type[nn.Module]]  # those of Transformers 4.x that can be served
    first_rows_layer: type[FirstRowsLayer]
    first_rows_fused_layer: type[FirstRowsLayer]  # of a layer that is fused as a whole
    # Stock class -> the name of its fusion, and the mixin that fuses it.
    fusions: Mapping[type[nn.Module], tuple[str, type[Mixin]]]
    row_losses: Mapping[type[nn.Module], RowLoss]
    # Head that reads the first row of each sequence -> the part of it, or of its body, that does
    # so, by name; None for the head's own forward.
    first_row_heads: Mapping[type[nn.Module], str | None]
    all_row_heads: tuple[type[nn.Module], ...]  # that treat every row alike
    readers: frozenset[type[nn.Module]]  # the stock classes of the parts that are named

    def last_layer(self, body: Any) -> Any:
        """Returns the last layer of a body's encoder."""
        return getattr(body, self.encoder_name).layer[-1]

    def with_first_rows(self, layer: nn.Module) -> type[nn.Module]:
        """Returns the class of a last layer that can leave out rows, fused as it is now."""
        stock = stock_of(layer)
        is_fused = stock in self.fusions and isinstance(layer, self.fusions[stock][1])
        mixin = self.first_rows_fused_layer if is_fused else self.first_rows_layer
        return combined(mixin, stock)

    def reader(self, head: Any, body: Any) -> nn.Module | None:
        """Returns the part that picks the first rows for a head, or None if there is none."""
        name = self.first_row_heads.get(type(head))
        return getattr(head, name, None) or getattr(body, name, None) if name else None

    def is_stock_reader(self, reader: nn.Module) -> bool:
        """Whether a part reads the first row of each sequence, and nothing else."""
        # PEFT wraps the parts of a head that it trains in full.
        reader = getattr(reader, "original_module", reader)
        summary = getattr(reader, "summary_type", "first")
        return type(reader) in self.readers and summary == "first"


def of(body: nn.Module) -> Family | None:
    """Returns the family of a body, or None if it has none. Subclasses count as well."""
    for cls in type(body).__mro__:
        file = cls.__module__.removeprefix(_MODELS)
        if cls.__name__ == _LIKE_BERT.get(file, "") + "Model":
            return _like_bert(file, _LIKE_BERT[file])
        # In Transformers 4.x its layers have another shape, and so do its masks.
        if (file, cls.__name__) == (_DISTILBERT, "DistilBertModel") and HAS_ATTENTION_INTERFACE:
            return _distilbert()
    return None


@functools.cache
def _like_bert(file: str, prefix: str) -> Family:
    """Describes a family that builds its layers as BERT does."""
    modeling = importlib.import_module(_MODELS + file)

    def find(*ends: str) -> tuple[type[nn.Module], ...]:
        found = (getattr(modeling, prefix + end, None) for end in ends)
        return tuple(cls for cls in found if cls is not None)

    attention, *other_attention = find("SelfAttention", "SdpaSelfAttention")
    self_output, output, intermediate = find("SelfOutput", "Output", "Intermediate")
    return Family(
        encoder_name="encoder",
        parts=frozenset((*find("Encoder", "Layer", "Attention"), attention)),
        attention=attention if HAS_ATTENTION_INTERFACE else None,
        fused_attention=bert.FusedSelfAttention,
        legacy_attention=frozenset((attention, *other_attention)),
        first_rows_layer=bert.FirstRowsBertLayer,
        first_rows_fused_layer=bert.FirstRowsBertLayer,
        fusions={
            self_output: (LAYER_NORM, FusedOutput),
            output: (LAYER_NORM, FusedOutput),
            intermediate: (GELU, FusedIntermediate),
        },
        row_losses=_row_losses(find),
        first_row_heads={
            **dict.fromkeys(find("ForNextSentencePrediction"), "pooler"),
            **dict.fromkeys(
                find("ForSequenceClassification"),
                "classifier" if find("ClassificationHead") else "pooler",
            ),
            **dict.fromkeys(
                find("ForMultipleChoice"),
                "sequence_summary" if find("SequenceSummary") else "pooler",
            ),
        },
        all_row_heads=_all_row_heads(find),
        readers=frozenset(find("Pooler", "ClassificationHead", "SequenceSummary")),
    )


@functools.cache
def _distilbert() -> Family:
    """Describes DistilBERT, whose attention holds its output's projection."""
    modeling: Any = importlib.import_module(_MODELS + _DISTILBERT)

    def find(*ends: str) -> tuple[type[nn.Module], ...]:
        found = (getattr(modeling, "DistilBert" + end, None) for end in ends)
        return tuple(cls for cls in found if cls is not None)

    return Family(
        encoder_name="transformer",
        parts=frozenset(
            (modeling.Transformer, modeling.TransformerBlock, modeling.DistilBertSelfAttention)
        ),
        attention=modeling.DistilBertSelfAttention,
        fused_attention=distilbert.FusedDistilBertAttention,
        legacy_attention=frozenset(),
        first_rows_layer=distilbert.FirstRowsBlock,
        first_rows_fused_layer=distilbert.FirstRowsFusedBlock,
        fusions={
            modeling.TransformerBlock: (LAYER_NORM, distilbert.FusedBlock),
            modeling.FFN: (GELU, distilbert.FusedFFN),
        },
        row_losses=_row_losses(find),
        first_row_heads=dict.fromkeys(find("ForSequenceClassification", "ForMultipleChoice")),
        all_row_heads=_all_row_heads(find),
        readers=frozenset(),
    )


def _row_losses(find: Any) -> dict[type[nn.Module], RowLoss]:
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


def _all_row_heads(find: Any) -> tuple[type[nn.Module], ...]:
    """Returns the heads that treat every row alike. They may have a pooler all the same."""
    return find(
        "ForTokenClassification",
        "ForMaskedLM",
        "LMHeadModel",
        "ForCausalLM",
        "ForQuestionAnswering",
        "ForPreTraining",
    )
