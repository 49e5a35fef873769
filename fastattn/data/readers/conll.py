"""Sentences of CoNLL files: one token a line with its tag, a blank line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fastattn.data.readers.lines import byte_problem, decoded_lines, printable
from fastattn.data.readers.record import BadRow, ReadOptions, Record, shorten

# Spaces and tabs alone: a no-break space may be part of a token.
_BLANKS = re.compile(r"[ \t]+")
_TAG = re.compile(r"O|[A-Z]-\S+")
_DOCUMENT = "-DOCSTART-"


def read_conll(path: Path, name: str, options: ReadOptions) -> Iterator[Record | BadRow]:
    """Yields {"tokens": [...], "tags": [...]} for each sentence; its row is its first line.

    Columns are separated by tabs if a line holds any, by blanks otherwise. Lines of
    ``-DOCSTART-`` are no sentences. A line before a sentence that begins with ``#`` and does not
    end with a tag is a comment, as in CoNLL-U.
    """
    sentence = _Sentence(name, options)
    for number, line in enumerate(decoded_lines(path, name, options.encoding), start=1):
        line = line.rstrip("\r\n")
        if line.strip():
            sentence.add(number, line)
            continue
        yield from sentence.take()
    yield from sentence.take()


class _Sentence:
    """The lines of the sentence at hand."""

    def __init__(self, name: str, options: ReadOptions) -> None:
        self._name = name
        self._options = options
        self._width = 0  # columns of the file, from its first line on
        self._lines: list[tuple[int, str]] = []

    def add(self, number: int, line: str) -> None:
        if line.startswith(_DOCUMENT):
            return
        if not self._lines and line.startswith("#") and not _TAG.fullmatch(_cells(line)[-1]):
            return
        self._lines.append((number, line))

    def take(self) -> Iterator[Record | BadRow]:
        """Yields the sentence, if there is one, and begins the next."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        first = lines[0][0]
        content = "\n".join(printable(line) for _, line in lines)
        tokens, tags = [], []
        for number, line in lines:
            problem = byte_problem(line, self._options.encoding) or self._columns_problem(line)
            if problem:
                yield BadRow(self._name, number, *problem, content)
                return
            cells = _cells(line)
            tokens.append(cells[self._options.token_column])
            tags.append(cells[self._options.tag_column])
        yield Record(self._name, first, {"tokens": tokens, "tags": tags})

    def _columns_problem(self, line: str) -> tuple[str, str] | None:
        cells = _cells(line)
        if not self._width:
            columns = (self._options.token_column, self._options.tag_column)
            needed = max(2, *(x + 1 if x >= 0 else -x for x in columns))
            if len(cells) < needed:
                return (
                    f"a line must have a token and a tag, {needed} columns; got {shorten(line)}",
                    "Write `token tag` in each line, and a blank line after each sentence.",
                )
            self._width = len(cells)
        if len(cells) != self._width:
            return (
                f"a line must have {self._width} columns, as the lines before; got {len(cells)} in "
                f"{shorten(line)}",
                "Correct that line; separate columns by tabs if a token holds a space.",
            )
        return None


def _cells(line: str) -> list[str]:
    if "\t" in line:
        return [cell.strip() for cell in line.rstrip("\t").split("\t")]
    return _BLANKS.split(line.strip(" "))
