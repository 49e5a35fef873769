"""The models of the coverage table: small configs, their heads, and inputs for these."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

BATCH_SIZE, SEQLEN, VOCAB_SIZE = 3, 11, 99
PADDINGS = ("right", "left", "interior", "absent")
_EOS = 2

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BERT = _SIZES | _NO_DROPOUT | {"pad_token_id": 0}
_ROBERTA = _BERT | {"pad_token_id": 1}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": _EOS}
_LLAMA = _SIZES | _TOKENS | {"num_key_value_heads": 2, "classifier_dropout": 0.0}
_TRANSLATION = _TOKENS | {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    prefix: str  # the beginning of the names of its classes
    settings: dict[str, Any] = field(repr=False)
    only: tuple[str, ...] = ()  # classes; default: all of the model's
    decodes: bool = False  # generates from its own prompt

    def classes(self) -> list[str]:
        """Returns the names of the model's classes, heads and body."""
        if self.only:
            return list(self.only)
        config = getattr(transformers, f"{self.prefix}Config")
        folder = config.__module__.rpartition(".")[0]
        file = config.__module__.rpartition(".")[2].replace("configuration", "modeling")
        names = importlib.import_module(f"{folder}.{file}").__all__
        found = [(name, getattr(transformers, name)) for name in names]
        return sorted(
            name
            for name, x in found
            if isinstance(x, type)
            and issubclass(x, PreTrainedModel)
            and "pretrained" not in name.lower()
        )

    def generates(self, class_name: str) -> bool:
        """Whether a class generates text."""
        cls = getattr(transformers, class_name)
        return bool(cls.can_generate()) and (
            self.decodes or cls.__name__.endswith(("ConditionalGeneration", "MTModel"))
        )

    def with_dropout(self, p: float) -> Case:
        """Returns the case with every probability of dropping set to ``p``."""
        config = getattr(transformers, f"{self.prefix}Config")(**self.settings)
        names = [
            name
            for name, value in config.to_dict().items()
            if name.endswith(("dropout", "dropout_prob", "dropout_rate", "pdrop"))
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
        ]
        return replace(self, settings=self.settings | dict.fromkeys(names, p))

    def make(self, class_name: str) -> Any:
        """Makes a model with random weights, in float64, on Transformers' own attention."""
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.prefix}Config")(**self.settings)
        model_class = getattr(transformers, class_name)
        if not self.only and "CausalLM" in class_name and hasattr(config, "is_decoder"):
            config.is_decoder = True
        # In float64 the eager attention of many models takes its softmax in float32 all the same.
        config._attn_implementation = "sdpa" if model_class._supports_sdpa else "eager"
        model = model_class(config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model


CASES = (
    Case("BERT", "Bert", _BERT),
    Case("RoBERTa", "Roberta", _ROBERTA),
    Case("XLM-R", "XLMRoberta", _ROBERTA),
    Case("CamemBERT", "Camembert", _ROBERTA),
    Case("data2vec-text", "Data2VecText", _ROBERTA),
    Case("ELECTRA", "Electra", _BERT | {"embedding_size": 16, "summary_last_dropout": 0.0}),
    Case(
        "DistilBERT",
        "DistilBert",
        {
            "vocab_size": VOCAB_SIZE,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "pad_token_id": 0,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "qa_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        },
    ),
    Case("ALBERT", "Albert", _BERT | {"embedding_size": 16, "classifier_dropout_prob": 0.0}),
    Case(
        "ModernBERT",
        "ModernBert",
        _SIZES
        | _TOKENS
        | {"num_hidden_layers": 4, "local_attention": 6, "global_attn_every_n_layers": 2}
        | {"cls_token_id": 1, "sep_token_id": 2},
    ),
    Case("ESM", "Esm", _ROBERTA | {"mask_token_id": 3, "position_embedding_type": "rotary"}),
    Case("LayoutLM", "LayoutLM", _BERT | {"max_2d_position_embeddings": 128}),
    Case(
        "ViT",
        "ViT",
        _NO_DROPOUT
        | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 64, "image_size": 16, "patch_size": 4, "encoder_stride": 4},
    ),
    Case("MPNet", "MPNet", _ROBERTA),
    Case("DeBERTa-v2", "DebertaV2", _BERT | {"relative_attention": True}),
    Case(
        "T5",
        "T5",
        {
            "vocab_size": VOCAB_SIZE,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "classifier_dropout": 0.0,
            "pad_token_id": 0,
            "eos_token_id": _EOS,
            "decoder_start_token_id": 0,
        },
    ),
    Case("Marian", "Marian", _TRANSLATION),
    Case("BART", "Bart", _TRANSLATION),
    Case(
        "GPT-2",
        "GPT2",
        _TOKENS
        | {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0}
        | {"classifier_dropout": 0.0},
        decodes=True,
    ),
    Case(
        "BERT as decoder",
        "Bert",
        _BERT | _TOKENS | {"is_decoder": True},
        only=("BertLMHeadModel",),
        decodes=True,
    ),
    Case(
        "OPT",
        "OPT",
        _SIZES
        | _TOKENS
        | {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0, "attention_dropout": 0.0},
        decodes=True,
    ),
    Case("Llama", "Llama", _LLAMA, decodes=True),
    Case(
        "Qwen2",
        "Qwen2",
        _LLAMA | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        decodes=True,
    ),
)


def make_mask(padding: str) -> Tensor | None:
    """Makes (batch, seqlen) of 0 and 1; None if padding is "absent"."""
    if padding == "absent":
        return None
    mask = torch.ones(BATCH_SIZE, SEQLEN, dtype=torch.long)
    if padding == "interior":
        mask[0, 3:5] = mask[1, 2] = mask[1, 7] = 0
        return mask
    mask[1, 5:] = mask[2, 8:] = 0
    return mask.flip(1) if padding == "left" else mask


def make_batch(case: Case, model: Any, padding: str) -> dict[str, Any]:
    """Makes the inputs of a head, without labels where it can do without."""
    class_name = type(model).__name__
    generator = torch.Generator().manual_seed(1)
    if case.name == "ViT":
        shape = (BATCH_SIZE, 3, 16, 16)
        pixels: dict[str, Any] = {
            "pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64)
        }
        if "Masked" in class_name:
            pixels["bool_masked_pos"] = (torch.arange(16) % 3 == 0).expand(BATCH_SIZE, 16)
        return pixels
    mask = make_mask(padding)
    ids = torch.randint(4, VOCAB_SIZE, (BATCH_SIZE, SEQLEN), generator=generator)
    last = torch.full((BATCH_SIZE,), SEQLEN - 1)
    if mask is not None:
        ids = ids.masked_fill(mask == 0, model.config.pad_token_id)
        last = (mask * torch.arange(SEQLEN)).argmax(1)
    if model.config.is_encoder_decoder and "CausalLM" not in class_name:
        ids[torch.arange(BATCH_SIZE), last] = _EOS  # which classifiers look for
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if case.name == "LayoutLM":
        corner = torch.randint(0, 60, (BATCH_SIZE, SEQLEN, 2), generator=generator)
        batch["bbox"] = torch.cat([corner, corner + 5], dim=-1)
    if _needs_target(class_name, model):
        target = torch.randint(4, VOCAB_SIZE, (BATCH_SIZE, 6), generator=generator)
        name = "decoder_input_ids" if class_name.endswith("Model") else "labels"
        batch[name] = target
    if class_name.endswith("ForMultipleChoice"):
        batch = {name: x if x is None else x[:, None] for name, x in batch.items()}
    return batch


def _needs_target(class_name: str, model: Any) -> bool:
    """Whether the head has a decoder that needs inputs of its own."""
    ends = ("ConditionalGeneration", "MTModel", "Model")
    return (
        model.config.is_encoder_decoder
        and class_name.endswith(ends)
        and not class_name.endswith("EncoderModel")
    )
