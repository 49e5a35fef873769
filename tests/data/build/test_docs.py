"""The Python of docs/data.md runs, block by block, in its order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastattn.data.build.report import REASONS
from fastattn.data.tasks import TASKS

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert len(blocks) == 2
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), names)
    assert all(f"`{word}`" in text for word in (*TASKS, *REASONS))
