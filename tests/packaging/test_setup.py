"""The build script says what is missing and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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


@pytest.fixture
def script() -> ModuleType:
    """setup.py as a module, which builds nothing."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("fastattn_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cuda_may_be_switched_off(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTATTN_CUDA", "0")
    assert str(script.find_cuda()) == (
        "without CUDA kernels: switched off by FASTATTN_CUDA=0 when it was built"
    )


def test_a_wrong_wish_for_cuda(tmp_path: Path) -> None:
    result = build(tmp_path, FASTATTN_CUDA="yes")
    assert result.returncode != 0
    assert "fastattn: FASTATTN_CUDA must be 0, 1 or unset; got 'yes'." in result.stderr


def test_missing_cuda_compiler(tmp_path: Path) -> None:
    result = build(tmp_path, FASTATTN_CUDA="1", CUDA_HOME="/no/such/toolkit")
    assert result.returncode != 0
    assert (
        "FASTATTN_CUDA=1 asks for the CUDA kernels; there was no nvcc in CUDA_HOME, "
        "/no/such/toolkit, when it was built." in result.stderr
    )
    assert "pip install -r requirements-cuda.txt" in result.stderr


def test_without_a_cuda_compiler(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTATTN_CUDA", raising=False)
    monkeypatch.setenv("CUDA_HOME", "/no/such/toolkit")
    assert "there was no nvcc in CUDA_HOME" in script.find_cuda().skipped


def test_a_cuda_compiler_that_does_not_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.delenv("FASTATTN_CUDA", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert script.find_cuda().skipped == f"{nvcc} did not run when it was built"


@pytest.mark.parametrize(
    ("environment", "gpu", "built"),
    [
        ({}, "", "nvidia-smi saw no GPU when it was built (FASTATTN_CUDA=1 builds them"),
        ({}, "8.0", "with CUDA kernels for sm_80, by nvcc 13.0.88"),
        ({"FASTATTN_CUDA": "1"}, "", "with CUDA kernels for sm_75 sm_80, by nvcc 13.0.88"),
        ({"FASTATTN_CUDA_ARCHITECTURES": "75"}, "", "with CUDA kernels for sm_75, by nvcc 13.0.88"),
    ],
)
def test_cuda_is_built_for_a_gpu_or_where_it_is_asked_for(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    gpu: str,
    built: str,
) -> None:
    nvcc = "case $1 in --version) echo release 13.0, V13.0.88;; --dryrun) echo '#$ TOP=/cuda';;"
    programs = {"nvcc": f"{nvcc} *) echo sm_75 sm_80;; esac", "nvidia-smi": f"echo {gpu}"}
    for name, program in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("CUDA_HOME", "CUDA_PATH", "FASTATTN_CUDA", "FASTATTN_CUDA_ARCHITECTURES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert built in str(script.find_cuda())


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [("all", (80, 90, 120)), ("90", (90,)), ("120;80", (80, 120)), ("90, 80", (80, 90))],
)
def test_chosen_architectures(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, wish: str, chosen: tuple[int, ...]
) -> None:
    monkeypatch.setenv("FASTATTN_CUDA_ARCHITECTURES", wish)
    assert script.choose_architectures([80, 90, 120]) == chosen


def test_without_a_gpu_all_architectures_are_chosen(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTATTN_CUDA_ARCHITECTURES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # and no nvidia-smi
    assert script.choose_architectures([75, 80, 90]) == (75, 80, 90)


@pytest.mark.parametrize(
    ("gpus", "chosen"),
    [
        ("9.0\n9.0\n", (90,)),
        ("8.6\n7.5\n", (75, 86)),
        ("8.7\n", (86,)),
        ("10.3\n", (100,)),
        ("7.0\n", (75, 80, 86, 89, 90, 100, 120)),  # too old for any kernel
    ],
)
def test_architectures_of_the_gpus_here(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: str,
    chosen: tuple[int, ...],
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{gpus}'\n")
    program.chmod(0o755)
    monkeypatch.delenv("FASTATTN_CUDA_ARCHITECTURES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert script.choose_architectures([75, 80, 86, 89, 90, 100, 120]) == chosen


def test_an_unknown_architecture(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTATTN_CUDA_ARCHITECTURES", "70;80")
    with pytest.raises(SystemExit) as stopped:
        script.choose_architectures([75, 80])
    assert str(stopped.value) == (
        'fastattn: FASTATTN_CUDA_ARCHITECTURES must be "all", or a list such as "80;90" of 75 80; '
        "got '70;80'."
    )


def test_missing_compiler(tmp_path: Path) -> None:
    result = build(tmp_path, CXX="no-such-compiler")
    assert result.returncode != 0
    assert "needs g++ 11 or newer; found none (no-such-compiler)" in result.stderr
    assert "apt-get install g++" in result.stderr
    assert "FASTATTN_SKIP_NATIVE=1" in result.stderr


def test_a_compiler_that_is_not_gcc(tmp_path: Path) -> None:
    # What CMake would find out of clang.
    found = {"COMPILER_ID": "Clang", "COMPILER_VERSION": "14.0.6", "COMPILER_ID_RUN": "TRUE"}
    found |= {"STANDARD_COMPUTED_DEFAULT": "17", "EXTENSIONS_COMPUTED_DEFAULT": "ON"}
    arguments = " ".join(f"-DCMAKE_CXX_{name}={value}" for name, value in found.items())
    result = build(tmp_path, CMAKE_ARGS=arguments)
    assert result.returncode != 0
    assert "the compiler must be g++ (tried from 11 on); got Clang 14.0.6." in result.stderr
    assert "failed at this step: configure" in result.stderr


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
