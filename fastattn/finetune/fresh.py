"""Small models made from scratch, for data that no packaged model has read.

marian-tiny    2 + 2 layers of 128 values and 4 heads, some million parameters, and a byte-level
               BPE of at most 4,000 tokens, learned from the training texts
esm-tiny       4 layers of 128 values and 4 heads, 0.8 million parameters, with the alphabet and the
               rotary positions of ESM-2

They are saved as ordinary checkpoints, which Transformers' auto classes load.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.defaults import FRESH_MODELS
from fastattn.finetune.model import set_limits

_MARIAN_VOCABULARY = 4_000
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
# ESM-2's alphabet, in its order: special tokens, amino acids by their frequency, rare ones, gaps.
_ESM_ALPHABET = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)


def make_tokenizer(name: str, texts: Sequence[str], config: FinetuneConfig) -> Any:
    """Returns the tokenizer of a fresh model.

    Args:
        name: one of :data:`FRESH_MODELS`.
        texts: all training texts.

    Raises:
        ValueError: the model does not read such texts.
    """
    make = _esm_tokenizer if name == "esm-tiny" else _marian_tokenizer
    return set_limits(make(texts), config)


def make_config(name: str, tokenizer: Any, config: FinetuneConfig) -> Any:
    """Returns the configuration of a fresh model."""
    make = _esm_config if name == "esm-tiny" else _marian_config
    return make(tokenizer, config)


def make_model(name: str, model_config: Any, auto_model: Any) -> Any:
    """Returns the model with the head of ``auto_model``, with random weights, in float32.

    Raises:
        ValueError: it has no such head.
    """
    try:
        model = auto_model.from_config(model_config)
    except ValueError as error:
        raise ValueError(
            f"finetune: model must be one with a head for this task; got {name!r}, "
            f"{FRESH_MODELS[name]}, which {auto_model.__name__} does not make. Use another --model."
        ) from error
    if model.can_generate():
        # A setting of generation, which Transformers 4 moves at each checkpoint, with a warning.
        model.generation_config.forced_eos_token_id = model.config.forced_eos_token_id
        model.config.forced_eos_token_id = None
    return model


def _marian_tokenizer(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Of bytes, so that no character of any text is unknown.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MARIAN_VOCABULARY,
        min_frequency=2,
        special_tokens=[_PAD, _END, _UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = (_END, tokenizer.token_to_id(_END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", pair=f"$A $B {_END}", special_tokens=[end]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _marian_config(tokenizer: Any, config: FinetuneConfig) -> Any:
    from transformers import MarianConfig

    return MarianConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        activation_function="gelu",
        dropout=0.1,
        attention_dropout=0.1,
        scale_embedding=True,
        max_position_embeddings=max(512, config.max_length),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )


def _esm_tokenizer(texts: Sequence[str]) -> Any:
    from transformers import EsmTokenizer

    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(_ESM_ALPHABET), encoding="utf-8")
        tokenizer = EsmTokenizer(str(vocabulary))
    letters = {token for token in _ESM_ALPHABET if len(token) == 1}
    for text in texts:
        if sum(letter in letters for letter in text) < len(text) / 2:
            raise ValueError(
                "finetune: model must be one that reads the data; got 'esm-tiny', which reads "
                f"sequences of amino acids such as GLFDIVKKV, and the text {text[:40]!r}. "
                "Use another --model, or name the column of sequences."
            )
    return tokenizer


def _esm_config(tokenizer: Any, config: FinetuneConfig) -> Any:
    from transformers import EsmConfig

    return EsmConfig(
        vocab_size=len(_ESM_ALPHABET),
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        max_position_embeddings=max(1026, config.max_length),
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=False,
    )
