"""As many rows of each class, in the training split alone."""

from __future__ import annotations

from collections import Counter
from typing import Any


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


def marked(row: dict[str, Any], origin: str) -> dict[str, Any]:
    """Returns the row with a column that says whether it is an original, a copy or augmented."""
    return {**row, "origin": origin}
