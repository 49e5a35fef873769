"""Small files of rows for each task, taken from the data that it brings itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastattn.finetune import FinetuneConfig
from fastattn.finetune.demos import messages, news, passages

DEMOS = {
    "multilabel": messages.rows,
    "token-classification": news.rows,
    "question-answering": passages.rows,
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as JSON Lines, or other text, and returns the path."""

    def to_file(name: str, content: str | list[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if not isinstance(content, str):
            content = "".join(f"{json.dumps(row)}\n" for row in content)
        path.write_text(content, encoding="utf-8")
        return str(path)

    return to_file


@pytest.fixture
def settings(tiny_bert: Path, tmp_path: Path) -> Callable[..., FinetuneConfig]:
    """Settings of a run of six steps for a task, on a file of its own."""

    def of_task(task: str, **changed: Any) -> FinetuneConfig:
        data = tmp_path / "rows.jsonl"
        if "data" not in changed:
            rows = DEMOS[task]("train")[:48]
            data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return FinetuneConfig(
            **{
                "task": task,
                "data": str(data),
                "model": str(tiny_bert),
                "output": str(tmp_path / "run"),
                "batch_size": 8,
                "eval_batch_size": 8,
                "max_length": 64,
                "max_steps": 6,
                "compare_steps": 0,
                "progress": False,
                **changed,
            }
        )

    return of_task


@pytest.fixture
def tiny_tokenizer(tiny_bert: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)
