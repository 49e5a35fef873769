"""The support table of the README: device by element type by feature, asked of the backends.

Nothing is typed here that a backend says: each cell is what ``unsupported_reasons`` and
``hidden_reasons`` answer for a device that need not be there. What a GPU is asked for, its
architecture, is put in the place of the real one meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from fastattn.backends import REFERENCE, Call, HiddenCall, cpu, triton
from fastattn.backends.cuda import CUDA, EMULATED
from fastattn.backends.cuda.gpu import architecture_reason
from fastattn.backends.cuda.kernels import LAYER_NORM, Kernels
from fastattn.backends.triton import target
from fastattn.bench.tables import Table

DTYPES = ("float32", "bfloat16", "float16", "float64")
# The names that fastattn.backends.describe gives, and what a reader calls them.
FEATURES = {
    "key_padding_mask": "padding masks",
    "window": "causal and sliding windows",
    "bias": "bias with its gradient",
    "alibi_slopes": "ALiBi",
    "softcap": "softcap",
    "grouped heads": "grouped heads",
    "dropout_p": "dropout",
}
PACKED = "packed sequences"
ARCHITECTURES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
_HIDDEN_OPS = {LAYER_NORM: "LayerNorm", "bias_gelu": "GELU", "dropout": "dropout"}
_MOST = 2**20  # of a size that is asked for; a backend without a limit has it
_ANY = "any that torch runs on"


class Device(NamedTuple):
    """What a backend is asked about: torch's type, and the architecture of a GPU."""

    name: str
    type: str
    capability: tuple[int, int] | None = None  # of NVIDIA's
    target: target.Target | None = None


def _nvidia(capability: tuple[int, int]) -> Device:
    name = "sm_{}{}".format(*capability)
    return Device(name, "cuda", capability, target.Target("cuda", name))


CPU = Device("CPU: x86-64, ARM", "cpu")
NVIDIA = tuple(map(_nvidia, ARCHITECTURES))
AMD = Device("AMD GPU", "cuda", None, target.Target("hip", "gfx942"))
INTEL = Device("Intel GPU", "xpu", None, target.Target("xpu", "xpu"))


class _Declared(Kernels):
    """The CUDA backend as it would be on a GPU, compiled for every architecture."""

    NAME = CUDA.NAME
    DEVICE_TYPE = CUDA.DEVICE_TYPE

    def __init__(self, device: Device) -> None:
        assert device.capability is not None
        self._capability = device.capability

    @property
    def module(self) -> Any:
        return EMULATED.module  # the same kernels and limits

    def architecture_reasons(self) -> list[str]:
        compiled = [10 * major + minor for major, minor in ARCHITECTURES]
        reason = architecture_reason(self._capability, compiled)
        return [] if reason is None else [reason]

    def capability(self) -> tuple[int, int]:
        return self._capability


class Row(NamedTuple):
    """What one backend serves on one device."""

    backend: str
    head_dims: dict[str, int]  # the largest by element type; 0: none
    refused: tuple[str, ...]  # features
    hidden_sizes: dict[str, int]  # the largest of each operator on hidden states; 0: none


def unavailable_reason() -> str | None:
    """Returns why the table cannot be derived here: it needs the limits of the CUDA kernels."""
    return EMULATED.unavailable_reason()


def table() -> Table:
    """Returns the table, devices of the same answers in one line.

    Raises:
        ValueError: the module with the limits of the CUDA kernels is not built.
    """
    if unavailable_reason() is not None:
        raise ValueError(
            f"bench render: the CUDA kernels must be built for the emulator, whose limits the "
            f"support table shows; got: {unavailable_reason()}. Run `make build`."
        )
    header = ["device", "backend", *DTYPES, "features", "fused layers"]
    rows = [["CPU: x86-64, ARM", *_cells(ask(cpu, CPU))]]
    for make in (_Declared, lambda device: triton):
        rows += _nvidia_rows(make)
    rows += [[device.name, *_cells(ask(triton, device))] for device in (AMD, INTEL)]
    rows.append([_ANY, f"`{REFERENCE}`", *["any"] * len(DTYPES), "all", "all"])
    return Table(header, rows, num_words=len(header))


def _nvidia_rows(make: Callable[[Device], Any]) -> list[list[str]]:
    asked = [(device.name, _cells(ask(make(device), device))) for device in NVIDIA]
    rows = []
    for cells, same in itertools.groupby(asked, key=lambda pair: pair[1]):
        names = [name for name, _ in same]
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        if cells[1:-2] != ["-"] * len(DTYPES):
            rows.append([f"NVIDIA {span}", *cells])
    return rows


def _cells(row: Row) -> list[str]:
    dims = [str(row.head_dims[dtype] or "-") for dtype in DTYPES]
    features = "all" if not row.refused else "all but " + ", ".join(row.refused)
    limits = {name: size for name, size in row.hidden_sizes.items() if size < _MOST}
    layers = "all"
    if len(limits) == len(_HIDDEN_OPS) and len(set(limits.values())) == 1:
        layers = f"hidden_size up to {max(limits.values())}"
    elif limits:
        layers = ", ".join(f"{_HIDDEN_OPS[op]} up to {size}" for op, size in limits.items())
    return [f"`{row.backend}`", *dims, features, layers]


def ask(backend: Any, device: Device) -> Row:
    """Returns what a backend says that it serves on a device."""
    with as_if(device):

        def serves(dtype: str, head_dim: int, packed: bool, *options: str) -> bool:
            element = getattr(torch, dtype)
            return not backend.unsupported_reasons(
                Call(device.type, element, head_dim, packed, options)
            )

        def serves_hidden(op: str, size: int) -> bool:
            return not backend.hidden_reasons(HiddenCall(op, device.type, torch.float16, size))

        def largest_head_dim(dtype: str) -> int:
            return _largest(lambda head_dim: serves(dtype, head_dim, False))

        def largest_hidden_size(op: str) -> int:
            return _largest(lambda size: serves_hidden(op, size))

        dims = {dtype: largest_head_dim(dtype) for dtype in DTYPES}
        served = [dtype for dtype in DTYPES if dims[dtype]]
        refused = [
            words
            for name, words in FEATURES.items()
            if not all(serves(dtype, 64, False, name) for dtype in served)
        ]
        if not all(serves(dtype, 64, True) for dtype in served):
            refused.append(PACKED)
        sizes = {op: largest_hidden_size(op) for op in _HIDDEN_OPS}
    return Row(backend.NAME, dims, tuple(refused), sizes)


def _largest(holds: Callable[[int], bool]) -> int:
    """Returns the largest size up to _MOST for which something holds, 0 if it never does."""
    low, high = 0, _MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


@contextmanager
def as_if(device: Device) -> Iterator[None]:
    """Answers a backend's questions about the GPU as that device would."""
    with ExitStack() as stack:
        if device.target is not None:
            hip = "6.0" if device.target.kind == "hip" else None
            stack.enter_context(_replaced(torch.version, "hip", hip))
            stack.enter_context(_replaced(triton, "INTERPRETED", False))
            capability = device.capability
            stack.enter_context(
                _replaced(torch.cuda, "get_device_capability", lambda *_: capability)
            )
            target.set_offline(device.target)
            stack.callback(target.set_offline, None)
        yield


@contextmanager
def _replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
