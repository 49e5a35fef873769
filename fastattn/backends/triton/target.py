"""What the kernels run on: a GPU's architecture, or Triton's interpreter."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch

# Triton decides this when it is first imported, by the same variable.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


class Target(NamedTuple):
    """An architecture as its maker names it: "cuda" and "sm_90", "hip" and "gfx942", "xpu"."""

    kind: str
    name: str


INTERPRETER = Target("interpreter", "interpreter")
_offline: Target | None = None


def of(device: torch.device) -> Target:
    """Returns the target of a device's tensors."""
    if _offline is not None:
        return _offline
    if INTERPRETED:
        return INTERPRETER
    return Target("xpu", "xpu") if device.type == "xpu" else _of_gpu(device.index)


@functools.cache
def _of_gpu(index: int | None) -> Target:
    properties = torch.cuda.get_device_properties(
        torch.cuda.current_device() if index is None else index
    )
    if torch.version.hip is not None:
        return Target("hip", properties.gcnArchName.partition(":")[0])
    return Target("cuda", f"sm_{properties.major}{properties.minor}")


def set_offline(target: Target | None) -> None:
    """Makes every device one of this target; None: as it is. For compiling without a GPU."""
    global _offline
    _offline = target


def float32_precision(target: Target) -> str:
    """Returns how products of float32 are taken: what torch is set to for its own on this GPU.

    That is ``torch.backends.cuda.matmul.fp32_precision``, which follows
    ``torch.backends.fp32_precision`` and ``torch.set_float32_matmul_precision``; torch before 2.9
    has only the last. Triton's variable TRITON_F32_DEFAULT ("ieee", "tf32", "tf32x3") goes before
    it.
    """
    if target.kind != "cuda" or target.name == "sm_75":
        return "ieee"
    wish = os.environ.get("TRITON_F32_DEFAULT", "")
    if wish in ("ieee", "tf32", "tf32x3"):
        return wish
    # From torch 2.9 on the older function raises once the newer setting was used.
    if hasattr(torch.backends, "fp32_precision"):
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
