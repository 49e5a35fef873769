"""The machine's measured peaks, by the bench itself: arithmetic, and bandwidth of memory.

On a CPU the arithmetic is multiply-adds in registers, by the instructions that the kernels use. On
a GPU it is the fastest of torch's matrix products, on tensor cores for 16 bits and on FMA units for
float32. Bandwidth is STREAM's triad, a = b + s * c (McCalpin, 1995), on arrays of at least four
times the last cache, so 12 bytes an element in float32.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastattn.backends import cpu
from fastattn.bench.memory import available_bytes
from fastattn.bench.timing import ByEvents, by_clock

_SECONDS = 0.05  # one measurement at least: starting the threads must not count
_FIRST_ROUNDS = 100_000
_REPEATS = 7
_TRIAD_MIN_BYTES = 2**27  # of an array
_GPU_TRIAD_BYTES = 2**30
_GPU_SIZES = (4096, 8192)  # of the square matrices


def measure(device: str, dtypes: Sequence[str]) -> dict[str, Any]:
    """Returns "gflops", by dtype, and "gb_per_s"."""
    rates = {dtype: gflops(device, dtype) for dtype in dtypes}
    return {"gflops": rates, "gb_per_s": bandwidth(device)}


def gflops(device: str, dtype: str) -> float:
    """Returns the peak of arithmetic in a dtype, in GFLOP/s."""
    return _gpu_gflops(dtype) if device == "cuda" else peak_gflops(dtype)


def peak_gflops(dtype: str, repeats: int = 5) -> float:
    """Returns the highest of ``repeats`` measurements with torch's number of threads, in GFLOP/s.

    For "bfloat16" the kernels' own arithmetic is measured: products of pairs where the CPU has
    them, else float32.
    """
    rounds = _FIRST_ROUNDS
    while _measure(dtype, rounds)[1] < _SECONDS:
        rounds *= 2
    return max(_measure(dtype, rounds)[0] for _ in range(repeats)) / 1e9


def _measure(dtype: str, rounds: int) -> tuple[float, float]:
    """The flops a second, and the seconds."""
    started = time.perf_counter()
    flops = cpu.peak(dtype, rounds, torch.get_num_threads())
    seconds = time.perf_counter() - started
    return flops / seconds, seconds


def _gpu_gflops(dtype: str) -> float:
    """The fastest of torch's products of square matrices on the current GPU."""
    stopwatch = ByEvents()
    best = 0.0
    for size in _GPU_SIZES:
        a, b = (torch.randn(size, size, device="cuda", dtype=getattr(torch, dtype)) for _ in "ab")
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)
        ms = min(stopwatch(lambda: torch.mm(a, b, out=out)) for _ in range(_REPEATS))  # noqa: B023
        best = max(best, 2 * size**3 / ms / 1e6)
    return best


def bandwidth(device: str, size: int | None = None) -> float:
    """Returns the highest bandwidth of a triad with torch's number of threads, in GB/s.

    Args:
        size: bytes of an array. Default: four times the last cache, or on a GPU 1 GiB.
    """
    if size is None:
        size = _GPU_TRIAD_BYTES if device == "cuda" else _cpu_triad_bytes()
    b, c = (torch.ones(size // 4, device=device) for _ in range(2))
    a = torch.empty_like(b)
    stopwatch = ByEvents() if device == "cuda" else by_clock

    def triad() -> None:
        torch.add(b, c, alpha=3.0, out=a)

    triad()
    return 3 * a.nbytes / min(stopwatch(triad) for _ in range(_REPEATS)) / 1e6


def _cpu_triad_bytes() -> int:
    wanted = max(_TRIAD_MIN_BYTES, 4 * last_cache_bytes())
    return min(wanted, available_bytes() // 12)


def last_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Returns the size of the CPU's last cache, 0 where the system does not say."""
    sizes = [0]
    for file in root.glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}.get(text[-1], 2**30))
    return max(sizes)
