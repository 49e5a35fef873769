"""From the labels of a source to classes."""

from __future__ import annotations

from typing import Any

import pytest

from fastattn.data.files import Rows
from fastattn.data.labels import encode
from fastattn.errors import DataError


def rows(*labels: Any) -> Rows:
    return Rows(["text"] * len(labels), list(labels), "a.csv")


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        ([1, 0, 1], [1, 0, 1], ["0", "1"]),
        (["10", "9", "10"], [1, 0, 1], ["9", "10"]),
        ([1.0, "2", 1], [0, 1, 0], ["1", "2"]),
        (["pos", " neg", "pos"], [1, 0, 1], ["neg", "pos"]),
        ([True, False], [1, 0], ["False", "True"]),
        (["1", "one"], [0, 1], ["1", "one"]),
    ],
)
def test_numbers_and_names(labels: list[Any], classes: list[int], names: list[str]) -> None:
    assert encode([rows(*labels)], None) == ([classes], names)


def test_parts_share_their_classes() -> None:
    parts = [rows("a", "c"), rows("b")]
    assert encode(parts, None) == ([[0, 2], [1]], ["a", "b", "c"])


def test_given_names_are_used() -> None:
    assert encode([rows(2, 0)], ["bad", "fair", "good"]) == ([[1, 0]], ["bad", "good"])


@pytest.mark.parametrize("missing", [None, float("nan"), " "])
def test_a_missing_label(missing: Any) -> None:
    with pytest.raises(DataError, match=r"every row must have a label; got none in row 2 of a.csv"):
        encode([rows(1, missing)], None)


def test_one_class() -> None:
    with pytest.raises(DataError, match=r"at least two classes; got only 1, in 3 rows. Add rows"):
        encode([rows(1, 1, "1")], None)


def test_numbers_that_are_no_classes() -> None:
    with pytest.raises(DataError, match=r"must hold classes, whole numbers or strings; got 0.5"):
        encode([rows(0.5, 1)], None)


def test_lists() -> None:
    with pytest.raises(DataError, match=r"one class a row, .* got \[1, 2\] in row 1 of a.csv"):
        encode([rows([1, 2], [1])], None)


def test_a_column_of_something_else() -> None:
    with pytest.raises(DataError, match=r"must hold classes; got 40 different values in 40 rows"):
        encode([rows(*(f"id-{n}" for n in range(40)))], None)
