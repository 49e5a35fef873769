"""Interleaved timing: every round runs each candidate once, so that whatever else the machine does
meets all of them alike, and who goes first changes from round to round.

How one call is timed is a function: :func:`by_clock` on a CPU, :class:`ByEvents` on a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Run = Callable[[], object]
Stopwatch = Callable[[Run], float]  # runs something, and returns its milliseconds

# Where a budget ends the rounds early, this many are made all the same.
MIN_ROUNDS = 3
# Quartiles further apart than this say that the machine changed its pace. Virtual processors that
# share a core for a second do arithmetic at half the rate (2026-11-30: attention 37 and 67 ms).
_SETTLED = 1.2
_PATIENCE = 3  # budgets that are spent where times are not settled


def by_clock(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the milliseconds that a call takes by a clock, which counts seconds."""
    started = clock()
    run()
    return (clock() - started) * 1e3


class ByEvents:
    """Times calls on the current GPU by CUDA events, with nothing of their inputs in the L2 cache.

    Before each call a buffer of twice the size of the cache is overwritten, on the same stream, so
    the call finds its inputs in memory, as the layers of a model do.
    """

    _UNKNOWN_L2 = 128 * 2**20  # more than any GPU of 2026 has
    # Of the GPU, before what is timed: half a millisecond, in which Python can queue a whole call.
    # Else short kernels would wait for it, and the time between two events would be Python's.
    _HEAD_START_CYCLES = 1_000_000

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        size = 2 * (getattr(properties, "L2_cache_size", 0) or self._UNKNOWN_L2)
        self._buffer = torch.empty(size, dtype=torch.uint8, device="cuda")

    def __call__(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._buffer.zero_()
        torch.cuda._sleep(self._HEAD_START_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def captured(run: Run) -> Run:
    """Returns the replay of a call as a CUDA graph: the same kernels without the CPU's part.

    Raises:
        RuntimeError: the call does something that a graph cannot hold, such as waiting for the GPU.
    """
    # As torch asks: some calls on another stream first, so that nothing is set up in the capture.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def interleave(
    candidates: Mapping[str, Run],
    rounds: int,
    warmup: int = 1,
    stopwatch: Stopwatch = by_clock,
    budget_s: float = float("inf"),
) -> dict[str, list[float]]:
    """Runs every candidate ``warmup`` times untimed and ``rounds`` times timed.

    Args:
        budget_s: no further round begins after these seconds, if there were ``MIN_ROUNDS``; but
            where the times of a candidate lie far apart, up to three times as many are spent.

    Returns:
        The times of each in milliseconds, in the order of the rounds.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in candidates}
    spent_ms = 0.0
    for index in range(-warmup, rounds):
        budgets = spent_ms / (budget_s * 1e3)
        if index >= MIN_ROUNDS and (
            budgets > _PATIENCE or (budgets > 1 and _are_settled(times_ms))
        ):
            break
        names = list(candidates)
        for name in names if index % 2 == 0 else reversed(names):
            elapsed_ms = stopwatch(candidates[name])
            spent_ms += elapsed_ms
            if index >= 0:
                times_ms[name].append(elapsed_ms)
    return times_ms


def summary(times_ms: Sequence[float]) -> dict[str, Any]:
    """Returns the median, the quartiles and the number of some times."""
    if len(times_ms) > 1:
        low, median, high = statistics.quantiles(times_ms, n=4, method="inclusive")
    else:
        low = median = high = times_ms[0]
    return {"median_ms": median, "q1_ms": low, "q3_ms": high, "rounds": len(times_ms)}


def _are_settled(times_ms: Mapping[str, Sequence[float]]) -> bool:
    summaries = [summary(times) for times in times_ms.values()]
    return all(one["q3_ms"] <= _SETTLED * one["q1_ms"] for one in summaries)


def is_ours(name: str) -> bool:
    """Whether a candidate is fastattn, or a backend of it such as "fastattn-triton"."""
    return name.split("-")[0] == "fastattn"


def compare(times_ms: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Summarises what is ours beside its peers.

    Returns:
        A summary of each, and what :func:`ratios_of` finds.
    """
    summaries = {name: summary(times) for name, times in times_ms.items()}
    return {"times": summaries, **ratios_of(summaries)}


def ratios_of(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compares what is ours with the fastest peer.

    Returns:
        The name of the peer, and "ratio": that peer's median divided by ours, so 2 is twice as
        fast and less than 1 is slower. Where several are ours, "ratios" has each and "ratio" is the
        best. Without peers there is no ratio: both are None.
    """
    medians = {name: float(one["median_ms"]) for name, one in summaries.items()}
    peers = [name for name in medians if not is_ours(name)]
    ours = [name for name in medians if is_ours(name)]
    if not peers or not ours:
        return {"best_peer": None, "ratio": None}
    best = min(peers, key=lambda name: medians[name])
    ratios = {name: medians[best] / medians[name] for name in ours}
    found: dict[str, Any] = {"best_peer": best, "ratio": max(ratios.values())}
    return found | ({"ratios": ratios} if len(ours) > 1 else {})
