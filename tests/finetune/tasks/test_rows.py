"""Rows of a task from files, folders and the Hub, and the sets they are split into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastattn.data.clean import text_key
from fastattn.data.sources import Source, read_rows, rows_of_hub_sets
from fastattn.data.tasks import Layout
from fastattn.errors import DataError
from fastattn.finetune import FinetuneConfig
from fastattn.finetune.tasks.base import TaskData
from fastattn.finetune.tasks.rows import split_rows

PAIRS = [{"source": f"number {n}", "target": f"Zahl {n}"} for n in range(40)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def split(found: Source, **settings: Any) -> TaskData:
    return split_rows(found, FinetuneConfig(**settings), lambda row: row["source"])


def test_jsonl_tsv_and_csv_hold_the_same_rows(tmp_path: Path) -> None:
    rows = read_rows("translation", str(write(tmp_path / "a.jsonl", PAIRS))).sets
    for suffix, mark in ((".tsv", "\t"), (".csv", ",")):
        file = tmp_path / f"a{suffix}"
        lines = [f"{row['source']}{mark}{row['target']}" for row in PAIRS]
        file.write_text("\n".join([f"source{mark}target", *lines]), encoding="utf-8")
        assert read_rows("translation", str(file)).sets == rows == {"train": PAIRS}


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"translation": {"en": row["source"], "de": row["target"]}} for row in PAIRS]
    columns = {"source": "translation.en", "target": "translation.de"}
    file = write(tmp_path / "a.jsonl", rows)
    assert read_rows("translation", str(file), Layout(columns)).sets == {"train": PAIRS}


def test_a_folder_keeps_its_sets(tmp_path: Path) -> None:
    for name, rows in (("train", PAIRS[:30]), ("validation", PAIRS[28:35]), ("test", PAIRS[34:])):
        write(tmp_path / f"{name}.jsonl", rows)
    data = split(read_rows("translation", str(tmp_path)))
    assert sorted(row["source"] for row in data.test) == sorted(r["source"] for r in PAIRS[34:])
    # Rows of two sets stay in the one that is evaluated.
    assert (len(data.train), len(data.validation), len(data.test)) == (28, 6, 6)
    assert data.report["train_rows"]["also_held_out"] == 2
    assert data.report["validation_rows"]["also_held_out"] == 1


def test_a_folder_without_anything_to_train_on(tmp_path: Path) -> None:
    write(tmp_path / "validation.jsonl", PAIRS[:2])
    write(tmp_path / "test.jsonl", PAIRS[2:])
    with pytest.raises(DataError, match=r"must hold a train file or split; got test, validation"):
        read_rows("translation", str(tmp_path))


def test_only_rows_that_are_held_out_too(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"must hold rows to train on; got none that are not in"):
        split(read_rows("translation", str(tmp_path)))


def test_no_text_is_in_two_sets_and_the_order_of_the_rows_is_nothing() -> None:
    # Every source twice, written differently, with two translations.
    twice = [{"source": f"NUMBER  {n}", "target": f"Nummer {n}"} for n in range(40)]
    rows = [*PAIRS, *twice, *PAIRS[:5]]
    data = split(Source("pairs", {"train": rows}), test_size=7, validation_size=5)
    sets = [{text_key(row["source"]) for row in part} for part in data[:3]]
    assert [len(keys) for keys in sets] == [28, 5, 7]
    assert len(set.union(*sets)) == 40
    assert [len(part) for part in data[:3]] == [56, 10, 14]
    assert data.report["train_rows"] == {"read": 85, "duplicates": 5, "also_held_out": 0}
    assert data.report["sizes"] == {"train": 56, "validation": 10, "test": 14}
    again = split(Source("pairs", {"train": rows[::-1]}), test_size=7, validation_size=5)
    assert again == data
    other = split(Source("pairs", {"train": rows}), test_size=7, validation_size=5, split_seed=1)
    assert other.test != data.test


def test_a_data_set_of_the_hub() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"translation": {"en": row["source"], "de": row["target"]}} for row in PAIRS]
    sets = datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows[:30]), dev=datasets.Dataset.from_list(rows[30:])
    )
    layout = Layout(columns={"source": "translation.en", "target": "translation.de"})
    found = rows_of_hub_sets("translation", "some/pairs", sets, layout)
    assert found.name == "some/pairs"
    assert found.sets == {"train": PAIRS[:30], "validation": PAIRS[30:]}
    with pytest.raises(DataError, match=r"some/pairs\[train\], row 1: .* field 'source'"):
        rows_of_hub_sets("translation", "some/pairs", sets, Layout())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"}\n', r"a.jsonl, row 2: .*targ"),
        ("a.jsonl", '{"source": "a", "target": " "}\n', r"a.jsonl, row 1: target must hold a text"),
        ("a.jsonl", '{"source": "a", "target": 3}\n', r"a.jsonl, row 1: target must be a text"),
        ("a.jsonl", "[1]\n", r"a.jsonl, row 1: each row must be a JSON object"),
        ("a.csv", "source,target\na,b\na\n", r"a.csv, row 3: a row must have 2 cells"),
        ("a.csv", "english,target\na,b\n", r"must have a column 'source'.* --column source=COL"),
        ("a.jsonl", "", r"must have at least one row; got none"),
        ("a.pdf", "x", r"a file must be one of .*\.csv"),
    ],
)
def test_bad_rows_say_where_they_are(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_rows("translation", str(file))


def test_no_such_file() -> None:
    with pytest.raises(DataError, match=r"data must be a file or folder that exists"):
        read_rows("translation", "no/such/file.jsonl")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"the Hub cannot be reached"):
        read_rows("translation", "nobody/no-such-pairs")
