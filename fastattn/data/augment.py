"""Altered copies of training texts, for small data: they keep their labels, mostly.

Two of the operations of "Easy data augmentation" (Wei and Zou, 2019), with its share of a tenth of
the words: some are dropped, or some change places with the next. Words that turn a sentence around
stay where they are. For training sets alone, after the split, so that no copy of a held-out text is
trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Without one of these a text may say the opposite.
_KEPT_WORDS = {
    *("no", "not", "nor", "never", "none", "nobody", "nothing", "neither", "without"),
    *("cannot", "hardly", "barely", "but"),
}
_SHARE = 0.1  # of the words that are dropped or moved


def augment(
    rows: Sequence[Mapping[str, Any]], field: str, copies: int, seed: int
) -> list[Mapping[str, Any]]:
    """Returns the rows followed by altered copies of each (:func:`variants`).

    Args:
        field: the text in a row that is altered; everything else is kept.
        copies: how many of each row. Texts of fewer than four words have none.
        seed: another number, other copies.
    """
    altered: list[Mapping[str, Any]] = list(rows)
    for index, row in enumerate(rows):
        # A key of its own for each row: its copies do not depend on the other rows.
        key = f"{seed}:{index}".encode()
        altered += [{**row, field: text} for text in variants(row[field], key, copies)]
    return altered


def variants(text: str, key: bytes, number: int) -> Iterator[str]:
    """Yields altered copies of a text: words dropped, or neighbours swapped, in turn.

    A tenth of the words, at least one. Texts of fewer than four words have no copies. The same text
    and key give the same copies, on every machine.
    """
    words = text.split()
    free = [i for i, word in enumerate(words) if not _turns(word)]
    if len(words) < 4 or len(free) < 2:
        return
    for copy in range(number):
        chance = random.Random(int.from_bytes(key, "big") + copy)
        count = max(1, round(_SHARE * len(words)))
        if copy % 2 == 0:
            gone = set(chance.sample(free, min(count, len(free) - 1)))
            yield " ".join(word for i, word in enumerate(words) if i not in gone)
        else:
            yield " ".join(_swapped(words, set(free), count, chance))


def _turns(word: str) -> bool:
    bare = word.strip(".,;:!?\"'()").casefold()
    return bare in _KEPT_WORDS or bare.endswith(("n't", "n\u2019t"))


def _swapped(words: list[str], free: set[int], count: int, chance: random.Random) -> list[str]:
    pairs = [i for i in range(len(words) - 1) if i in free and i + 1 in free]
    words = list(words)
    for i in sorted(chance.sample(pairs, min(count, len(pairs)))):
        words[i], words[i + 1] = words[i + 1], words[i]
    return words
