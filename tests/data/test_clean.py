"""What counts as the same text."""

from __future__ import annotations

import pytest

from fastattn.data.clean import deduplicate, replace_breaks, text_key


@pytest.mark.parametrize("tag", ["<br />", "<br>", "<BR/>", "<br  />"])
def test_line_breaks_become_spaces(tag: str) -> None:
    assert replace_breaks(f"Good.{tag}{tag}Bad.") == "Good.  Bad."


def test_other_markup_stays() -> None:
    assert replace_breaks("<i>Jaws</i> <brave>") == "<i>Jaws</i> <brave>"


@pytest.mark.parametrize(
    "other", ["A FINE film", " a fine\tfilm\n", "A fine<br /><br />film", "a\u00a0fine film"]
)
def test_case_spaces_and_breaks_do_not_make_a_different_text(other: str) -> None:
    assert text_key(other) == text_key("A fine film")


@pytest.mark.parametrize("other", ["caf\u00e9 NOIR", "cafe\u0301 noir", "CAFE\u0301 Noir"])
def test_an_accent_makes_the_same_letter_however_it_is_written(other: str) -> None:
    assert text_key(other) == text_key("Caf\u00e9 noir")
    assert text_key(other) != text_key("cafe noir")


def test_words_and_marks_make_a_different_text() -> None:
    assert text_key("a fine film!") != text_key("a fine film")


def test_deduplicate_counts_what_it_drops() -> None:
    texts = ["b", "a", "A ", "c", "C", "", " <br/> ", "d"]
    result = deduplicate(texts, [0, 1, 1, 0, 1, 0, 1, 1])
    assert [(row.text, row.label) for row in result.rows] == [("b", 0), ("A ", 1), ("d", 1)]
    assert (result.empty, result.duplicates, result.conflicts) == (2, 1, 2)


def test_the_text_kept_does_not_depend_on_the_order() -> None:
    forward = deduplicate(["a film", "A film"], [1, 1])
    backward = deduplicate(["A film", "a film"], [1, 1])
    assert forward.rows == backward.rows
