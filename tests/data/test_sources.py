"""All rows of a source: files of a user's own, good and bad, folders, and data sets of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastattn.data import sources
from fastattn.data.sources import Source, load_copy, read, read_rows
from fastattn.data.tasks import Layout
from fastattn.errors import DataError

TEXTS = ['He said "no", and left.', "NA", "Two\nlines", "naïve café", "null"]
LABELS = [1, 0, 0, 1, 1]


def write(path: Path, texts: list[str] = TEXTS, labels: list[Any] = LABELS) -> str:
    """Writes the rows in the format of the name."""
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"text": texts, "label": labels})
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif path.suffix == ".json":
        table.to_json(path, orient="records")
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def columns(source: Source) -> tuple[list[str], list[str]]:
    rows = source.sets["train"]
    return [row["text"] for row in rows], [row["label"] for row in rows]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "A.CSV"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    source = read(path)
    assert columns(source) == (TEXTS, [str(label) for label in LABELS])
    assert source.name == path


def test_a_folder_of_text_files_for_each_class(tmp_path: Path) -> None:
    for name in ("train/pos/1.txt", "train/neg/1.txt", "test/pos/2.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    sets = read(str(tmp_path)).sets
    assert {row["label"] for row in sets["train"]} == {"neg", "pos"}
    assert sets["test"] == [{"text": "text of test/pos/2.txt", "label": "pos"}]


def test_columns_can_be_named_in_two_ways(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,review.body,stars\n1,good,5\n2,bad,1\n", encoding="utf-8")
    expected = (["good", "bad"], ["5", "1"])
    assert columns(read(str(path), "review.body", "stars")) == expected
    named = {"text": "review.body", "label": "stars"}
    assert columns(read(str(path), column=named)) == expected
    assert columns(read(str(path), "review.body", column=named)) == expected
    message = r"text_column and column must not name different columns .* 'id' and 'review.body'"
    with pytest.raises(DataError, match=message):
        read(str(path), "id", column=named)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\ngood,1\r\nbad,0\r\n")
    assert columns(read(str(path))) == (["good", "bad"], ["1", "0"])


def test_rows_without_a_text_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ['{"text": "a", "label": 1}', '{"text": null, "label": 0}', '{"text": NaN, "label": 0}',
            "", '{"label": 1, "text": " "}', '{"label": "b b", "text": "x"}']  # fmt: skip
    path.write_text("\n".join(rows), encoding="utf-8")
    source = read(str(path))
    assert columns(source) == (["a", "x"], ["1", "b b"])
    assert source.empty == {"train": 3}


BAD: dict[str, tuple[bytes, str]] = {
    "rows.csv": (b"body,label\nx,1\n", r"rows.csv must have a column 'text'; got none. Its columns "
                 r"are: body, label. Name the one that is meant with --column text=COLUMN"),
    "nolabel.csv": (b"text,stars\nx,1\n", r"must have a column 'label'; .* --column label=COLUMN"),
    "empty.csv": (b"", r"empty.csv must begin with a row of column names; got an empty file"),
    "header.csv": (b"text,label\n", r"header.csv must have at least one row; got none"),
    "blank.csv": (b"text,label\n ,1\n", r"must have at least one row; got 1 without a text"),
    "semicolon.csv": (b"text;label\na;1\n", r"seems to be separated by ';': name it with `fastattn "
                      r"data build --delimiter`, or save the file with ','"),
    "latin.csv": ("text,label\ncaf\u00e9,1\n".encode("latin-1"),
                  r"latin.csv, row 2: a text must be UTF-8; got byte 0xe9. Save the file as UTF-8"),
    "latin.jsonl": ('{"text": "caf\u00e9"}'.encode("latin-1"), r"latin.jsonl, row 1: .*UTF-8"),
    "ragged.csv": (b"text,label\na,1\nb,2,3\n", r"ragged.csv, row 3: .* got 3. Quote the texts"),
    "short.csv": (b"text,label\na,1\nb\n", r"short.csv, row 3: a row must have 2 cells"),
    "old.csv": (b"text,label\ra,1\rb,0\r", r"old.csv, row 1: a line must end with a line feed; got "
                r"a carriage return alone"),
    "broken.jsonl": (b'{"text": "a", "label": 1}\n{"text": \n',
                     r"broken.jsonl, row 2: each line must be a JSON object; got .*Correct"),
    "list.jsonl": (b"[1, 2]\n", r"list.jsonl, row 1: each row must be a JSON object; got \[1, 2\]"),
    "lacks.jsonl": (b'{"text": "a", "label": 1}\n{"label": 1}\n',
                    r"lacks.jsonl, row 2: a row must have a field 'text'; got label"),
    "numbers.jsonl": (b'{"text": 7, "label": 1}\n', r"row 1: text must be a text; got 7"),
    "unlabelled.csv": (b"text,label\na,1\nb,\n", r"unlabelled.csv, row 3: a row must have a label; "
                       r"got none. Add it or remove the row, or name .* --label-column"),
    "lists.jsonl": (b'{"text": "a", "label": [1, 2]}\n', r"row 1: a label must be a whole number "
                    r"or a string; got \[1, 2\]. Use --task multilabel"),
    "shares.jsonl": (b'{"text": "a", "label": 0.5}\n', r"row 1: a label must be a class.* got 0.5"),
    "junk.parquet": (b"not parquet, at all", r"junk.parquet must be a Parquet file"),
    "rows.xlsx": (b"", r"a file must be one of .csv, .*; got 'rows.xlsx'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_a_message(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(str(path))


def test_messages_name_no_option_that_finetune_lacks(tmp_path: Path) -> None:
    """Those of `data build` are named with their command."""
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            read(str(tmp_path / name))
        plain = str(caught.value).replace("`fastattn data build --", "")
        for option in ("encoding", "delimiter", "no-quotes", "label-map", "tag-column", "bad-rows"):
            assert f"--{option}" not in plain


def test_columns_that_a_task_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv")
    message = r"must name one of the columns text, label of the task classification; got 'txet'"
    with pytest.raises(DataError, match=message):
        read(path, column={"txet": "body"})


def test_numbers_stay_numbers_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "2020-01-01", "label": 3}), encoding="utf-8")
    assert columns(read(str(path))) == (["2020-01-01"], ["3"])


def test_a_set_of_a_folder_must_hold_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    (tmp_path / "test.csv").write_text("text,label\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"must have at least one row in its test set; got none"):
        read(str(tmp_path))


def test_files_that_are_not_read_are_told_of(tmp_path: Path) -> None:
    for name in ("train.csv", "eval.csv", "README.txt"):
        write(tmp_path / name)
    assert read(str(tmp_path)).notes == [
        "not read, for want of a name such as train, validation or test: eval.csv"
    ]


def test_a_folder_must_hold_something_to_train_on(tmp_path: Path) -> None:
    write(tmp_path / "test.csv")
    with pytest.raises(DataError, match=r"must hold a train file or split; got test. Name"):
        read(str(tmp_path))
    assert len(read(str(tmp_path / "test.csv")).sets["train"]) == len(TEXTS)


def test_questions_with_one_id(tmp_path: Path) -> None:
    none = {"text": [], "answer_start": []}
    rows = [
        {"id": "a", "context": "Ann left.", "question": "Who?", "answers": none},
        {"id": "b", "context": "Ann left.", "question": "When?", "answers": none},
        {"id": "a", "context": "Ann left.", "question": "Who?", "answers": none},
        {"id": "b", "context": "Bob left.", "question": "When?", "answers": none},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows[:3])), encoding="utf-8")
    assert len(read_rows("question-answering", str(path)).sets["train"]) == 3  # a duplicate
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    message = r"a.jsonl, row 4: a question must .*; got 'b', which row 2 of a.jsonl has .* Give"
    with pytest.raises(DataError, match=message):
        read_rows("question-answering", str(path))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder such as a clone of a Hub repository with two configurations."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "glue"
    readme = ["---", "configs:"]
    for name, column in (("sst2", "sentence"), ("cola", "words")):
        (folder / name).mkdir(parents=True)
        readme += [f"- config_name: {name}", "  data_files:"]
        for split in ("train", "test"):
            rows = [{column: f"{name} {split} {n}", "label": f"c{n % 2}"} for n in range(4)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
            readme += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*readme, "---", ""]), encoding="utf-8")
    return folder


class TestConfigurations:
    def test_one_is_named(self, copy: Path) -> None:
        source = read(str(copy), "sentence", data_config="sst2")
        assert source.name == f"{copy} (sst2)"
        assert [row["text"] for row in source.sets["test"]] == [f"sst2 test {n}" for n in range(4)]
        pairs = read_rows("masked-lm", str(copy), Layout(columns={"text": "words"}), "cola")
        assert [row["text"] for row in pairs.sets["train"]] == [f"cola train {n}" for n in range(4)]

    @pytest.mark.parametrize("name", ["mrpc", "SST2"])
    def test_one_that_is_not_there(self, copy: Path, name: str) -> None:
        message = (
            rf"data_config must name one of the configurations of .*glue, (sst2, cola|cola, sst2); "
            rf"got '{name}'. Set it with --data-config"
        )
        with pytest.raises(DataError, match=message):
            read(str(copy), data_config=name)

    def test_none_is_named(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the Hub says of a data set that has several."""
        monkeypatch.setattr(sources, "hub_is_reachable", lambda: True)
        with pytest.raises(DataError, match=r"data_config must name one of .* got None. Set it"):
            sources.download(str(copy))

    def test_a_file_has_none(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv")
        with pytest.raises(DataError, match=r"data_config must be left out for a file.*got 'sst2'"):
            read(path, data_config="sst2")
        with pytest.raises(DataError, match=r"data_config must be left out for the packaged IMDB"):
            read("imdb", data_config="sst2")
        with pytest.raises(DataError, match=r"data_config must be left out for a file"):
            load_copy(path, "sst2")

    def test_the_hub_is_asked_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, str | None]] = []

        def download(name: str, data_config: str | None) -> Any:
            asked.append((name, data_config))
            datasets = pytest.importorskip("datasets")
            return datasets.DatasetDict(
                train=datasets.Dataset.from_dict({"text": ["a"], "label": ["b"]})
            )

        monkeypatch.setattr(sources, "download", download)
        assert read("nyu-mll/glue", data_config="sst2").name == "nyu-mll/glue (sst2)"
        assert asked == [("nyu-mll/glue", "sst2")]
