"""``pytest bench``: stores what was measured, with where and when, as JSON.

The file is build/bench/quick.json, or what ``--benchmark-json`` names;
``fastattn bench compare build/bench/quick.json`` compares it with the last committed result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastattn.bench import comparison, results

DEFAULT = Path(__file__).resolve().parents[1] / "build" / "bench" / "quick.json"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "benchmark_json", None) is None:
        DEFAULT.parent.mkdir(parents=True, exist_ok=True)
        config.option.benchmark_json = DEFAULT


@pytest.hookimpl
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json[comparison.HEAD] = results.provenance(
        "attention", "pytest bench", quick=True, partial=True
    )
