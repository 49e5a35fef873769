"""The Triton backend: the same kernels for every GPU that Triton compiles for.

=============================  =====================================================================
``kernels/``                   the kernels; importing one imports triton
``kernels/scores.py``          the rule of the scores, shared by forward and backward
``kernels/philox.py``          the dropout rules, bit for bit those of :mod:`fastattn.dropout`
``arguments.py``               what kernels are told
``attention.py``, ``hidden.py``  from tensors to launches
``config.py``                  sizes of tiles for each architecture; nothing is tuned at run time
``measured.json``              the sizes that were the fastest on a GPU
``launch.py``, ``target.py``   the one place that launches; what it launches on
``offline.py``                 compiles what calls would launch, for GPUs that are not there
=============================  =====================================================================

The formulas are those of ``csrc/README.md``. Nothing here waits for the device, allocates the score
matrix, or uses atomics: results are deterministic, and calls can be captured in a CUDA graph.

With ``TRITON_INTERPRET=1`` in the environment, Triton runs kernels in Python on CPU tensors. That
is for tests: slow, and only with ``backend="triton"``.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastattn.backends.triton import config, target

if TYPE_CHECKING:
    from fastattn.backends import Call, HiddenCall

NAME = "triton"
INTERPRETED = target.INTERPRETED
MAX_HIDDEN_SIZE = 4096  # a row is held in registers
MIN_VERSION = (3, 4)
MIN_CAPABILITY = (7, 5)  # of NVIDIA GPUs
GPU_TYPES = ("cuda", "xpu")  # torch's names: NVIDIA's and AMD's, Intel's
# The distributions that bring the module; torch's own builds for some GPUs have another name.
_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")


def _installed_version() -> str | None:
    """Returns the version of triton without importing it, None if it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return str(importlib.import_module("triton").__version__)  # built from source, in place


def version_reason(version: str | None) -> str | None:
    """Returns why a version of triton cannot be used, or None."""
    wanted = ".".join(map(str, MIN_VERSION))
    if version is None:
        return f'triton is not installed; pip install "triton>={wanted}"'
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < MIN_VERSION:
        return f"triton must be {wanted} or newer, got {version}"
    return None


_version_reason = version_reason(_installed_version())


def unavailable_reason() -> str | None:
    """Returns why the backend cannot run on this machine, or None."""
    if _version_reason is not None or INTERPRETED:
        return _version_reason
    if torch.cuda.is_available() or torch.xpu.is_available():
        return None
    return "torch sees no GPU"


def unsupported_reasons(call: Call) -> list[str]:
    """Returns why the backend cannot serve a call."""
    reasons = device_reasons(call.device_type)
    if call.dtype == torch.float64:
        reasons.append("float64 is not supported")
    largest = config.max_head_dim(_target(call.device_type))
    if call.head_dim > largest:
        reasons.append(f"head_dim must be at most {largest}, got {call.head_dim}")
    return reasons


def device_reasons(device_type: str) -> list[str]:
    """Returns why tensors of a device cannot be served."""
    if INTERPRETED:
        if device_type == "cpu":
            return []
        return [f"tensors must be on the CPU under TRITON_INTERPRET=1, got {device_type}"]
    if device_type in GPU_TYPES:
        return _architecture_reasons(device_type)
    return [f"tensors must be on a GPU, got {device_type}"]


def hidden_reasons(call: HiddenCall) -> list[str]:
    """Returns why the operators on hidden states cannot serve a call."""
    reasons = device_reasons(call.device_type)
    if call.dtype == torch.float64:
        reasons.append("float64 is not supported")
    if call.hidden_size > MAX_HIDDEN_SIZE:
        reasons.append(f"hidden_size must be at most {MAX_HIDDEN_SIZE}, got {call.hidden_size}")
    return reasons


def _target(device_type: str) -> target.Target:
    """Returns what tensors of a device run on; a common one where no device can be asked."""
    # A trace of torch.compile asks none.
    if device_type not in GPU_TYPES or torch.compiler.is_compiling():
        return target.INTERPRETER
    return target.of(torch.device(device_type))


def _architecture_reasons(device_type: str) -> list[str]:
    if device_type == "xpu" or torch.version.hip is not None or torch.compiler.is_compiling():
        return []
    capability = torch.cuda.get_device_capability()
    if capability >= MIN_CAPABILITY:
        return []
    wanted, got = (".".join(map(str, x)) for x in (MIN_CAPABILITY, capability))
    return [f"the GPU must have compute capability {wanted} or newer, got {got}"]


# Imported by the first call that runs here, because these modules import triton.
def _attention() -> ModuleType:
    return importlib.import_module("fastattn.backends.triton.attention")


def _hidden() -> ModuleType:
    return importlib.import_module("fastattn.backends.triton.hidden")


def attention_fwd(out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any) -> None:
    """Fills out and lse."""
    _attention().attention_fwd(out, lse, q, k, v, *options)


def attention_bwd(dq: Tensor, dk: Tensor, dv: Tensor, dbias: Tensor | None, *rest: Any) -> None:
    """Fills dq, dk, dv, and dbias if it is given."""
    _attention().attention_bwd(dq, dk, dv, dbias, *rest)


def layer_norm_fwd(out: Tensor, mean: Tensor, rstd: Tensor, *rest: Any) -> None:
    """Fills out, contiguous and like residual, and mean and rstd, one number for each row."""
    _hidden().layer_norm_fwd(out, mean, rstd, *rest)


def layer_norm_bwd(dx: Tensor | None, dresidual: Tensor, *rest: Any) -> None:
    """Fills the gradients. dx is None where it would be equal to dresidual."""
    _hidden().layer_norm_bwd(dx, dresidual, *rest)


def gelu_fwd(out: Tensor, x: Tensor, bias: Tensor | None) -> None:
    """Fills out, contiguous and of the shape and dtype of x."""
    _hidden().gelu_fwd(out, x, bias)


def gelu_bwd(
    dx: Tensor, dbias: Tensor | None, dout: Tensor, x: Tensor, bias: Tensor | None
) -> None:
    """Fills dx, contiguous and of the shape and dtype of x, and dbias if it is given."""
    _hidden().gelu_bwd(dx, dbias, dout, x, bias)


def hidden_dropout(out: Tensor, x: Tensor, seed: Tensor, dropout_p: float) -> None:
    """Fills out, contiguous and of the shape and dtype of x."""
    _hidden().hidden_dropout(out, x, seed, dropout_p)
