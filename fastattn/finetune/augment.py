"""Altered copies of training texts, for small data: they keep their labels, mostly.

Two of the operations of "Easy data augmentation" (Wei and Zou, 2019), with its share of a tenth of
the words: some are dropped, some change places with the next. Words that turn a sentence around
are never dropped. Only training sets are augmented, after the split, so no copy of a held-out text
is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

CHANGED_SHARE = 0.1
_NEGATIONS = {
    *("no", "not", "never", "none", "nothing", "nobody", "neither", "nor", "without"),
    *("hardly", "barely", "cannot"),
}


def augment(
    rows: Sequence[Mapping[str, Any]], field: str, copies: int, seed: int
) -> list[Mapping[str, Any]]:
    """Returns the rows followed by altered copies of each, different from run to run by seed only.

    Args:
        field: the text in a row that is altered; everything else is kept.
        copies: how many of each row.
    """
    altered: list[Mapping[str, Any]] = list(rows)
    for copy in range(copies):
        for index, row in enumerate(rows):
            # A generator of its own for each copy: it does not depend on the other rows.
            generator = random.Random(f"{seed}:{copy}:{index}")
            altered.append({**row, field: alter(row[field], generator)})
    return altered


def alter(text: str, generator: random.Random) -> str:
    """Returns a text with about a tenth of its words dropped and a tenth moved."""
    words = [
        word for word in text.split() if _turns_around(word) or generator.random() >= CHANGED_SHARE
    ]
    for index in range(len(words) - 1):
        if generator.random() < CHANGED_SHARE:
            words[index : index + 2] = words[index + 1], words[index]
    return " ".join(words) or text


def _turns_around(word: str) -> bool:
    bare = word.lower().strip(".,;:!?()\"'*").replace("\u2019", "'")
    return bare in _NEGATIONS or bare.endswith("n't")
