"""The backend "cuda": whether this machine's driver and GPU run what was compiled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastattn.backends import cpu
from fastattn.backends.cuda.kernels import Kernels
from fastattn.compiling import constant_for_the_compiler

MIN_CAPABILITY = (7, 5)
# Codes of the CUDA runtime (driver_types.h).
_INSUFFICIENT_DRIVER = 35
_NO_DEVICE = 100


class Status(NamedTuple):
    """What the CUDA runtime within the native module says. Versions: 13000 for 13.0, 0 for none."""

    code: int
    word: str
    driver: int
    runtime: int


def status_reason(status: Status) -> str | None:
    """Returns why the runtime can use no GPU, or None."""
    driver, runtime = (
        f"{version // 1000}.{version % 1000 // 10}" for version in (status.driver, status.runtime)
    )
    if status.code == 0:
        return None
    if status.driver == 0:
        return "there is no NVIDIA driver"
    if status.code == _INSUFFICIENT_DRIVER:
        return (
            f"the NVIDIA driver is made for CUDA {driver}, and the kernels were built with CUDA "
            f"{runtime}; update the driver, or rebuild fastattn with an older CUDA toolkit"
        )
    if status.code == _NO_DEVICE:
        return "the NVIDIA driver sees no GPU"
    return f"the CUDA runtime fails with error {status.code}, {status.word}"


def architecture_reason(capability: tuple[int, int], compiled: list[int]) -> str | None:
    """Returns why a GPU runs none of the architectures that were compiled, such as 80, or None."""
    major, minor = capability
    if capability < MIN_CAPABILITY:
        wanted = ".".join(map(str, MIN_CAPABILITY))
        return f"the GPU must have compute capability {wanted} or newer, got {major}.{minor}"
    if any(number // 10 == major and number % 10 <= minor for number in compiled):
        return None
    names = " ".join(f"sm_{number}" for number in compiled)
    return (
        f"the GPU is of architecture sm_{major}{minor}, and the kernels were compiled for {names}; "
        "reinstall fastattn from source on this machine"
    )


def build_info() -> dict[str, Any]:
    """Returns what the build says: "nvcc", its version, "architectures", such as 80, "skipped".

    "skipped" says why there are no CUDA kernels; it is None if there are.
    """
    if cpu.unavailable_reason() is not None:
        return {"nvcc": None, "architectures": [], "skipped": cpu.unavailable_reason()}
    info: dict[str, Any] = cpu.native_module().cuda_build_info()
    return info


_reasons: list[str | None] = []  # what was found out; it holds for the process


@constant_for_the_compiler
def _unavailable_reason() -> str | None:
    if not _reasons:
        _reasons.append(_find_unavailable_reason())
    return _reasons[0]


def _find_unavailable_reason() -> str | None:
    skipped = build_info()["skipped"]
    if skipped is not None:
        return f"there are no CUDA kernels in this installation: {skipped}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not built for CUDA"
    reason = status_reason(Status(*cpu.native_module().cuda_runtime_status()))
    if reason is None and not torch.cuda.is_available():
        return "torch sees no GPU"
    return reason


@constant_for_the_compiler
def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()


@constant_for_the_compiler
def _architecture_reason() -> str | None:
    return architecture_reason(torch.cuda.get_device_capability(), build_info()["architectures"])


class Cuda(Kernels):
    """The CUDA kernels on a GPU."""

    NAME = "cuda"
    DEVICE_TYPE = "cuda"

    @property
    def module(self) -> Any:
        return cpu.native_module()

    def unavailable_reason(self) -> str | None:
        return _unavailable_reason()

    def architecture_reasons(self) -> list[str]:
        reason = _architecture_reason()
        return [] if reason is None else [reason]

    def capability(self) -> tuple[int, int]:
        return _capability()


CUDA = Cuda()
