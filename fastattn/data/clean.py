"""What counts as the same text, and what is taken out of it before training."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def replace_breaks(text: str) -> str:
    """Returns the text with each HTML line break replaced by a space.

    The IMDB reviews hold four of them on average (``<br />``), each of which WordPiece would cut
    into four tokens that say nothing. Other markup is rare there and stays.
    """
    return _BREAK.sub(" ", text)


def text_key(text: str) -> str:
    """Returns the form in which texts are compared.

    No line breaks, lower case, single spaces, and accents as parts of their letters: an é that is
    written as two characters is the same letter.
    """
    folded = unicodedata.normalize("NFC", replace_breaks(text).casefold())
    return " ".join(folded.split())


class Row(NamedTuple):
    """A text with its class and the key it is compared by."""

    text: str
    label: int
    key: str


class Deduplicated(NamedTuple):
    """The rows that are kept, and how many were dropped and why."""

    rows: list[Row]
    empty: int
    duplicates: int
    conflicts: int


def deduplicate(texts: Sequence[str], labels: Sequence[int]) -> Deduplicated:
    """Keeps one row of each different text.

    Texts with the same :func:`text_key` are the same. If they have one label, the text that is
    first in alphabetical order stays (so the order of the rows does not matter); if they have
    several labels nobody can say which is right, and all of them are dropped. Texts without a
    visible character are dropped.
    """
    groups: dict[str, list[Row]] = {}
    empty = 0
    for text, label in zip(texts, labels, strict=True):
        key = text_key(text)
        if key:
            groups.setdefault(key, []).append(Row(text, label, key))
        else:
            empty += 1
    kept, duplicates, conflicts = [], 0, 0
    for rows in groups.values():
        if len({row.label for row in rows}) > 1:
            conflicts += len(rows)
        else:
            kept.append(min(rows))
            duplicates += len(rows) - 1
    return Deduplicated(kept, empty, duplicates, conflicts)
