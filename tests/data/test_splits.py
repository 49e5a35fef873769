"""The rule of the split: no text in two sets, the same on every machine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastattn.data.clean import Row
from fastattn.data.splits import Sizes, check_sizes, make_splits
from fastattn.errors import DataError


def make_rows(counts: list[int], prefix: str = "text") -> list[Row]:
    """Different rows, counts[label] of each class."""
    texts = [(f"{prefix} {label} {n}", label) for label, c in enumerate(counts) for n in range(c)]
    return [Row(text, label, text) for text, label in texts]


def keys(rows: list[Row]) -> set[str]:
    return {row.key for row in rows}


@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=4),
    shares=st.tuples(*[st.floats(0.0, 0.3)] * 2),
    seed=st.integers(0, 3),
)
def test_sets_are_disjoint_whole_and_in_proportion(
    counts: list[int], shares: tuple[float, float], seed: int
) -> None:
    rows = make_rows(counts)
    total = len(rows)
    validation, test = (int(share * total) for share in shares)
    sizes = Sizes("all", validation, max(1, test))
    parts = make_splits(rows, None, None, sizes, seed)
    assert sum(map(len, parts)) == total
    assert set.union(*map(keys, parts)) == keys(rows)
    assert [len(part) for part in parts[1:]] == [validation, max(1, test)]
    for label, count in enumerate(counts):
        in_test = sum(row.label == label for row in parts[2])
        assert abs(in_test - len(parts[2]) * count / total) < 1


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = make_rows([30, 20])
    sizes = Sizes(20, 5, 5)
    assert make_splits(rows, None, None, sizes, 0) == make_splits(rows[::-1], None, None, sizes, 0)


def test_the_split_is_the_same_on_every_machine() -> None:
    train, validation, test = make_splits(make_rows([4, 4]), None, None, Sizes(4, 2, 2), 0)
    assert [row.text for row in test] == ["text 0 0", "text 1 1"]
    assert [row.text for row in validation] == ["text 0 2", "text 1 2"]
    assert [row.text for row in train] == ["text 1 0", "text 0 3", "text 1 3", "text 0 1"]


def test_another_seed_gives_another_split() -> None:
    rows = make_rows([50, 50])
    first, second = (make_splits(rows, None, None, Sizes(50, 0, 50), seed)[2] for seed in (0, 1))
    assert keys(first) != keys(second)


def test_the_test_set_stays_when_more_is_trained_on() -> None:
    rows = make_rows([40, 40])
    small = make_splits(rows, None, None, Sizes(10, 10, 10), 0)
    large = make_splits(rows, None, None, Sizes("all", 20, 10), 0)
    assert small[2] == large[2]
    assert keys(small[0]) <= keys(large[0])


def test_sets_of_the_source_are_kept() -> None:
    own_test, own_validation = make_rows([5, 5], "own test"), make_rows([3, 3], "own validation")
    parts = make_splits(make_rows([20, 20]), own_validation, own_test, Sizes(), 0)
    assert [len(part) for part in parts] == [40, 6, 10]
    assert keys(parts[2]) == keys(own_test)
    assert keys(parts[1]) == keys(own_validation)


def test_default_sizes_are_a_tenth_each() -> None:
    parts = make_splits(make_rows([50, 50]), None, None, Sizes(), 0)
    assert [len(part) for part in parts] == [80, 10, 10]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (Sizes(81, 10, 10), r"train_size must be at most the 80 different texts .* got 81"),
        (Sizes(10, 91, 10), r"validation_size must be at most the 90 .* got 91"),
        (Sizes(10, 10, 101), r"test_size must be at most the 100 .* got 101. Ask for fewer"),
    ],
)
def test_more_than_there_is(sizes: Sizes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_splits(make_rows([50, 50]), None, None, sizes, 0)


def test_a_class_without_training_rows() -> None:
    with pytest.raises(DataError, match=r"must hold every class; got no row of class 1. Give"):
        make_splits(make_rows([30, 2]), None, None, Sizes(2, 0, 16), 0)


@pytest.mark.parametrize("value", [1, -3, 2.5, "some"])
def test_sizes_that_make_no_sense(value: Any) -> None:
    with pytest.raises(DataError, match=r'train_size must be "all" or .* of at least 2; got'):
        check_sizes(Sizes(train=value))
