"""The families of encoders that get everything: what their parts are called, and what heads read.

All but a few build their layers as BERT does, under names that begin with their own. So a family
is described by the file of its model and that beginning; what a model lacks is skipped.

What a family needs is imported when it is described: Transformers loads each model's file when it
is first used, and who patches BERT shall not wait for the files of all others.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fastattn.integrations.transformers import layer_calls_attention_interface
from fastattn.modules import bert
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE
from fastattn.modules.fused import FusedIntermediate, FusedOutput
from fastattn.patching.family import Family, all_row_heads, row_losses
from fastattn.patching.fusions import GELU, LAYER_NORM, LINEAR
from fastattn.patching.packed_layers import PackRows, PackRowsAndBias

_MODELS = "transformers.models."

Find = Callable[..., tuple[type[nn.Module], ...]]


def of(body: Any) -> Family | None:
    """Returns the family of a body, or None if it has none. Subclasses count as well."""
    file = _file(body)
    return None if file is None else _described(file)


def needs_newer(body: Any) -> bool:
    """Whether the body has a family in newer versions of Transformers, but not in this one."""
    return _file(body) is not None and of(body) is None


def _file(body: Any) -> str | None:
    """Returns the file of a family that the body is of, or None."""
    for cls in type(body).__mro__:
        file = cls.__module__.removeprefix(_MODELS)
        if file in _FAMILIES and cls.__name__ == _BODIES.get(file, _FAMILIES[file][0] + "Model"):
            # T5's decoder is of the encoder's class.
            return None if file in _BODIES and body.config.is_decoder else file
    return None


@functools.cache
def _described(file: str) -> Family | None:
    """Describes the family whose classes are in a file; None if they are of another shape here."""
    prefix, describe, needs_interface = _FAMILIES[file]
    # In Transformers 4.x these have layers of other shapes, or make other masks.
    if needs_interface and not HAS_ATTENTION_INTERFACE:
        return None
    modeling = importlib.import_module(_MODELS + file)

    def find(*ends: str) -> tuple[type[nn.Module], ...]:
        found = (getattr(modeling, prefix + end, None) for end in ends)
        return tuple(cls for cls in found if cls is not None)

    return describe(find, modeling)


def _takes(cls: Any, name: str) -> bool:
    """Whether a class's forward has an argument of this name."""
    return name in inspect.signature(cls.forward).parameters


def _like_bert(find: Find, modeling: Any, **differences: Any) -> Family:
    """Describes a family that builds its layers as BERT does."""
    attention = find("SelfAttention", "SdpaSelfAttention")
    calls_interface = HAS_ATTENTION_INTERFACE and len(attention) == 1
    ends = find("SelfOutput", "Output")
    same: dict[str, Any] = dict(
        parts=frozenset((*find("Encoder", "Layer", "Attention"), *attention[:1])),
        attention=attention[0] if calls_interface else None,
        fused_attention=bert.FusedSelfAttention,
        legacy_attention=frozenset(attention),
        first_rows_layer=bert.FirstRowsBertLayer,
        first_rows_fused_layer=bert.FirstRowsBertLayer,
        fusions={
            **dict.fromkeys(ends, ((LAYER_NORM, FusedOutput),)),
            **dict.fromkeys(find("Intermediate"), ((GELU, FusedIntermediate),)),
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
        packed_by="keywords",
    )
    return Family(**same | differences)


def _layoutlm(find: Find, modeling: Any) -> Family:
    """Describes LayoutLM, whose layers are BERT's and whose masks are not."""
    return _like_bert(find, modeling, adds_mask=True, says_keep_by="keyword")


def _esm(find: Find, modeling: Any) -> Family | None:
    """Describes ESM, whose layers are cut as BERT's are, and compute other things."""
    from fastattn.modules import esm

    if not _takes(modeling.EsmSelfAttention, "position_embeddings"):
        return None  # in Transformers 5.0 attention rotates by the places of rows
    (intermediate,) = find("Intermediate")
    ends = find("SelfOutput", "Output")
    return _like_bert(
        find,
        modeling,
        fused_attention=esm.FusedEsmSelfAttention,
        first_rows_layer=esm.FirstRowsEsmLayer,
        first_rows_fused_layer=esm.FirstRowsEsmLayer,
        # Its LayerNorms stand before each half, where there is no sum to fuse them with.
        fusions={
            intermediate: ((GELU, esm.FusedEsmIntermediate),),
            **dict.fromkeys(ends, ((LINEAR, esm.FusedEsmOutput),)),
        },
        embed_packed=esm.embed_sequences,
        says_keep_by="keyword",  # its embeddings count tokens by the mask
    )


def _distilbert(find: Find, modeling: Any) -> Family:
    """Describes DistilBERT, whose attention holds its output's projection."""
    from fastattn.modules import distilbert

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
        packed_by="keywords",
    )


def _albert(find: Find, modeling: Any) -> Family:
    """Describes ALBERT, which runs one layer, or a few, many times."""
    from fastattn.modules import albert

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
        packed_by="keywords",
    )


def _modernbert(find: Find, modeling: Any) -> Family | None:
    """Describes ModernBERT, which has no encoder around its layers.

    Its query, key and value are one projection already, its LayerNorms stand before each half, and
    its GELU is multiplied by a gate: what is left is the products.
    """
    from fastattn.modules import modernbert

    if not layer_calls_attention_interface(modeling.ModernBertAttention):
        return None  # in Transformers 5.0 it has functions of its own
    attention, mlp = find("Attention", "MLP")
    return Family(
        encoder_name="",
        layers_name="layers",
        attention_name="attn",
        parts=frozenset((*find("Model", "EncoderLayer"), attention)),
        attention=attention,
        fused_attention=None,
        fusions={
            attention: ((LINEAR, modernbert.FusedModernBertAttention),),
            mlp: ((LINEAR, modernbert.FusedModernBertMLP),),
        },
        row_losses=row_losses(find),
        first_row_heads=dict.fromkeys(find("ForSequenceClassification")),
        # Multiple choice reads the first token, wherever it is.
        all_row_heads=(*all_row_heads(find), *find("ForMultipleChoice")),
        counts_distances="windows count it",
        says_keep_by="keyword",
        packed_by="masks",
    )


def _mpnet(find: Find, modeling: Any) -> Family | None:
    """Describes MPNet, whose attention is its own, with a bias by distance."""
    from fastattn.modules import mpnet

    if not hasattr(modeling, "create_bidirectional_mask"):
        return None  # in Transformers 5.0 it takes no mask that was made for it
    attention, half = find("SelfAttention", "Attention")
    (output,), (intermediate,) = find("Output"), find("Intermediate")
    return _like_bert(
        find,
        modeling,
        packed_by="mask",
        attention=None,
        legacy_attention=frozenset((attention,)),
        own_attention=mpnet.ServedMPNetAttention,
        fused_attention=mpnet.FusedMPNetProjections,
        unpadded_encoder=mpnet.UnpaddedMPNetEncoder,
        first_rows_layer=None,
        fusions={
            half: ((LAYER_NORM, mpnet.FusedMPNetOutput),),
            output: ((LAYER_NORM, FusedOutput),),
            intermediate: ((GELU, FusedIntermediate),),
        },
        counts_distances="the bias counts it",
        hands_mask_on=True,
    )


def _deberta_v2(find: Find, modeling: Any) -> Family:
    """Describes DeBERTa-v2 and v3, whose attention is their own, with a bias by content."""
    from fastattn.modules import deberta_v2

    attention = modeling.DisentangledSelfAttention
    heads = find("ForSequenceClassification", "ForMultipleChoice")
    return _like_bert(
        find,
        modeling,
        packed_by="mask",
        parts=frozenset(find("Encoder", "Layer", "Attention")),
        attention=None,
        legacy_attention=frozenset((attention,)),
        own_attention=deberta_v2.ServedDisentangledAttention,
        fused_attention=deberta_v2.FusedDisentangledProjections,
        unpadded_encoder=deberta_v2.UnpaddedDebertaEncoder,
        first_rows_layer=None,
        first_row_heads=dict.fromkeys(heads, "pooler"),
        readers=frozenset((modeling.ContextPooler,)),
        counts_distances="the bias counts it",
        says_keep_by="column",
        embeddings_hook=deberta_v2.hide_mask_of_sequences,
    )


def _vit(find: Find, modeling: Any) -> Family | None:
    """Describes ViT, whose batches have no padding."""
    from fastattn.modules import vit

    if not find("MLP"):
        return None  # in Transformers 5.0 it is cut as BERT is
    attention, mlp = find("Attention", "MLP")
    return Family(
        encoder_name="",
        layers_name="layers",
        parts=frozenset(),
        attention=attention,
        fused_attention=vit.FusedViTAttention,
        fusions={mlp: ((GELU, vit.FusedViTMLP),)},
        row_losses={},
        first_row_heads={},
        all_row_heads=(),
        never_unpadded="images have no padding",
    )


def _like_bart(find: Find, modeling: Any) -> Family | None:
    """Describes the encoders of BART and Marian."""
    from fastattn.modules import bart

    encoder, layer, attention = find("Encoder", "EncoderLayer", "Attention")
    if not _takes(layer, "kwargs") or not layer_calls_attention_interface(attention):
        return None  # in Transformers 5.0 a layer takes other arguments
    return Family(
        encoder_name="",
        layers_name="layers",
        attention_name="self_attn",
        parts=frozenset((encoder, layer, attention)),
        attention=attention,
        fused_attention=bart.FusedBartAttention,
        fusions={
            layer: ((GELU, bart.FusedBartIntermediate), (LAYER_NORM, bart.FusedBartNorms)),
        },
        row_losses={},
        first_row_heads={},
        all_row_heads=_translators(find),
        pooler_name=None,
        packs_rows=PackRows(),
    )


def _t5(find: Find, modeling: Any) -> Family | None:
    """Describes the encoder of T5."""
    from fastattn.modules import t5

    stack, block, attention = find("Stack", "Block", "Attention")
    halves = find("LayerSelfAttention", "LayerFF")
    if not _takes(block, "kwargs") or not layer_calls_attention_interface(attention):
        return None  # in Transformers 5.0 attention is its own
    return Family(
        encoder_name="",
        layers_name="block",
        inner_layers_name="layer",
        attention_name="SelfAttention",
        parts=frozenset((stack, block, *halves, attention)),
        attention=attention,
        fused_attention=t5.FusedT5Attention,
        fusions={},
        row_losses=row_losses(find),
        first_row_heads={},
        all_row_heads=(*_translators(find), *find("EncoderModel", "ForTokenClassification")),
        pooler_name=None,
        counts_distances="the bias counts it",
        says_keep_by="keyword",
        packs_rows=PackRowsAndBias(),
    )


def _translators(find: Find) -> tuple[type[nn.Module], ...]:
    """Returns the models with a decoder, which masks the encoder's padding."""
    return find(
        "Model",
        "MTModel",
        "ForConditionalGeneration",
        "ForSequenceClassification",
        "ForQuestionAnswering",
    )


# Bodies that are not called "Model": an encoder beside a decoder is a body of its own.
_BODIES = {
    "bart.modeling_bart": "BartEncoder",
    "marian.modeling_marian": "MarianEncoder",
    "t5.modeling_t5": "T5Stack",
}

# File under transformers.models -> the beginning of its classes' names, what describes them, and
# whether that is true of Transformers 5 alone.
_FAMILIES: dict[str, tuple[str, Callable[[Find, Any], Family | None], bool]] = {
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
    "mpnet.modeling_mpnet": ("MPNet", _mpnet, True),
    "deberta_v2.modeling_deberta_v2": ("DebertaV2", _deberta_v2, True),
    "vit.modeling_vit": ("ViT", _vit, True),
    "layoutlm.modeling_layoutlm": ("LayoutLM", _layoutlm, True),
    "bart.modeling_bart": ("Bart", _like_bart, True),
    "marian.modeling_marian": ("Marian", _like_bart, True),
    "t5.modeling_t5": ("T5", _t5, True),
}
