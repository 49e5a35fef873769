"""Files of a user's own, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastattn.data.files import is_missing, read_file
from fastattn.errors import DataError

TEXTS = ['He said "no", and left.', "NA", "Two\nlines", "naïve café", "null"]
LABELS = [1, 0, 0, 1, 1]


def write(path: Path, texts: list[str] = TEXTS, labels: list[int] = LABELS) -> Path:
    """Writes the rows in the format of the name."""
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"text": texts, "label": labels})
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "A.CSV"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read_file(write(tmp_path / name), None, None)
    assert rows.texts == TEXTS
    assert [int(label) for label in rows.labels] == LABELS
    assert rows.origin == name


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,review,stars\n1,good,5\n2,bad,1\n", encoding="utf-8")
    rows = read_file(path, "review", "stars")
    assert (rows.texts, rows.labels) == (["good", "bad"], ["5", "1"])


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\ngood,1\n")
    assert read_file(path, None, None).texts == ["good"]


def test_json_objects_may_lack_fields_and_lines_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"label": 1, "text": "b"}\n', encoding="utf-8")
    rows = read_file(path, None, None)
    assert (rows.texts, rows.labels) == (["a", "b"], [None, 1])


def test_missing_cells() -> None:
    assert all(is_missing(value) for value in (None, float("nan"), "", "  "))
    assert not any(is_missing(value) for value in (0, 0.0, "0", False, "NA"))


BAD = {
    "rows.csv": (b"body,label\nx,1\n", r"text_column must name a column of rows.csv; got 'text'. "
                 r"Its columns are: body, label. Use --text-column"),
    "nolabel.csv": (b"text,stars\nx,1\n", r"label_column must name a column .* Use --label-column"),
    "empty.csv": (b"", r"text_column must name a column of empty.csv.*\(none\)"),
    "header.csv": (b"text,label\n", r"header.csv must have at least one row below its header"),
    "latin.csv": ("text,label\ncaf\u00e9,1\n".encode("latin-1"),
                  r"latin.csv must be UTF-8 text; got byte 0xe9 at position 14. Save it as UTF-8"),
    "latin.jsonl": ('{"text": "caf\u00e9"}'.encode("latin-1"), r"latin.jsonl must be UTF-8 text"),
    "ragged.csv": (b"text,label\na,1\nb,2,3\n", r"same number of cells in each row.*Quote"),
    "broken.jsonl": (b'{"text": "a", "label": 1}\n{"text": \n',
                     r"each line of broken.jsonl must be JSON; got .* in line 2. Correct"),
    "list.jsonl": (b"[1, 2]\n", r"must be a JSON object; got list in line 1. Write it as"),
    "numbers.jsonl": (b'{"text": 7, "label": 1}\n', r"must name a column of texts; .* holds 7"),
    "junk.parquet": (b"not parquet, at all", r"junk.parquet must be a Parquet file"),
    "rows.xlsx": (b"", r"data must be a .csv, .tsv, .jsonl, .parquet file; got 'rows.xlsx'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_a_message(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_file(path, None, None)


def test_a_missing_file_gets_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data must be a file that exists; got '.*none.csv'"):
        read_file(tmp_path / "none.csv", None, None)


def test_a_file_that_cannot_be_read_gets_a_message(tmp_path: Path) -> None:
    path = write(tmp_path / "secret.csv")
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(DataError, match=r"secret.csv must be readable; got Permission denied"):
            read_file(path, None, None)
    else:
        pytest.skip("this user may read everything")


def test_numbers_stay_numbers_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "2020-01-01", "label": 3}), encoding="utf-8")
    rows = read_file(path, None, None)
    assert (rows.texts, rows.labels) == (["2020-01-01"], [3])
