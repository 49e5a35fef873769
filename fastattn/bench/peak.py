"""The machine's measured peak: multiply-adds in registers, by the instructions the kernels use."""

from __future__ import annotations

import time

import torch

from fastattn.backends import cpu

_SECONDS = 0.05  # one measurement at least: starting the threads must not count
_FIRST_ROUNDS = 100_000


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
