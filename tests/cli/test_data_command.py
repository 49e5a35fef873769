"""``fastattn data``: its options, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastattn.cli.app import app
from fastattn.data.tasks import TASKS

pytest.importorskip("rensa")
pytest.importorskip("ftfy")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *arguments])
    return result.exit_code, result.output


def source(folder: Path) -> str:
    path = folder / "reviews.csv"
    rows = [f"film {i * 7919:x} was {i * i * 31:x},{i % 2}" for i in range(60)]
    path.write_text("\n".join(["body,stars", *rows, rows[0]]), encoding="utf-8")
    return str(path)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from fastattn.cli.app import app\n"
        "result = CliRunner().invoke(app, ['data', 'build', '--help'])\n"
        "heavy = {'numpy', 'pandas', 'sklearn', 'cleanlab', 'pyarrow', 'jinja2', 'rensa'}\n"
        "print(result.exit_code, sorted(heavy & set(sys.modules) - {'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "[]"], done.stderr


def test_help_names_the_tasks() -> None:
    _, output = run("build", "--help")
    words = set(output.replace(",", " ").replace(".", " ").split())
    assert set(TASKS) <= words


def test_build_and_show(tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    code, output = run(
        *("build", source(tmp_path), "--output", folder, "--suspects", "off"),
        *("--text-column", "body", "--label-column", "stars", "--label-map", "0=bad"),
        *("--label-map", "1=good", "--test-size", "0.2", "--validation-size", "6"),
    )
    assert code == 0, output
    for words in (
        "read        61 rows for classification",
        "splits      train 42, validation 6, test 12; no text and no near-duplicate is in two",
        "rejected    1 duplicate",
        "labels      bad 21, good 21",
        "padding     ",
        f"report      {folder}/report.html",
    ):
        assert words in output
    code, shown = run("show", folder, "--rows", "1")
    assert code == 0 and output.splitlines()[-1] in shown
    row = json.loads(shown.splitlines()[-1].removeprefix("test").strip())
    assert row.keys() == {"text", "label"} and row["label"] in ("bad", "good")


def test_bad_input_is_an_error_of_its_own(tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    code, output = run("build", source(tmp_path), "--output", folder)
    assert code == 2 and "must have a column 'text'; got none. Its columns are: body" in output
    code, output = run("build", str(tmp_path / "none.csv"), "--output", folder)
    assert code == 2 and "must be a file or folder that exists" in output
    code, output = run("build", "a.csv", "--output", folder, "--label-map", "spam")
    assert code == 2 and "label_map must be OLD=NEW; got 'spam'. Write both." in output
    for words, message in (
        (["--label-map", "a=b", "--label-map", "a=c"], "given once for each name; got a=b and a=c"),
        (["--task", "translation", "--text-column", "en"], "Use --column source=en or --column ta"),
        (["--task", "masked-lm", "--label-column", "x"], "label_column must be left out for the t"),
        (
            ["--text-column", "a", "--column", "text=b"],
            "must not name different columns for",
        ),
        (["--task", "ner", "--text-column", "a"], "task must be one of"),
    ):
        code, output = run("build", "a.csv", "--output", folder, *words)
        assert code == 2 and message in output
    code, output = run("build", "a.csv", "--output", folder, "--test-size", "some")
    assert code == 2 and "test_size must be a whole number of rows" in output
    code, output = run("show", str(tmp_path))
    assert code == 2 and "must be one that `fastattn data build` made" in output
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ftfy" else real(name)
    )
    code, output = run("build", source(tmp_path), "--output", str(tmp_path / "out"))
    assert code == 2
    assert "ftfy must be installed; got none. Run `pip install 'fastattn[data]'`." in output
