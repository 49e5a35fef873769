"""What an installation must be: light to import, free of libtorch, usable without _C."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fastattn

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(fastattn.__file__).parent

# Found without importing it: reading its link table must not depend on loading it.
_spec = importlib.util.find_spec("fastattn._C")
NATIVE = Path(_spec.origin) if _spec is not None and _spec.origin else None
needs_native = pytest.mark.skipif(NATIVE is None, reason="installed without the native module")


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, which has none of the modules that the tests imported."""
    return subprocess.run(
        [sys.executable, *arguments, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | environment,
    )


def test_import_brings_in_torch_and_nothing_else_heavy() -> None:
    heavy = ["transformers", "typer", "rich", "pandas", "datasets", "accelerate", "sklearn"]
    heavy += ["triton", "torch._dynamo"]
    # What torch itself imports is not ours to answer for. Warnings from our modules are errors.
    code = (
        "import sys, torch; before = set(sys.modules); import fastattn; "
        f"print(sorted((set(sys.modules) - before) & set({heavy})))"
    )
    result = run_python(code, "-W", "error:::fastattn")
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("order", ["fastattn, torch", "torch, fastattn"])
def test_import_registers_the_operators(order: str) -> None:
    code = f"import {order}; print(torch.ops.fastattn.attention_fwd, 'attention' in vars(fastattn))"
    result = run_python(code)
    assert result.stdout == "fastattn.attention_fwd True\n", result.stderr


def test_versions_agree() -> None:
    assert metadata.version("fastattn") == fastattn.__version__
    top_changelog = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert top_changelog.startswith("[Unreleased]") or fastattn.__version__ in top_changelog


@needs_native
def test_native_module_carries_the_version() -> None:
    from fastattn import _C

    assert _C.__version__ == fastattn.__version__


@needs_native
def test_native_module_links_one_openmp_and_no_torch() -> None:
    assert NATIVE is not None
    ldd = subprocess.run(["ldd", str(NATIVE)], capture_output=True, text=True, check=True)
    libraries = [line.split()[0] for line in ldd.stdout.splitlines()]
    assert not [name for name in libraries if "torch" in name or "c10" in name]
    # The CUDA runtime is within, so that a machine without a driver can import the module.
    assert not [name for name in libraries if "cuda" in name]
    # torch bundles a runtime under this very name, so that the two are one in a process.
    openmp = [name for name in libraries if "omp" in name or "iomp" in name]
    assert openmp == ["libgomp.so.1"]


@needs_native
def test_native_module_exports_nothing_but_its_entry_point() -> None:
    """Kernels in hidden symbols cannot clash with another extension's of the same name."""
    assert NATIVE is not None
    command = ["nm", "--dynamic", "--defined-only", "--extern-only", str(NATIVE)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours = [line.split()[-1] for line in symbols.splitlines() if "fastattn" in line]
    assert ours == []
    assert "PyInit__C" in symbols


def test_works_without_the_native_module() -> None:
    code = (
        "import torch, fastattn\n"
        "q, k, v = torch.randn(3, 2, 5, 4, 8).unbind()\n"
        "print(fastattn.explain(q, k, v))\n"
        "out = fastattn.attention(q, k, v)\n"
        "print(torch.isfinite(out).all().item())\n"
    )
    result = run_python(code, FASTATTN_DISABLE_NATIVE="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("backend: reference")
    assert "switched off by FASTATTN_DISABLE_NATIVE" in result.stdout
    assert result.stdout.endswith("True\n")


def test_python_files_parse_on_the_oldest_supported_python() -> None:
    files = [*PACKAGE.rglob("*.py"), ROOT / "setup.py"]
    for file in files:
        ast.parse(file.read_text(), filename=str(file), feature_version=(3, 10))
    assert len(files) > 5


def test_type_hints_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_requirements_leave_torch_to_run_time() -> None:
    """A build that needs torch would need --no-build-isolation and tie us to one torch binary."""
    text = (ROOT / "pyproject.toml").read_text()
    build_system = text.split("[project]")[0]
    requires = next(line for line in build_system.splitlines() if line.startswith("requires"))
    assert "torch" not in requires
    assert "torch>=2.6" in [line.split(";")[0] for line in metadata.requires("fastattn") or []]
    assert torch.__version__ >= "2.6"
