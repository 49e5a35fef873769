"""Lines of text files, decoded one by one so that a bad byte has a row."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastattn.data.readers.record import BadRow, ReadOptions, Record
from fastattn.errors import DataError

# Byte order marks; the longer ones first, because UTF-32's begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A text file is read as a whole where it is one text. The longest novels have 10 MB.
LARGEST_TEXT = 64 * 2**20


def marked_encoding(path: Path) -> str | None:
    """Returns the encoding that a file's byte order mark names, None without a mark."""
    with path.open("rb") as file:
        head = file.read(4)
    return next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), None)


def decoded_lines(path: Path, name: str, encoding: str) -> Iterator[str]:
    """Yields the lines with their ends. Lines end with a line feed alone, as in every editor.

    Bytes that the encoding does not have become lone surrogates (``surrogateescape``), which
    :func:`bad_byte` finds, so that one bad row does not hide the place of the next.

    Raises:
        DataError: the encoding is unknown, or the file is not the UTF-16 or UTF-32 that it is
            said to be.
    """
    marked = marked_encoding(path)
    check_encoding(encoding)
    wide = marked if marked in ("utf-16", "utf-32") else encoding
    if codecs.lookup(wide).name.startswith(("utf-16", "utf-32")):
        yield from _wide_lines(path, name, wide)
        return
    with path.open("rb") as file:
        if marked:
            file.seek(len(codecs.BOM_UTF8))
            encoding = "utf-8"
        for line in file:
            yield line.decode(encoding, "surrogateescape")


def check_encoding(encoding: str) -> None:
    """Raises a DataError unless Python knows the encoding, and text can be read with it."""
    try:
        name = codecs.lookup(encoding).name
        # Some of its codecs are none of text (hex), or have no sign for a wrong byte (idna).
        if not name.startswith(("utf-16", "utf-32")):
            b"a\xff".decode(encoding, "surrogateescape")
    except (LookupError, ValueError):
        raise DataError(
            f"data: encoding must be one of text that Python knows; got {encoding!r}. Use utf-8, "
            "cp1252, latin-1 or another of its names with --encoding."
        ) from None


def _wide_lines(path: Path, name: str, encoding: str) -> Iterator[str]:
    number = 1
    try:
        with path.open(encoding=encoding, newline="\n") as file:
            for line in file:
                yield line
                number += 1
    except UnicodeError as error:
        raise DataError(
            f"data: {name} must be {encoding.upper()} text; got {error} near row {number:,}. "
            "Save it as UTF-8, or name its encoding with `fastattn data build --encoding`."
        ) from error


def bad_byte(text: str) -> int | None:
    """Returns the first byte of a text that could not be decoded, None if all could."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ord(text[error.start]) - 0xDC00
    return None


def byte_problem(text: str, encoding: str) -> tuple[str, str] | None:
    """Returns what is wrong with the bytes of a row and what to do, None if nothing is."""
    if "\0" in text:
        return (
            f"a text must hold no NUL byte; got one at position {text.index(chr(0))} of the row",
            "Remove it; if every second byte is one, the file is UTF-16 without a byte order "
            "mark: save it as UTF-8, or use `fastattn data build --encoding utf-16-le`.",
        )
    byte = bad_byte(text)
    if byte is None:
        return None
    if not 0x80 <= byte <= 0xFF:  # an escape of JSON such as \ud83d without its other half
        return (
            "a text must be made of whole characters; got half of a surrogate pair",
            "Remove it or write the character itself.",
        )
    return (
        f"a text must be {encoding.upper()}; got byte 0x{byte:02x}",
        "Save the file as UTF-8, or name its encoding with `fastattn data build --encoding`.",
    )


def value_problem(value: Any) -> tuple[str, str] | None:
    """Returns what is wrong with the characters of a value of JSON or Parquet, or of its parts."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            problem = byte_problem(part, "utf-8")
            if problem:
                return problem
        elif isinstance(part, dict):
            waiting += [*part, *part.values()]
        elif isinstance(part, list):
            waiting += part
    return None


def printable_value(value: Any) -> Any:
    """Returns a value whose texts, and those of its parts, can be written as UTF-8."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_value(name): printable_value(part) for name, part in value.items()}
    return list(map(printable_value, value)) if isinstance(value, list) else value


def checked_record(origin: str, number: int, fields: dict[str, Any]) -> Record | BadRow:
    """Returns a row of JSON, Parquet or the Hub, unless characters of it cannot be written."""
    problem = value_problem(fields)
    if problem:
        return BadRow(origin, number, *problem, printable_value(fields))
    return Record(origin, number, fields)


def read_lines(path: Path, name: str, options: ReadOptions) -> Iterator[Record | BadRow]:
    """Yields {"text": ...}: each line of a text file that holds something, or the whole file."""
    if options.whole_files:
        yield _whole_file(path, name, options.encoding)
        return
    for number, line in enumerate(decoded_lines(path, name, options.encoding), start=1):
        text = line.rstrip("\r\n")
        problem = byte_problem(text, options.encoding)
        if problem:
            yield BadRow(name, number, *problem, printable(text))
        elif text.strip():
            yield Record(name, number, {"text": text})


def _whole_file(path: Path, name: str, encoding: str) -> Record | BadRow:
    size = path.stat().st_size
    if size > LARGEST_TEXT:
        raise DataError(
            f"data: {name} must have at most {LARGEST_TEXT >> 20} MiB to be one text; got "
            f"{size >> 20} MiB. Cut it into several files, or give the file itself as the source: "
            "then each of its lines is a text."
        )
    text = "".join(decoded_lines(path, name, encoding)).strip()
    problem = byte_problem(text, encoding)
    return (
        BadRow(name, 1, *problem, printable(text)) if problem else Record(name, 1, {"text": text})
    )


def printable(text: str) -> str:
    """Returns a text that can be written as UTF-8: bytes that are none of it as ``\\xe9``."""
    if bad_byte(text) is None:
        return text
    return text.encode("utf-8", _ESCAPE).decode()


_ESCAPE = "fastattn.escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    codes = (ord(x) for x in error.object[error.start : error.end])
    escaped = (f"\\x{x - 0xDC00:02x}" if 0xDC80 <= x <= 0xDCFF else f"\\u{x:04x}" for x in codes)
    return "".join(escaped), error.end


codecs.register_error(_ESCAPE, _escape)
