"""Which encoding a text file has, and characters that went through the wrong one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fastattn.data.readers.lines import marked_encoding
from fastattn.errors import DataError

# As much of the lines that are not UTF-8 as is looked at; more makes charset-normalizer no surer.
_LINES = 200
_LONGEST_LINE = 2**20  # as much of the first line as is looked at


class _Line(NamedTuple):
    number: int
    content: bytes
    bad: int  # position of the first byte that is not UTF-8


def detect_encoding(path: Path, name: str) -> str:
    """Returns the encoding of a text file.

    UTF-8, and UTF-16 and UTF-32 with their byte order marks, are known for sure. For all else
    charset-normalizer is asked about the lines that are not UTF-8; its answer is taken if the
    encodings that it finds equally likely give the same characters.

    Raises:
        DataError: they do not, or some rows are UTF-8 and others something else; the message has
            the first such row and its byte.
    """
    if marked_encoding(path) or _begins_wide(path):
        return "utf-8"
    bad = list(islice(_lines_not_utf8(path), _LINES))
    if not bad:
        return "utf-8"
    first = bad[0]
    where = (
        f"data: {name}, row {first.number:,}: a text must be UTF-8, or all of the file in another "
        f"encoding; got byte 0x{first.content[first.bad]:02x}"
    )
    mixed = _first_utf8_line(path)
    if mixed:
        raise DataError(
            f"{where}, while row {mixed:,} is UTF-8 beyond ASCII. Save the file in one encoding, "
            "or use --bad-rows reject to leave out the rows that are not UTF-8."
        )
    encoding, other = _guess(b"\n".join(line.content for line in bad))
    if encoding is None or other:
        choices = f", which could be {encoding} or {other}" if encoding else ""
        raise DataError(
            f"{where}{choices}. Name the encoding with --encoding, for example "
            "--encoding cp1252 for files of Windows in Western Europe."
        )
    return encoding


def _begins_wide(path: Path) -> bool:
    """Whether the first line seems to be UTF-16 or UTF-32, of which the readers know what to say.

    The bytes of such texts are no characters, and charset-normalizer sees some in them.
    """
    with path.open("rb") as file:
        return b"\0" in file.readline(_LONGEST_LINE) + file.read(1)


def _lines_not_utf8(path: Path) -> Iterator[_Line]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                yield _Line(number, line.rstrip(b"\r\n"), error.start)


def _first_utf8_line(path: Path) -> int | None:
    """The first line that is UTF-8 and more than ASCII, None if there is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isascii():
                continue
            try:
                line.decode()
            except UnicodeDecodeError:
                continue
            return number
    return None


def _guess(content: bytes) -> tuple[str | None, str | None]:
    """The likeliest encoding, and how its text reads in an equally likely one that differs."""
    from charset_normalizer import from_bytes

    matches = list(from_bytes(content))
    if not matches:
        return None, None
    best = matches[0]
    text = str(best)
    for match in matches[1:]:
        equal = (match.chaos, match.coherence) == (best.chaos, best.coherence)
        if equal and str(match) != text:
            ours, theirs = _difference(text, str(match))
            return f"{best.encoding} ({ours!r})", f"{match.encoding} ({theirs!r})"
    return best.encoding, None


def _difference(a: str, b: str) -> tuple[str, str]:
    """The first words in which two readings differ."""
    for x, y in zip(a.split(), b.split(), strict=False):
        if x != y:
            return x[:20], y[:20]
    return a[:20], b[:20]


def repair_text(text: str) -> str:
    """Returns the text with mojibake decoded anew (ftfy), and characters composed (NFC).

    ``cafÃ©`` becomes ``café``, an e with a separate accent becomes é. Texts of which ftfy is not
    sure stay as they are.
    """
    if text.isascii():
        return text
    import ftfy
    from ftfy.badness import is_bad

    return unicodedata.normalize("NFC", ftfy.fix_encoding(text) if is_bad(text) else text)


def repair_row(task: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the row with its texts repaired; None if they need no repair.

    In question answering, answers and their places are repaired with the context. A context whose
    parts do not repair to the same text as the whole stays as it is.
    """
    if task == "question-answering":
        return _repair_question(row)
    changed: dict[str, Any] = {}
    for column, value in row.items():
        if column in ("text", "source", "target"):
            fixed: Any = repair_text(value)
        elif column == "tokens":
            fixed = [repair_text(token) for token in value]
        else:
            continue
        if fixed != value:
            changed[column] = fixed
    return {**row, **changed} if changed else None


def _repair_question(row: dict[str, Any]) -> dict[str, Any] | None:
    context, question = repair_text(row["context"]), repair_text(row["question"])
    if context == row["context"]:
        return None if question == row["question"] else {**row, "question": question}
    texts, starts = [], []
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        fixed = repair_text(text)
        place = len(repair_text(row["context"][:start]))
        if context[place : place + len(fixed)] != fixed:
            return None
        texts.append(fixed)
        starts.append(place)
    answers = {"text": texts, "answer_start": starts}
    return {**row, "context": context, "question": question, "answers": answers}
