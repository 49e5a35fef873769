"""The backends "cuda-hopper" and "cuda-hopper-emulated": attention written for one architecture.

Hidden states are served by the kernels of the backend "cuda". Not measured on a GPU yet
(2026-11-28), so it is never chosen unasked; csrc/README.md has the plan of the measurement.
"""

from __future__ import annotations

from fastattn.backends.cuda.emulated import Emulated
from fastattn.backends.cuda.gpu import Cuda, build_info

ARCHITECTURE = 90
CAPABILITY = (9, 0)


def capability_reason(capability: tuple[int, int]) -> str | None:
    """Returns why a GPU cannot run code for sm_90a, or None."""
    if capability == CAPABILITY:
        return None
    return "the GPU must be an H100 or H200 (compute capability 9.0), got {}.{}".format(*capability)


def build_reason(architectures: list[int]) -> str | None:
    """Returns why code for some architectures holds none for Hopper, or None."""
    if ARCHITECTURE in architectures:
        return None
    names = " ".join(f"sm_{number}" for number in architectures)
    return f"the kernels were compiled for {names}, and not for sm_{ARCHITECTURE}"


class Hopper(Cuda):
    """Attention on an H100 or H200."""

    NAME = "cuda-hopper"
    ATTENTION = "hopper"

    def unavailable_reason(self) -> str | None:
        return super().unavailable_reason() or build_reason(build_info()["architectures"])

    def architecture_reasons(self) -> list[str]:
        reason = capability_reason(self.capability())
        return [] if reason is None else [reason]


class EmulatedHopper(Emulated):
    """The same kernels on tensors of the CPU."""

    NAME = "cuda-hopper-emulated"
    ATTENTION = "hopper"

    def unavailable_reason(self) -> str | None:
        reason = super().unavailable_reason()
        if reason is None and self.capability() != CAPABILITY:
            return "the emulator is set to another part, and these kernels are for 9.0"
        return reason


HOPPER = Hopper()
EMULATED_HOPPER = EmulatedHopper()
