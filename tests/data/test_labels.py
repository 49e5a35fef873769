"""From the labels of rows to classes."""

from __future__ import annotations

import pytest

from fastattn.data.labels import alike_labels, class_names, joined_labels
from fastattn.errors import DataError


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1", "0", "1"], ["0", "1"]),
        (["10", "9", "10"], ["9", "10"]),
        (["pos", "neg", "pos"], ["neg", "pos"]),
        (["True", "False"], ["False", "True"]),
        (["1", "one"], ["1", "one"]),
        (["très bon", "日本", "so so"], ["so so", "très bon", "日本"]),
    ],
)
def test_numbers_and_names(labels: list[str], names: list[str]) -> None:
    assert class_names(labels) == names


def test_the_order_of_the_source_is_kept() -> None:
    assert class_names(["good", "bad"], ["good", "fair", "bad"]) == ["good", "bad"]


def test_one_class() -> None:
    with pytest.raises(DataError, match=r"at least two classes; got only '1', in 3 rows. Add rows"):
        class_names(["1", "1", "1"])


def test_a_column_of_something_else() -> None:
    with pytest.raises(DataError, match=r"must hold classes; got 40 different values in 40 rows"):
        class_names([f"id-{n}" for n in range(40)])


def test_names_that_differ_by_case_alone() -> None:
    assert alike_labels(["Pos", "neg", "pos", "a b", "A  b"]) == [["Pos", "pos"], ["a b", "A  b"]]


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["rude", "toxic"], None),
        (["rude", "rude;toxic"], "rude;toxic"),
        (["a, b", "b, c"], "a, b"),
        (["rock, pop", "jazz"], None),  # a name with a comma
        (["rude|toxic", "rude"], None),  # parts have been told apart at this mark
    ],
)
def test_names_that_seem_to_be_several(names: list[str], joined: str | None) -> None:
    assert joined_labels(names, "|") == joined
