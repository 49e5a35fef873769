"""The rows of each task, and what is said about rows that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastattn.data.tasks import (
    TASKS,
    Layout,
    RowProblem,
    check_task,
    label_names,
    name_columns,
    read_task_rows,
    task_row,
    to_iob2,
)
from fastattn.errors import DataError


def row(task: str, fields: dict[str, Any], **layout: Any) -> dict[str, Any]:
    return task_row(task, fields, Layout(**layout)).row


@pytest.mark.parametrize(
    ("value", "label"),
    [("spam", "spam"), (" a b ", "a b"), (1, "1"), (1.0, "1"), ("1.0", "1"), ("01", "01"),
     (True, "True"), ("-1", "-1"), ("nan", "nan")],
)  # fmt: skip
def test_labels_become_names(value: object, label: str) -> None:
    assert row("classification", {"text": "x", "label": value}) == {"text": "x", "label": label}


def test_columns_and_labels_can_be_named() -> None:
    layout = {"columns": {"text": "review.body", "label": "stars"}, "labels": {"0.5": "bad"}}
    fields = {"review": {"body": "x"}, "stars": 0.5}
    assert row("classification", fields, **layout) == {"text": "x", "label": "bad"}
    required = Layout(**layout).required("classification")
    assert required == {"review.body": "--column text=COLUMN", "stars": "--column label=COLUMN"}


@pytest.mark.parametrize(
    ("labels", "names"), [(["b", "a", "b"], ["a", "b"]), ("b|a", ["a", "b"]), ("", []),
                          ('["x|y"]', ["x|y"]), ([], []), ([2, 1.0], ["1", "2"])],
)  # fmt: skip
def test_multilabel(labels: object, names: list[str]) -> None:
    assert row("multilabel", {"text": "x", "labels": labels})["labels"] == names


def test_multilabel_from_a_column_for_each_label() -> None:
    fields = {"text": "x", "toxic": "1", "rude": 0, "mild": True}
    columns = ("toxic", "rude", "mild")
    assert row("multilabel", fields, label_columns=columns)["labels"] == ["mild", "toxic"]
    assert [*Layout(label_columns=columns).required("multilabel")] == ["text", *columns]


@pytest.mark.parametrize(
    ("tags", "iob2"),
    [
        ("I-X I-X O I-X", "B-X I-X O B-X"),  # IOB1
        ("I-X B-X I-Y", "B-X B-X B-Y"),
        ("S-X B-X E-X O B-Y I-Y E-Y I-Y", "B-X B-X I-X O B-Y I-Y I-Y B-Y"),  # IOBES
        ("U-X B-X L-X U-X", "B-X B-X I-X B-X"),  # BILOU
        ("B-X I-X O", "B-X I-X O"),
    ],
)
def test_tags_become_iob2(tags: str, iob2: str) -> None:
    assert to_iob2(tags.split()) == iob2.split()


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y", "S-X", "E-X"])))
def test_iob2_stays_as_it_is(tags: list[str]) -> None:
    once = to_iob2(tags)
    assert to_iob2(once) == once
    before = "O"
    for tag in once:
        assert not tag.startswith("I-") or before[2:] == tag[2:]
        before = tag


def test_tokens() -> None:
    result = task_row(TOKENS, {"tokens": ["a", "b"], "tags": ["I-X", "O"]})
    assert result.row == {"tokens": ["a", "b"], "tags": ["B-X", "O"]}
    assert result.repairs == ("tags rewritten as IOB2",)
    assert row(TOKENS, {"tokens": "a b", "tags": "B-X O"})["tokens"] == ["a", "b"]
    named = row(TOKENS, {"tokens": ["a"], "tags": [1]}, labels={"1": "B-X"})
    assert named["tags"] == ["B-X"]
    assert row(TOKENS, {"tokens": ["a"], "tags": ["NN"]}, plain_tags=True)["tags"] == ["NN"]


TOKENS, QUESTIONS = "token-classification", "question-answering"
QUESTION = {"id": 7, "context": "Ann saw Bob. Bob left.", "question": "Who?"}


def test_questions() -> None:
    answers = {"text": ["Bob"], "answer_start": [13]}
    expected = {**QUESTION, "id": "7", "answers": answers}
    assert row(QUESTIONS, {**QUESTION, "answers": answers}) == expected
    listed = [{"text": "Bob", "answer_start": 13}]
    assert row(QUESTIONS, {**QUESTION, "answers": listed, "title": "x"}) == expected
    without = {**QUESTION, "id": None, "answers": {"text": [], "answer_start": []}}
    assert len(row(QUESTIONS, without)["id"]) == 24


def test_an_answer_that_is_there_once_is_found() -> None:
    answers = {"text": ["Ann"], "answer_start": [3]}
    result = task_row(QUESTIONS, {**QUESTION, "answers": answers})
    assert result.row["answers"]["answer_start"] == [0]
    assert result.repairs == ("answer_start corrected",)


def test_texts_and_translations() -> None:
    assert row("masked-lm", {"text": "x", "label": 3}) == {"text": "x"}
    pair = {"translation": {"en": "cat", "fr": "chat"}}
    columns = {"source": "translation.en", "target": "translation.fr"}
    assert row("translation", pair, columns=columns) == {"source": "cat", "target": "chat"}


PROBLEMS = [
    ("classification", {"text": "  ", "label": 1}, "empty", r"text must hold a text; got none"),
    ("classification", {"text": None, "label": 1}, "empty", r"text must hold a text; got none"),
    ("classification", {"text": 7, "label": 1}, "invalid", r"text must be a text; got 7.*--column"),
    ("classification", {"body": "x"}, "invalid", r"must have a field 'text'; got body. Name"),
    ("classification", {"text": "x", "label": " "}, "no_label", r"must have a label; got none"),
    ("classification", {"text": "x", "label": None}, "no_label", r"must have a label; got none"),
    ("classification", {"text": "x", "label": 0.5}, "invalid", r"must be a class.*got 0.5.*"
     r"`fastattn data build --label-map 0.5=NAME`"),
    ("classification", {"text": "x", "label": "3.25"}, "invalid", r"must be a class.*got 3.25"),
    ("classification", {"text": "x", "label": 1e-05}, "invalid", r"must be a class.*got 1e-05"),
    ("classification", {"text": "x", "label": "7e-06"}, "invalid", r"must be a class.*got 7e-06"),
    ("classification", {"text": "x", "label": float("inf")}, "invalid", r"be a class.*got inf"),
    ("classification", {"text": "x", "label": 1e22}, "invalid", r"must be a class.*got 1e\+22"),
    ("classification", {"text": "x", "label": "a\x1fb"}, "invalid", r"no control character or line "
     r"break; got 'a\\x1fb'. Correct"),
    ("classification", {"text": "x", "label": [1]}, "invalid", r"got \[1\]. Use --task multilabel"),
    ("multilabel", {"text": "x", "labels": "[" * 100_000}, "invalid", r"labels must be a list"),
    ("multilabel", {"text": "x", "labels": 3}, "invalid", r"labels must be a list; got 3. Write"),
    (TOKENS, {"tokens": [], "tags": []}, "empty", r"must hold a token"),
    (TOKENS, {"tokens": ["a"], "tags": []}, "invalid", r"got 1 tokens and 0 tags"),
    (TOKENS, {"tokens": ["a"], "tags": ["PER"]}, "invalid", r"must be O, B-TYPE or I-TYPE; got "
     r"'PER'. Use --plain-tags .* `fastattn data build --label-map PER=B-TYPE`"),
    (TOKENS, {"tokens": [" "], "tags": ["O"]}, "invalid", r"a token must be a text; got ' '"),
    (TOKENS, {"tokens": ["a"], "tags": [None]}, "no_label", r"must have a tag; got none for 'a'"),
    (TOKENS, {"tokens": 7, "tags": []}, "invalid", r"tokens must be a list; got 7"),
    (QUESTIONS, {**QUESTION, "answers": {"text": ["Bob"], "answer_start": [2]}}, "invalid",
     r"got 'Bob' at 2, where the context has 'n s'. Correct answer_start"),
    (QUESTIONS, {**QUESTION, "answers": {"text": ["Eve"], "answer_start": [0]}}, "invalid",
     r"got 'Eve' at 0"),
    (QUESTIONS, {**QUESTION, "answers": {"text": ["Ann"], "answer_start": []}}, "invalid",
     r"answers must hold texts and as many answer_start"),
    (QUESTIONS, {**QUESTION, "answers": {"text": ["Ann"], "answer_start": [-3]}}, "invalid",
     r"as many"),
    (QUESTIONS, {**QUESTION, "answers": {"text": [" "], "answer_start": [3]}}, "invalid",
     r"as many"),
    (QUESTIONS, {**QUESTION, "answers": "[" * 100_000}, "invalid", r"as many answer_start; got"),
    (QUESTIONS, {**QUESTION, "answers": {"text": ["Ann"], "answer_start": [0]},
     "is_impossible": True}, "invalid", r"no answer where is_impossible is true; got 'Ann'. Corr"),
    (QUESTIONS, {**QUESTION, "answers": "Ann"}, "invalid", r"as many answer_start; got 'Ann'"),
    ("translation", {"source": "x", "target": ""}, "empty", r"target must hold a text; got none"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "fields", "reason", "message"), PROBLEMS)
def test_a_bad_row_gets_a_message(
    task: str, fields: dict[str, Any], reason: str, message: str
) -> None:
    with pytest.raises(RowProblem, match=message) as caught:
        task_row(task, fields)
    assert caught.value.reason == reason


def test_a_column_of_zeros_and_ones_must_hold_them() -> None:
    with pytest.raises(RowProblem, match=r"toxic must be 0 or 1; got 'maybe'"):
        row("multilabel", {"text": "x", "toxic": "maybe"}, label_columns=["toxic"])


def test_an_unknown_task() -> None:
    with pytest.raises(DataError, match=r"task must be one of classification, .*; got 'ner'"):
        check_task("ner")
    assert all(check_task(task) is None for task in TASKS)


def test_raw_files_give_rows_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Ann I-PER\nleft O\n", encoding="utf-8")
    (tmp_path / "dev.conll").write_text("Bob B-PER\n\nEve PER\n", encoding="utf-8")
    rows = read_task_rows(tmp_path / "train.conll", TOKENS)
    assert list(rows) == [("train", {"tokens": ["Ann", "left"], "tags": ["B-PER", "O"]})]
    with pytest.raises(DataError, match=r"/dev.conll, row 3: a tag must be O, .*; got 'PER'"):
        list(read_task_rows(tmp_path, TOKENS))


def test_classes_are_in_the_order_of_their_numbers() -> None:
    assert label_names({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert label_names({"b", "10", "9"}) == ["10", "9", "b"]


@pytest.mark.parametrize(
    ("task", "named", "columns"),
    [
        ("classification", ("a", "b", {}), {"text": "a", "label": "b"}),
        ("multilabel", (None, "b", {}), {"labels": "b"}),
        (TOKENS, ("a", "b", {}), {"tokens": "a", "tags": "b"}),
        (QUESTIONS, ("a", "b", {"context": "a"}), {"context": "a", "answers": "b"}),
        ("masked-lm", ("a", None, {}), {"text": "a"}),
        ("translation", (None, None, {"source": "a"}), {"source": "a"}),
    ],
)  # fmt: skip
def test_columns_are_named_for_the_task(task: str, named: Any, columns: dict[str, str]) -> None:
    assert name_columns(task, *named) == columns


@pytest.mark.parametrize(
    ("task", "named", "message"),
    [
        ("translation", ("en", None, {}), r"text_column must be left out for the task translation, "
         r"whose rows have source and target alone; got 'en'. Use --column source=en or --column"),
        ("translation", (None, "de", {}), r"label_column must be left out for the task"),
        ("masked-lm", (None, "b", {}), r"label_column must be left out for the task masked-lm, .* "
         r"got 'b'. Leave --label-column out"),
        ("masked-lm", ("a", None, {"text": "b"}), r"text_column and column must not name different "
         r"columns for 'text'; got 'a' and 'b'"),
        (TOKENS, (None, "a", {"tags": "b"}), r"label_column and column must not .* 'tags'"),
    ],
)  # fmt: skip
def test_columns_that_a_task_does_not_have(task: str, named: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        name_columns(task, *named)


@pytest.mark.parametrize(
    ("task", "layout", "message"),
    [
        ("classification", {"columns": {"labels": "x"}}, r"column must name one of the columns "
         r"text, label of the task classification; got 'labels'. Write it as in --column text="),
        ("classification", {"label_columns": ["x"]}, r"label_columns must be left out unless the "
         r"task is multilabel; got \['x'\] for the task classification. .* use --task multilabel"),
        ("masked-lm", {"label_separator": ";"}, r"label_separator must be left out unless"),
        (QUESTIONS, {"plain_tags": True}, r"plain_tags must be left out unless the task is token"),
        ("translation", {"labels": {"a": "b"}}, r"label_map must be left out unless the task"),
        ("multilabel", {"label_columns": ["x"], "columns": {"labels": "y"}},
         r"label_column must be left out where label_columns has a column for each"),
        ("multilabel", {"label_columns": ["x"], "label_separator": ";"},
         r"label_separator must be left out where label_columns"),
    ],
)  # fmt: skip
def test_a_layout_that_a_task_does_not_use(task: str, layout: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Layout(**layout).check(task)
