"""Small sources, and a build of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rensa")
pytest.importorskip("ftfy")

from fastattn.data.build import BuildConfig, build

Build = Callable[..., "Built"]

_SUBJECTS = [
    "film",
    "story",
    "music",
    "cast",
    "ending",
    "plot",
    "camera",
    "script",
    "actor",
    "scene",
]
_WORDS = {
    "good": ["wonderful", "brilliant", "lovely", "superb", "charming"],
    "bad": ["terrible", "boring", "awful", "dreadful", "clumsy"],
}


class Built:
    """A built folder and what is in it."""

    def __init__(self, folder: Path, report: dict[str, Any]) -> None:
        self.folder = folder
        self.report = report

    def rows(self, split: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def rejects(self) -> list[dict[str, Any]]:
        lines = (self.folder / "rejects.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(reject["row"], reject["reason"]) for reject in self.rejects]

    @property
    def description(self) -> dict[str, Any]:
        return json.loads((self.folder / "dataset.json").read_text(encoding="utf-8"))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


def reviews(number: int = 100) -> list[dict[str, str]]:
    """Different rows of two classes, with no near-duplicates among them."""
    rows = []
    for i in range(number):
        label = "good" if i % 2 else "bad"
        word = _WORDS[label][i // 2 % 5]
        first, second = _SUBJECTS[i % 10], _SUBJECTS[(i * 7 + i // 10) % 10]
        text = f"{i * 7919:x} the {first} was {word} {i * i * 31:x} and so {i * 104729:x} {second}"
        rows.append({"text": text, "label": label})
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def built(tmp_path: Path) -> Build:
    """Builds a list of rows, or sources, with settings."""

    def run(rows: list[dict[str, Any]] | list[str], output: str = "out", **settings: Any) -> Built:
        sources = [str(row) for row in rows]
        if rows and isinstance(rows[0], dict):
            sources = [str(write_lines(tmp_path / "rows.jsonl", rows))]  # type: ignore[arg-type]
        settings = {"suspects": "off", "progress": False, **settings}
        folder = tmp_path / output
        return Built(folder, build(BuildConfig(sources, str(folder), **settings)))

    return run
