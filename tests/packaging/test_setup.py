"""The build script says what is missing and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py's build_ext in a copy of what it reads, with changes to the environment."""
    pytest.importorskip("pybind11")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "fastattn").mkdir()
    shutil.copy(ROOT / "fastattn/__init__.py", tmp_path / "fastattn")
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | environment,
    )


def test_missing_compiler(tmp_path: Path) -> None:
    result = build(tmp_path, CXX="no-such-compiler")
    assert result.returncode != 0
    assert "needs a C++17 compiler; found none (no-such-compiler)" in result.stderr
    assert "apt-get install g++" in result.stderr
    assert "FASTATTN_SKIP_NATIVE=1" in result.stderr


def test_bad_number_of_jobs(tmp_path: Path) -> None:
    result = build(tmp_path, MAX_JOBS="many")
    assert result.returncode != 0
    assert "MAX_JOBS must be a positive integer; got 'many'" in result.stderr


def test_bad_cmake_argument(tmp_path: Path) -> None:
    result = build(tmp_path, CMAKE_ARGS="-DCMAKE_CXX_COMPILER=/no/such/compiler")
    assert result.returncode != 0
    assert "failed at this step: configure" in result.stderr
    assert "FASTATTN_SKIP_NATIVE=1" in result.stderr


def test_skip_native(tmp_path: Path) -> None:
    result = build(tmp_path, FASTATTN_SKIP_NATIVE="1")
    assert result.returncode == 0, result.stderr
    assert "installing without the native module" in result.stdout
    assert not list(tmp_path.rglob("_C*.so"))
