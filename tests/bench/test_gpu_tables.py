"""The tables that a GPU fills, filled without one: by Triton's interpreter, and from times."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastattn.backends import triton
from fastattn.backends.cuda import order
from fastattn.backends.triton import config

pytest.importorskip("triton")
PATH = Path(__file__).resolve().parents[2] / "bench" / "gpu_tables.py"


@pytest.fixture
def gpu_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_tables", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not triton.INTERPRETED, reason="on a GPU it takes minutes")
def test_tiles_are_measured(gpu_tables: ModuleType, tmp_path: Path) -> None:
    """The fastest of two candidates; one that fails is none."""
    workload = gpu_tables.Workload(16, 32, True, tokens=32, width=16)
    good, bad = config.Config(32, 32, 4, 1), config.Config(24, 24, 4, 1)
    before = dict(config.measured())
    rows = gpu_tables.tune([workload], ("fwd",), lambda kernel, head_dim: [bad, good], rounds=1)
    assert config.measured() == before
    (row,) = rows
    assert row["config"] == list(good) and row["time_ms"] > 0 and row["target"] == "interpreter"
    shape = config.Shape("fwd", config.HALF, 64, True, 256)
    assert config.row_key(row) == ("interpreter", shape)

    path = tmp_path / "measured.json"
    path.write_text("[]\n")
    other = {**row, "dropout": False}
    gpu_tables.merge(path, [row, other], config.row_key)
    gpu_tables.merge(path, [{**row, "date": "later"}], config.row_key)
    assert json.loads(path.read_text()) == [other, {**row, "date": "later"}]


@pytest.mark.parametrize("kernel", ["fwd", "dkdv", "dq"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_candidates_are_what_the_kernels_take(
    gpu_tables: ModuleType, kernel: str, head_dim: int
) -> None:
    found = gpu_tables.candidates(kernel, head_dim)
    assert 10 <= len(found) == len(set(found)) <= 30
    assert all(x.block_m % 16 == 0 and x.block_n % 16 == 0 for x in found)


def case(head_dim: int, dropout_p: float, **median_ms: float) -> dict[str, Any]:
    times = {f"fastattn-{name}": {"median_ms": ms} for name, ms in median_ms.items()}
    return {
        "head_dim": head_dim,
        "dropout_p": dropout_p,
        "forward_backward": {"times": {**times, "sdpa-flash": {"median_ms": 0.1}}},
    }


def test_the_order_follows_the_times(gpu_tables: ModuleType) -> None:
    """By the geometric mean over lengths; a case that one of the two refused says nothing."""
    result = {
        "date": "2026-11-28T10:00:00",
        "machine": {"gpu": {"name": "a GPU", "compute_capability": "9.0"}},
        "cases": [
            case(64, 0.0, cuda=1.0, triton=2.0),
            case(64, 0.0, cuda=8.0, triton=1.0),
            case(64, 0.1, cuda=1.0, triton=1.5),
            case(128, 0.0, triton=1.0),
        ],
    }
    common = {"target": "sm_90", "gpu": "a GPU", "date": "2026-11-28", "head_dim": 64}
    assert gpu_tables.order_rows(result) == [
        {**common, "dropout": False, "first": "triton", "cuda_over_triton": 2.0},
        {**common, "dropout": True, "first": "cuda", "cuda_over_triton": 0.667},
    ]


def test_rows_of_the_order_are_whole() -> None:
    rows = json.loads(order.MEASURED.read_text("utf-8"))
    assert len({order.row_key(row) for row in rows}) == len(rows)
    for row in rows:
        assert row["first"] in (order.CUDA, order.TRITON)
        assert row["head_dim"] in order.HEAD_DIMS and row["gpu"] and row["date"]
