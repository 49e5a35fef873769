"""The families of encoders that get everything: what their parts are called, and what heads read.

All but a few build their layers as BERT does, under names that begin with their own. So a family
is described by the file of its model and that beginning; what a model lacks is skipped.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from fastattn.modules import albert, bert, distilbert, esm
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE
from fastattn.modules.fused import FusedIntermediate, FusedOutput
from fastattn.patching.family import Family, all_row_heads, row_losses
from fastattn.patching.fusions import GELU, LAYER_NORM

_MODELS = "transformers.models."

Find = Callable[..., tuple[type[nn.Module], ...]]


def of(body: nn.Module) -> Family | None:
    """Returns the family of a body, or None if it has none. Subclasses count as well."""
    for cls in type(body).__mro__:
        file = cls.__module__.removeprefix(_MODELS)
        prefix, describe, needs_interface = _FAMILIES.get(file, ("", None, False))
        if describe and cls.__name__ == prefix + "Model":
            # In Transformers 4.x these have layers of other shapes, or make other masks.
            if needs_interface and not HAS_ATTENTION_INTERFACE:
                return None
            return _described(file)
    return None


@functools.cache
def _described(file: str) -> Family:
    """Describes the family whose classes are in a file."""
    prefix, describe, _ = _FAMILIES[file]
    modeling = importlib.import_module(_MODELS + file)

    def find(*ends: str) -> tuple[type[nn.Module], ...]:
        found = (getattr(modeling, prefix + end, None) for end in ends)
        return tuple(cls for cls in found if cls is not None)

    return describe(find, modeling)


def _like_bert(find: Find, modeling: Any, **differences: Any) -> Family:
    """Describes a family that builds its layers as BERT does."""
    attention, *other_attention = find("SelfAttention", "SdpaSelfAttention")
    self_output, output, intermediate = find("SelfOutput", "Output", "Intermediate")
    same: dict[str, Any] = dict(
        parts=frozenset((*find("Encoder", "Layer", "Attention"), attention)),
        attention=attention if HAS_ATTENTION_INTERFACE else None,
        fused_attention=bert.FusedSelfAttention,
        legacy_attention=frozenset((attention, *other_attention)),
        first_rows_layer=bert.FirstRowsBertLayer,
        first_rows_fused_layer=bert.FirstRowsBertLayer,
        fusions={
            self_output: ((LAYER_NORM, FusedOutput),),
            output: ((LAYER_NORM, FusedOutput),),
            intermediate: ((GELU, FusedIntermediate),),
        },
        row_losses=row_losses(find),
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
        all_row_heads=all_row_heads(find),
        readers=frozenset(find("Pooler", "ClassificationHead", "SequenceSummary")),
        takes_packed=True,
    )
    return Family(**same | differences)


def _layoutlm(find: Find, modeling: Any) -> Family:
    """Describes LayoutLM, whose layers are BERT's and whose masks are not."""
    return _like_bert(find, modeling, adds_mask=True, takes_packed=False)


def _esm(find: Find, modeling: Any) -> Family:
    """Describes ESM, whose layers are cut as BERT's are, and compute other things."""
    (intermediate,) = find("Intermediate")
    return _like_bert(
        find,
        modeling,
        fused_attention=esm.FusedEsmSelfAttention,
        first_rows_layer=esm.FirstRowsEsmLayer,
        first_rows_fused_layer=esm.FirstRowsEsmLayer,
        # Its LayerNorms stand before each half, where there is no sum to fuse them with.
        fusions={intermediate: ((GELU, esm.FusedEsmIntermediate),)},
        takes_packed=False,
    )


def _distilbert(find: Find, modeling: Any) -> Family:
    """Describes DistilBERT, whose attention holds its output's projection."""
    (attention,) = find("SelfAttention")
    return Family(
        encoder_name="transformer",
        parts=frozenset((modeling.Transformer, modeling.TransformerBlock, attention)),
        attention=attention,
        fused_attention=distilbert.FusedDistilBertAttention,
        first_rows_layer=distilbert.FirstRowsBlock,
        first_rows_fused_layer=distilbert.FirstRowsFusedBlock,
        fusions={
            modeling.TransformerBlock: ((LAYER_NORM, distilbert.FusedBlock),),
            modeling.FFN: ((GELU, distilbert.FusedFFN),),
        },
        row_losses=row_losses(find),
        first_row_heads=dict.fromkeys(find("ForSequenceClassification", "ForMultipleChoice")),
        all_row_heads=all_row_heads(find),
        takes_packed=True,
    )


def _albert(find: Find, modeling: Any) -> Family:
    """Describes ALBERT, which runs one layer, or a few, many times."""
    layer, attention = find("Layer", "Attention")
    return Family(
        layers_name="albert_layer_groups",
        inner_layers_name="albert_layers",
        parts=frozenset((*find("Transformer", "LayerGroup"), layer, attention)),
        attention=attention,
        fused_attention=albert.FusedAlbertAttention,
        fusions={
            attention: ((LAYER_NORM, albert.FusedAlbertOutput),),
            layer: (
                (GELU, albert.FusedAlbertIntermediate),
                (LAYER_NORM, albert.FusedAlbertLayerOutput),
            ),
        },
        row_losses=row_losses(find),
        first_row_heads={},
        all_row_heads=all_row_heads(find),
        pooler_name=None,
    )


def _modernbert(find: Find, modeling: Any) -> Family:
    """Describes ModernBERT, which has no encoder around its layers.

    Its query, key and value are one projection already, its LayerNorms stand before each half, and
    its GELU is multiplied by a gate: there is nothing to fuse.
    """
    (attention,) = find("Attention")
    return Family(
        encoder_name="",
        layers_name="layers",
        attention_name="attn",
        parts=frozenset((*find("Model", "EncoderLayer"), attention)),
        attention=attention,
        fused_attention=None,
        fusions={},
        row_losses=row_losses(find),
        first_row_heads={},
        # Multiple choice reads the first token, wherever it is.
        all_row_heads=(*all_row_heads(find), *find("ForMultipleChoice")),
        keeps_distances=True,
    )


# File under transformers.models -> the beginning of its classes' names, what describes them, and
# whether that is true of Transformers 5 alone.
_FAMILIES: dict[str, tuple[str, Callable[[Find, Any], Family], bool]] = {
    "bert.modeling_bert": ("Bert", _like_bert, False),
    "roberta.modeling_roberta": ("Roberta", _like_bert, False),
    "xlm_roberta.modeling_xlm_roberta": ("XLMRoberta", _like_bert, False),
    "camembert.modeling_camembert": ("Camembert", _like_bert, False),
    "electra.modeling_electra": ("Electra", _like_bert, False),
    "data2vec.modeling_data2vec_text": ("Data2VecText", _like_bert, False),
    "distilbert.modeling_distilbert": ("DistilBert", _distilbert, True),
    "albert.modeling_albert": ("Albert", _albert, True),
    "esm.modeling_esm": ("Esm", _esm, True),
    "modernbert.modeling_modernbert": ("ModernBert", _modernbert, True),
    "layoutlm.modeling_layoutlm": ("LayoutLM", _layoutlm, True),
}
