"""The backend "cuda-emulated": the CUDA kernels on a CPU, checked while they run. For tests."""

from __future__ import annotations

import importlib
from typing import Any

from fastattn.backends.cuda.kernels import Kernels

_module: Any = None
_load_error: str | None = None
try:
    _module = importlib.import_module("fastattn._emulated")
except ImportError as error:
    _load_error = (
        f"the module fastattn._emulated, which is for tests, is not there ({error}); "
        "build it with FASTATTN_EMULATOR=1"
    )


class Emulated(Kernels):
    """The CUDA kernels on tensors of the CPU."""

    NAME = "cuda-emulated"
    DEVICE_TYPE = "cpu"

    @property
    def module(self) -> Any:
        return _module

    def unavailable_reason(self) -> str | None:
        return _load_error

    def architecture_reasons(self) -> list[str]:
        return []

    def capability(self) -> tuple[int, int]:
        major, minor = divmod(_module.compute_capability(), 10)
        return major, minor


EMULATED = Emulated()
