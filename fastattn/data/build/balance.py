"""As many rows of each class, and varied copies, in the training split alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

# Without one of these a text may say the opposite.
_KEPT_WORDS = frozenset(
    "no not nor never none nobody nothing neither without cannot hardly barely but".split()
)
_SHARE = 0.1  # of the words that are deleted or swapped


class Balance:
    """Decides, row by row in the order of keys, what becomes of the rows of each class.

    Args:
        kind: "none", "downsample" to the smallest class, or "upsample" to the largest.
        counts: training rows of each class.
    """

    def __init__(self, kind: str, counts: Counter[str]) -> None:
        self.target = {
            "none": None,
            "downsample": min(counts.values(), default=0),
            "upsample": max(counts.values(), default=0),
        }[kind]
        self._kind = kind
        self._counts = counts
        self._seen: Counter[str] = Counter()

    def copies(self, label: str) -> int:
        """Returns how often the next row of a class is to be written; 0: it is balanced away."""
        place = self._seen[label]
        self._seen[label] += 1
        if self.target is None:
            return 1
        if self._kind == "downsample":
            return int(place < self.target)
        whole, rest = divmod(self.target, self._counts[label])
        return whole + (place < rest)


def variants(text: str, key: bytes, number: int) -> Iterator[str]:
    """Yields varied copies of a text: words deleted, or neighbours swapped, in turn.

    A tenth of the words, at least one, as in "easy data augmentation" (Wei and Zou, 2019); words
    that may turn the meaning around stay where they are. Texts of fewer than four words have none.
    The same text gives the same copies, on every machine.
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


def marked(row: dict[str, Any], origin: str) -> dict[str, Any]:
    """Returns the row with a column that says whether it is an original, a copy or augmented."""
    return {**row, "origin": origin}
