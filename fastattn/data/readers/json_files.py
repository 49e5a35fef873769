"""Rows of JSON Lines files, of JSON arrays, and of question answering data in SQuAD's form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastattn.data.readers.lines import (
    byte_problem,
    checked_record,
    decoded_lines,
    printable,
    printable_value,
)
from fastattn.data.readers.record import (
    BadRow,
    ReadOptions,
    Record,
    row_error,
    shorten,
)
from fastattn.errors import DataError

_EXAMPLE = '{"text": ..., "label": ...}'


def read_json_lines(path: Path, name: str, options: ReadOptions) -> Iterator[Record | BadRow]:
    """Yields the object in each line. Blank lines are no rows."""
    for number, line in enumerate(decoded_lines(path, name, options.encoding), start=1):
        if not line.strip():
            continue
        problem = byte_problem(line, options.encoding)
        if problem:
            yield BadRow(name, number, *problem, printable(line.rstrip("\r\n")))
            continue
        try:
            fields = _parse(line)
        except (ValueError, RecursionError) as error:
            rule = f"each line must be a JSON object; got {error}"
            # The first line of an array that goes over many.
            hint = "Rename the file to .json" if line.strip() == "[" else "Correct that line"
            yield BadRow(name, number, rule, f"{hint}.", line.rstrip("\r\n"))
            continue
        yield _checked(name, number, fields)


def _parse(text: str) -> Any:
    """Reads JSON.

    Raises:
        ValueError: it is none, or an object in it has a name twice, of which one would be lost.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shorten(twice)} twice in one object")
    return fields


def _checked(name: str, number: int, fields: Any) -> Record | BadRow:
    if not isinstance(fields, dict):
        rule = f"each row must be a JSON object; got {shorten(fields)}"
        return BadRow(name, number, rule, f"Write it as {_EXAMPLE}.", printable_value(fields))
    # Escapes such as \u0000 and \ud83d come to light here alone.
    return checked_record(name, number, fields)


def read_json(path: Path, name: str, options: ReadOptions) -> Iterator[Record | BadRow]:
    """Yields the rows of a JSON file: an array of objects, or SQuAD's articles.

    A JSON document has no rows that could be read one by one: it is in memory as a whole.

    Raises:
        DataError: it is neither.
    """
    lines = []
    for number, line in enumerate(decoded_lines(path, name, options.encoding), start=1):
        problem = byte_problem(line, options.encoding)
        if problem:
            raise row_error(name, number, *problem)
        lines.append(line)
    text = "".join(lines)
    try:
        document = _parse(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "Extra data" in str(error):
            hint = "Rename it to .jsonl if each of its lines is a JSON object."
        elif isinstance(error, json.JSONDecodeError):
            hint = "Check that the file is whole."
        else:
            hint = "Correct it."
        raise DataError(f"data: {name} must be JSON; got {error}. {hint}") from error
    if isinstance(document, list):
        for number, fields in enumerate(document, start=1):
            yield _checked(name, number, fields)
    elif isinstance(document, dict) and isinstance(document.get("data"), list):
        yield from _squad_rows(name, document["data"])
    else:
        raise DataError(
            f'data: {name} must be an array of objects, or SQuAD\'s {{"data": [...]}}; got '
            f"{shorten(document)}. Save the rows as JSON Lines."
        )


def _squad_rows(name: str, articles: list[Any]) -> Iterator[Record | BadRow]:
    """Flattens SQuAD 1.1 and 2.0: one row a question, with ``answers`` as the Hub has them."""
    number = 0
    if articles and all(isinstance(x, dict) and "paragraphs" not in x for x in articles):
        for number, fields in enumerate(articles, start=1):  # {"data": [flat rows]}
            yield _checked(name, number, fields)
        return
    for place, article in enumerate(articles):
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    number += 1
                    yield _checked(name, number, _squad_row(article, paragraph, question))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"data: {name} must have paragraphs with a context and qas in each article, as "
                f"SQuAD; got {type(error).__name__} {error} in article {place}, after question "
                f"{number:,}. Correct it, or save the questions as JSON Lines."
            ) from error


def _squad_row(
    article: dict[str, Any], paragraph: dict[str, Any], question: dict[str, Any]
) -> dict[str, Any]:
    row = {
        "id": question["id"],
        "title": article.get("title"),
        "context": paragraph["context"],
        "question": question["question"],
    }
    if "is_impossible" in question:
        row["is_impossible"] = question["is_impossible"]
    # Where neither is said, the task finds its answers missing.
    if "answers" in question or question.get("is_impossible"):
        answers = question.get("answers") or []
        row["answers"] = {
            "text": [answer["text"] for answer in answers],
            "answer_start": [answer["answer_start"] for answer in answers],
        }
    return row
