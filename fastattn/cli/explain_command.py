"""``fastattn explain``: its options, the model and the batch they stand for."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from fastattn.cli.errors import clear_errors
from fastattn.cli.options import is_given


class Head(str, Enum):
    """What a model is loaded with on top; a name of Transformers' auto classes."""

    none = "none"
    sequence_classification = "sequence-classification"
    token_classification = "token-classification"
    question_answering = "question-answering"
    masked_lm = "masked-lm"
    causal_lm = "causal-lm"
    seq2seq_lm = "seq2seq-lm"


_AUTO_CLASSES = {
    Head.none: "AutoModel",
    Head.sequence_classification: "AutoModelForSequenceClassification",
    Head.token_classification: "AutoModelForTokenClassification",
    Head.question_answering: "AutoModelForQuestionAnswering",
    Head.masked_lm: "AutoModelForMaskedLM",
    Head.causal_lm: "AutoModelForCausalLM",
    Head.seq2seq_lm: "AutoModelForSeq2SeqLM",
}


class Dtype(str, Enum):
    """Of the parameters."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


def explain(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's folder, or its name on the Hub.")],
    head: Annotated[
        Head | None, typer.Option(help="Its head. Default: the one in its config.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Read the config alone, and no weights.")
    ] = False,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text of the batch; may be repeated. Default: random tokens."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences of random tokens.", min=1)] = 8,
    seqlen: Annotated[
        int, typer.Option(help="Longest of them; the lengths fall evenly to a quarter.", min=1)
    ] = 128,
    train: Annotated[bool, typer.Option("--train", help="In training mode, with dropout.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Of the parameters.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "cpu",
    patch: Annotated[
        bool, typer.Option("--patch/--no-patch", help="As fastattn.patch makes it, or as it is.")
    ] = True,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Print which path each layer of a model takes for a batch, and why.

    One forward pass runs. For batches of other kinds, such as images, call
    fastattn.explain_model(model, **batch).
    """
    with clear_errors(debug):
        for name in ("batch_size", "seqlen"):
            if text and is_given(context, name):
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"explain: {name} must be left out beside text, of which the batch is made; "
                    f"got {context.params[name]}. Leave {option} or --text out."
                )
        import fastattn

        loaded = _model(model, head, random_weights).to(device, getattr(_torch(), dtype.value))
        loaded.train(train)
        batch = _texts(model, text) if text else _tokens(loaded.config, batch_size, seqlen)
        if loaded.config.is_encoder_decoder:
            batch["decoder_input_ids"] = batch["input_ids"]
        on_device = {name: x.to(device) for name, x in batch.items()}
        typer.echo(str(fastattn.explain_model(loaded, patch=patch, **on_device)))


def _torch() -> Any:
    import torch

    return torch


def _model(name: str, head: Head | None, random_weights: bool) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    if head is not None:
        kind = getattr(transformers, _AUTO_CLASSES[head])
    else:
        named = (config.architectures or ["AutoModel"])[0]
        kind = getattr(transformers, named, None)
        if kind is None:
            raise ValueError(
                f"explain: the config's head must be one of Transformers; got {named}. "
                "Choose one with --head."
            )
    if not random_weights:
        return kind.from_pretrained(name)
    return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)


def _texts(model: str, texts: list[str]) -> dict[str, Any]:
    """The batch that the model's own tokenizer makes, padded to the longest."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))


def _tokens(config: Any, batch_size: int, seqlen: int) -> dict[str, Any]:
    """Random tokens, the same each time, and the mask of their padding."""
    torch = _torch()
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    if not vocab_size:
        raise ValueError(
            f"explain: the model must take tokens; got {type(config).__name__}, which has no "
            "vocabulary. Call fastattn.explain_model(model, **batch) with a batch of your own."
        )
    lengths = torch.linspace(seqlen, max(seqlen // 4, 1), batch_size).long()
    mask = torch.arange(seqlen) < lengths[:, None]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size // 2, vocab_size, (batch_size, seqlen), generator=generator)
    padding = config.pad_token_id or 0
    return {"input_ids": torch.where(mask, tokens, padding), "attention_mask": mask.long()}
