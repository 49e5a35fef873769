"""Rows of every kind of file, with the file and row they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastattn.data.readers import BadRow, ReadOptions, SourceFile, read_any_rows, read_rows
from fastattn.data.readers.record import Record
from fastattn.errors import DataError

TEXTS = ['He said "no", and left.', "NA", "Two\nlines", "naïve café", "null\u2028x", " x\ty "]


def rows_of(path: Path, task: str = "classification", **options: Any) -> list[tuple[int, Any]]:
    records = list(read_rows(path, task, ReadOptions(**options)))
    assert {record.file for record in records} <= {path.name}
    return [(record.row, record.fields) for record in records]


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.jsonl", "a.json", "a.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"text": TEXTS, "label": list("abcabc")})
    path = tmp_path / name
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif path.suffix == ".json":
        table.to_json(path, orient="records")
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".TSV" else ",")
    fields = [fields for _, fields in rows_of(path)]
    assert fields == table.to_dict("records")


def test_a_row_is_the_line_it_starts_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\r\n"a\r\nb",1\r\n\r\nc,2\r\n')
    assert rows_of(path) == [
        (2, {"text": "a\r\nb", "label": "1"}),
        (5, {"text": "c", "label": "2"}),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}', encoding="utf-8")
    assert rows_of(path) == [(1, {"text": "a"}), (3, {"text": "b"})]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    content = {
        "a.csv": "text\nnaïve café\n",
        "a.jsonl": '{"text": "naïve café"}\n',
        "a.txt": "naïve café\n",
    }[name]
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    marked = encoding in ("utf-8-sig", "utf-16", "utf-32")
    rows = rows_of(path, encoding="utf-8" if marked else encoding)
    assert [fields for _, fields in rows] == [{"text": "naïve café"}]


def test_an_unknown_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x", encoding="utf-8")
    for encoding in ("utf8000", "", "hex", "idna", "undefined"):
        with pytest.raises(DataError, match=r"encoding must be one of text that Python knows; got"):
            rows_of(path, encoding=encoding)


def test_delimiter_and_quotes_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text;label\n"Hello;1\n', encoding="utf-8")
    assert rows_of(path, delimiter=";", quotes=False) == [(2, {"text": '"Hello', "label": "1"})]
    path.write_text("text\tlabel\na\t1\n", encoding="utf-8")
    for tab in ("\t", "\\t", "tab"):
        assert rows_of(path, delimiter=tab) == [(2, {"text": "a", "label": "1"})]
    for bad in ("::", "", '"', "\n"):
        with pytest.raises(DataError, match=r"delimiter must be one character, and .*; got '"):
            rows_of(path, delimiter=bad)


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,,\na,1,2\n", encoding="utf-8")
    assert rows_of(path) == [(2, {"text": "a"})]


TEXT = {"text": "--column text=COLUMN"}
BAD_FILES = {
    "empty.csv": (b"", r"empty.csv must begin with a row of column names; got an empty file"),
    "twice.csv": (b"text,label,text\n", r"must have different names; got 'text' 2 times. Rename"),
    "comma.tsv": (b"text,label\na,1\n", r"must have a column 'text'; got none. The first row "
                  r"seems to be separated by ',': name it with `fastattn data build --delimiter`"),
    "other.csv": (b"body,label\na,1\n", r"'text'; got none. Its columns are: body, label. Name the "
                  r"one that is meant with --column text=COLUMN"),
    "open.csv": (b'text,label\na,1\n"b,2\nc,3\n', r"open.csv, row 3: a cell must end with a quote "
                 r"if it begins with one.* up to row 4. Close the quote, .*`fastattn data build "
                 r"--no-quotes`"),
    "ragged.csv": (b"text,label\na,1\nb,2,3\n", r"ragged.csv, row 3: a row must have 2 cells, as "
                   r"the header has; got 3. Quote the texts"),
    "quote.csv": (b'text,label\n"a"b,1\n', r"quote.csv, row 2: a row must be made of whole cells; "
                  r".*Double the quotes"),
    "nul.csv": (b"text,label\na\0,1\n", r"nul.csv, row 2: a text must hold no NUL byte; got one at "
                r"position 1 .*`fastattn data build --encoding utf-16-le`"),
    "latin.csv": (b"text,label\na,1\ncaf\xe9,1\n", r"latin.csv, row 3: a text must be UTF-8; got "
                  r"byte 0xe9. Save the file as UTF-8, or .*`fastattn data build --encoding`"),
    "header.csv": (b"t\xe9xt,label\n", r"header.csv, row 1: a text must be UTF-8"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', r"latin.jsonl, row 2: .* byte 0xe9"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken.jsonl, row 2: each line must be a "
                     r"JSON object; got Expecting value.*Correct that line"),
    "list.jsonl": (b"[1, 2]\n", r"list.jsonl, row 1: each row must be a JSON object; got \[1, 2\]"),
    "part.jsonl": (b'{"tokens": ["a", "\\ud83d"]}\n', r"part.jsonl, row 1: .* half of a surrogate"),
    "name.jsonl": (b'{"text": "a", "\\ud83d": 1}\n', r"name.jsonl, row 1: .* half of a surrogate"),
    "zero.jsonl": (b'{"a": {"b": ["x\\u0000"]}}\n', r"zero.jsonl, row 1: a text must hold no NUL"),
    "twice.jsonl": (b'{"text": "a", "text": "b"}\n', r"twice.jsonl, row 1: each line must be a "
                    r"JSON object; got the name 'text' twice in one object. Correct that line"),
    "digits.jsonl": (b'{"label": ' + b"1" * 5000 + b"}\n", r"digits.jsonl, row 1: .*Exceeds the "
                     r"limit"),
    "array.jsonl": (b'[\n{"text": "a"}\n]', r"array.jsonl, row 1: .* Rename the file to .json"),
    "twice.json": (b'[{"a": 1, "a": 2}]', r"twice.json must be JSON; got the name 'a' twice in one "
                   r"object. Correct it"),
    "half.jsonl": (b'{"text": "\\ud83d"}\n', r"half.jsonl, row 1: .* half of a surrogate pair"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", r"deep.jsonl, row 1: each line must be a JSON object"),
    "latin.json": (b'[\n"\xe9"]', r"latin.json, row 2: a text must be UTF-8; got byte 0xe9"),
    "lines.json": (b'{"a": 1}\n{"a": 2}\n', r"lines.json must be JSON; got Extra data.*Rename it "
                   r"to .jsonl"),
    "number.json": (b"7", r"number.json must be an array of objects, or SQuAD's .*; got 7"),
    "junk.parquet": (b"not parquet, at all", r"junk.parquet must be a Parquet file"),
    "wide.txt": (b"\xff\xfea", r"wide.txt must be UTF-16 text; got .* near row 1"),
    "rows.xlsx": (b"", r"a file must be one of .csv, .*; got 'rows.xlsx'. Convert"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_a_message(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(path, required=TEXT if path.suffix in (".csv", ".tsv") else {}))


def test_a_parquet_file_must_have_the_columns(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    pd.DataFrame({"body": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet must have a column 'text'; .* are: body. Name"):
        list(read_rows(tmp_path / "a.parquet", required=TEXT))


def test_a_parquet_file_must_have_different_columns(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    arrays = [pa.array(["a"]), pa.array(["0"]), pa.array(["1"])]
    table = pa.Table.from_arrays(arrays, names=["text", "label", "label"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet must have different names; got 'label' 2 time"):
        list(read_rows(tmp_path / "a.parquet"))


def test_characters_of_parquet_are_those_of_other_files(tmp_path: Path) -> None:
    """What a build takes it must be able to write, and others to read again."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": ["a", "b\0"], "tags": [["x"], ["y"]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = list(read_any_rows(SourceFile(tmp_path / "a.parquet", "a.parquet")))
    assert [type(row) for row in rows] == [Record, BadRow]
    assert rows[1].row == 2 and "NUL" in rows[1].error().args[0]
    raw = pa.array([b"caf\xe9"]).cast(pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 1, raw.buffers())
    parquet.write_table(pa.table({"text": strings}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet must be a Parquet file; got .*byte 0xe9"):
        list(read_rows(tmp_path / "b.parquet"))


def test_what_is_left_of_a_bad_row_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": [{"\\ud83d": "\\ud83d"}], "b": 1}\n["\\ud83d"]\n', encoding="utf-8")
    rows = list(read_any_rows(SourceFile(path, "a.jsonl")))
    contents = [row.content for row in rows if isinstance(row, BadRow)]
    assert contents == [{"a": [{"\\ud83d": "\\ud83d"}], "b": 1}, ["\\ud83d"]]


def test_bad_rows_do_not_end_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\na,1\nb\n"c"x,1\ncaf\xe9,1\nd,2\n')
    rows = list(read_any_rows(SourceFile(path, "a.csv")))
    assert [type(row) for row in rows] == [Record, BadRow, BadRow, BadRow, Record]
    assert [row.row for row in rows] == [2, 3, 4, 5, 6]
    assert [row.content for row in rows if isinstance(row, BadRow)] == [
        "b", '"c"x,1', "caf\\xe9,1"
    ]  # fmt: skip


def test_a_cell_may_be_huge(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\n{'word ' * 100_000},1\n", encoding="utf-8")
    assert len(rows_of(path)[0][1]["text"]) == 500_000


def test_a_file_that_cannot_be_read_gets_a_message(tmp_path: Path) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("text\n", encoding="utf-8")
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(DataError, match=r"secret.csv must be readable; got Permission denied"):
            rows_of(path)
    else:
        pytest.skip("this user may read everything")


CONLL = """\
-DOCSTART- -X- O O

EU NNP I-NP B-ORG
rejects VBZ I-VP O

# sent_id = 7
# NN I-NP O
new\u00a0york NNP I-NP B-LOC


last NN I-NP O"""


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.iob2"])
def test_conll(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(CONLL, encoding="utf-8")
    assert rows_of(path, task="token-classification") == [
        (3, {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        (7, {"tokens": ["#", "new\u00a0york"], "tags": ["O", "B-LOC"]}),
        (11, {"tokens": ["last"], "tags": ["O"]}),
    ]
    assert rows_of(path, task="token-classification", tag_column=1)[0][1]["tags"] == ["NNP", "VBZ"]


def test_conll_with_tabs_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes(b"New York\tB-LOC\r\nis\tO\r\n\r\n")
    fields = {"tokens": ["New York", "is"], "tags": ["B-LOC", "O"]}
    assert rows_of(path, task="token-classification") == [(1, fields)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU\n", r"a.conll, row 1: a line must have a token and a tag, 2 columns; got 'EU'"),
        ("EU O\n\na O\nis NN O\n", r"row 4: a line must have 2 columns, as the lines before; got "
         r"3 in 'is NN O'"),
        ("a\0 O\n", r"row 1: a text must hold no NUL byte"),
    ],
)  # fmt: skip
def test_bad_conll(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.conll"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        rows_of(path, task="token-classification")


def test_squad(tmp_path: Path) -> None:
    question = {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    impossible = {"id": "2", "question": "When?", "answers": [], "is_impossible": True}
    paragraph = {"context": "Ann came.", "qas": [question, impossible]}
    document = {"version": "2.0", "data": [{"title": "T", "paragraphs": [paragraph]}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    first, second = rows_of(path, task="question-answering")
    assert first == (
        1,
        {
            "id": "1",
            "title": "T",
            "context": "Ann came.",
            "question": "Who?",
            "answers": {"text": ["Ann"], "answer_start": [0]},
        },
    )
    assert second[1]["answers"] == {"text": [], "answer_start": []}
    paragraph["qas"] = [{"id": "3", "question": "Why?"}]
    path.write_text(json.dumps(document), encoding="utf-8")
    # Who has taken the answers away has not said that there are none.
    assert "answers" not in rows_of(path, task="question-answering")[0][1]
    paragraph["qas"] = ["Who?"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=r"as SQuAD; got TypeError .* in article 0, after"):
        rows_of(path, task="question-answering")
    paragraph["qas"] = [question]
    del question["question"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match=r"as SQuAD; got KeyError 'question' in article 0, after"):
        rows_of(path, task="question-answering")


def test_a_text_file_is_lines_or_one_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\n  two\n", encoding="utf-8")
    assert rows_of(path) == [(1, {"text": "one"}), (3, {"text": "  two"})]
    assert rows_of(path, whole_files=True) == [(1, {"text": "one\n\n  two"})]


def test_hub_sets_have_names_for_classes() -> None:
    datasets = pytest.importorskip("datasets")
    from fastattn.data.readers.hub import read_hub_sets

    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"]))
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]), tags=tags
    )
    columns = {"text": ["a", "b"], "label": [1, -1], "tags": [[0, 1], []]}
    table = datasets.Dataset.from_dict(columns, features=features)
    rows = list(read_hub_sets("me/it", {"dev": table, "extra": table}))
    assert rows[0] == (
        "validation",
        Record("me/it[dev]", 1, {"text": "a", "label": "yes", "tags": ["O", "B-X"]}),
    )
    assert rows[1][1].fields["label"] is None
    assert rows[2][0] is None and len(rows) == 4
