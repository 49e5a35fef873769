"""Compiles small CUDA sources against the emulator, once per run of the tests."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import filelock
import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-DFASTATTN_EMULATE"]

CompileObject = Callable[..., Path]
CompileLibrary = Callable[..., ctypes.CDLL]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the parallel processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "emulator"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def compile_object(build_folder: Path) -> CompileObject:
    """compile_object(include, source, *flags) -> its object, made by whoever needs it first."""
    if shutil.which(CXX) is None:
        pytest.skip(f"there is no C++ compiler {CXX}")

    def compile_object(include: Path, source: Path, *flags: str) -> Path:
        key = hashlib.sha256(f"{source} {include} {flags}".encode()).hexdigest()[:16]
        target = build_folder / f"{source.stem}-{key}.o"
        with filelock.FileLock(f"{target}.lock"):
            if not target.exists():
                partial = target.with_suffix(".partial")
                language = ["-x", "c++", str(source)]
                _run([CXX, *FLAGS, *flags, f"-I{include}", "-c", *language, "-o", str(partial)])
                partial.rename(target)
        return target

    return compile_object


def _replace_once(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    count = text.count(old)
    assert count == 1, f"{path.name} must contain this once, not {count} times:\n{old}"
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="session")
def changed_sources(build_folder: Path) -> Callable[[Sequence[tuple[str, str, str]]], Path]:
    """changed_sources([(file of csrc/cuda, old, new), ...]) -> csrc with those changes."""

    def changed_sources(changes: Sequence[tuple[str, str, str]]) -> Path:
        key = hashlib.sha256(repr(changes).encode()).hexdigest()[:16]
        target = build_folder / f"sources-{key}"
        with filelock.FileLock(f"{target}.lock"):
            if not target.exists():
                partial = target.with_suffix(".partial")
                ignored = shutil.ignore_patterns("cpu", "bindings")
                shutil.copytree(CSRC, partial, ignore=ignored, dirs_exist_ok=True)
                for file, old, new in changes:
                    _replace_once(partial / "cuda" / file, old, new)
                partial.rename(target)
        return target

    return changed_sources


@pytest.fixture(scope="session")
def compile_library(build_folder: Path, compile_object: CompileObject) -> CompileLibrary:
    """compile_library(name, [(include, source, *flags), ...], *flags) -> a library, loaded.

    The last flags are for the emulator, which comes with the sources, too.
    """

    def compile_library(name: str, sources: Sequence[Sequence[Any]], *flags: str) -> ctypes.CDLL:
        runtime = [(CSRC, source) for source in sorted((CSRC / "emulator").glob("*.cpp"))]
        objects = [compile_object(*source, *flags) for source in [*runtime, *sources]]
        target = build_folder / f"{name}-{os.getpid()}.so"
        _run([CXX, "-shared", "-o", str(target), *map(str, objects), "-lpthread"])
        return ctypes.CDLL(str(target))

    return compile_library
