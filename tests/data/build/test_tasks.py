"""Data sets of the tasks other than classification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastattn.data.built import read_split
from fastattn.errors import DataError

from .conftest import Build, Built, reviews

SPLITS = ("train", "validation", "test")


def every(result: Built) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in result.rows(split)]


def test_token_classification_from_conll(built: Build, tmp_path: Path) -> None:
    sentences = []
    for i, row in enumerate(reviews(40)):
        words = row["text"].split()
        tags = ["O"] * len(words)
        tags[0], tags[1] = ("I-PER", "I-PER") if i % 4 else ("I-LOC", "O")
        sentences.append("\n".join(f"{w} {t}" for w, t in zip(words, tags, strict=True)))
    path = tmp_path / "all.conll"
    path.write_text("\n\n".join([*sentences, sentences[0]]), encoding="utf-8")
    result = built([str(path)], task="token-classification")
    assert result.report["repairs"] == {"tags rewritten as IOB2": 41}
    assert result.description["label_names"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    rows = every(result)
    assert len(rows) == 40 and [reason for _, reason in result.reasons] == ["duplicate"]
    assert {tuple(row["tags"][:2]) for row in rows} == {("B-PER", "I-PER"), ("B-LOC", "O")}
    # Stratified: the rarer type is in every split.
    assert all(result.report["labels"][split].get("LOC") for split in SPLITS)


def test_plain_tags(built: Build) -> None:
    rows = [
        {"tokens": row["text"].split(), "tags": ["NN"] * len(row["text"].split())}
        for row in reviews(20)
    ]
    rows[0]["tags"][0] = "VB"
    with pytest.raises(DataError, match=r"row 1: a tag must be O, .*; got 'VB'.*--plain-tags"):
        built(rows, task="token-classification")
    result = built(rows, task="token-classification", plain_tags=True)
    assert result.description["label_names"] == ["NN", "VB"]


def squad(number: int) -> dict[str, Any]:
    paragraphs = []
    for i, row in enumerate(reviews(number)):
        word = row["text"].split()[2]
        start = row["text"].index(word)
        qas: list[dict[str, Any]] = [
            {
                "id": f"{i}-{k}",
                "question": f"Which {k}?",
                "answers": [{"text": word, "answer_start": start}],
            }
            for k in range(3)
        ]
        qas.append({"id": f"{i}-none", "question": "When?", "answers": [], "is_impossible": True})
        paragraphs.append({"context": row["text"], "qas": qas})
    return {"version": "2.0", "data": [{"title": "all", "paragraphs": paragraphs}]}


def test_questions_about_a_context_stay_in_one_split(built: Build, tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    document = squad(30)
    document["data"][0]["paragraphs"][3]["qas"][0]["answers"][0]["answer_start"] += 1
    path.write_text(json.dumps(document), encoding="utf-8")
    result = built([str(path)], task="question-answering", test_size=0.2)
    assert result.report["repairs"] == {"answer_start corrected": 1}
    contexts = [{row["context"] for row in result.rows(split)} for split in SPLITS]
    assert all(contexts) and sum(map(len, contexts)) == 30
    rows = every(result)
    assert len(rows) == 120 and set(rows[0]) == {"id", "context", "question", "answers"}
    for row in rows:
        answers = row["answers"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
    table = built([str(path)], "table", task="question-answering", test_size=0.2, format="parquet")
    assert list(read_split(table.folder, "test")) == result.rows("test")


def test_an_answer_that_is_not_there(built: Build, tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    document = squad(20)
    document["data"][0]["paragraphs"][1]["qas"][0]["answers"][0]["text"] = "nowhere"
    path.write_text(json.dumps(document), encoding="utf-8")
    message = r"squad.json, row 5: an answer must be in the context at its answer_start; got 'no"
    with pytest.raises(DataError, match=message):
        built([str(path)], task="question-answering")
    assert built([str(path)], task="question-answering", bad_rows="reject").reasons == [
        (5, "invalid")
    ]


def test_questions_with_one_id(built: Build, tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    document = squad(20)
    paragraphs = document["data"][0]["paragraphs"]
    paragraphs[1]["qas"][1]["id"] = "0-0"
    paragraphs[0]["qas"].append(paragraphs[0]["qas"][1])  # the same question again is a duplicate
    path.write_text(json.dumps(document), encoding="utf-8")
    message = r"squad.json, row 7: a question must have an id of its own; got '0-0', which row 1 of"
    with pytest.raises(DataError, match=message + r" squad.json has .* Or use --bad-rows reject"):
        built([str(path)], task="question-answering")
    result = built([str(path)], task="question-answering", bad_rows="reject")
    assert result.reasons == [(5, "duplicate"), (7, "invalid")]


def test_a_repaired_context_keeps_its_answers(built: Build) -> None:
    rows = [
        {"context": row["text"], "question": "Who?", "answers": {"text": [], "answer_start": []}}
        for row in reviews(20)
    ]
    context = "Le cafÃ© trÃ¨s noir de RenÃ©e."
    start = context.index("RenÃ©e")
    rows[0] = {
        "context": context,
        "question": "De qui?",
        "answers": {"text": ["RenÃ©e"], "answer_start": [start]},
    }
    (row,) = [
        row for row in every(built(rows, task="question-answering")) if row["question"] == "De qui?"
    ]
    assert row["context"] == "Le café très noir de Renée."
    assert row["answers"] == {"text": ["Renée"], "answer_start": [21]}


def test_multilabel(built: Build, tmp_path: Path) -> None:
    lines = ["text,toxic,rude"]
    lines += [f"{row['text']},{int(i % 10 == 0)},{i % 2}" for i, row in enumerate(reviews(100))]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    result = built([str(path)], task="multilabel", label_columns=("toxic", "rude"))
    assert result.description["label_names"] == ["rude", "toxic"]
    assert result.report["labels"] == {
        "train": {"rude": 40, "toxic": 8},
        "validation": {"rude": 5, "toxic": 1},
        "test": {"rude": 5, "toxic": 1},
    }
    assert {tuple(row["labels"]) for row in every(result)} == {(), ("rude",), ("toxic",)}


def test_masked_lm_takes_lines_and_files(built: Build, tmp_path: Path) -> None:
    texts = [row["text"] for row in reviews(30)]
    path = tmp_path / "lines.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    result = built([str(path)], task="masked-lm")
    assert sorted(row["text"] for row in every(result)) == sorted(texts)
    assert result.description["label_names"] == []
    folder = tmp_path / "files"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(f"{text}\nand more\n", encoding="utf-8")
    whole = built([str(folder)], "whole", task="masked-lm")
    assert sorted(row["text"] for row in every(whole)) == sorted(f"{x}\nand more" for x in texts)


def test_translations_of_a_sentence_stay_in_one_split(built: Build) -> None:
    rows = [
        {"translation": {"en": row["text"], "de": f"{k} {row['text'][::-1]}"}}
        for row in reviews(30)
        for k in range(2)
    ]
    columns = {"source": "translation.en", "target": "translation.de"}
    result = built(rows, task="translation", columns=columns, test_size=0.2)
    sources = [{row["source"] for row in result.rows(split)} for split in SPLITS]
    assert all(sources) and sum(map(len, sources)) == 30
    assert len(every(result)) == 60
