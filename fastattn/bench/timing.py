"""Interleaved timing: every round runs each candidate once, so that whatever else the machine does
meets all of them alike, and who goes first changes from round to round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Runs every candidate ``warmup`` times untimed and ``rounds`` times timed.

    Returns:
        The times of each in milliseconds, in the order of the rounds.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(-warmup, rounds):
        names = list(candidates)
        for name in names if index % 2 == 0 else reversed(names):
            started = clock()
            candidates[name]()
            elapsed = clock() - started
            if index >= 0:
                times_ms[name].append(elapsed * 1e3)
    return times_ms


def summary(times_ms: Sequence[float]) -> dict[str, Any]:
    """Returns the median, the quartiles and the number of some times."""
    if len(times_ms) > 1:
        low, median, high = statistics.quantiles(times_ms, n=4, method="inclusive")
    else:
        low = median = high = times_ms[0]
    return {"median_ms": median, "q1_ms": low, "q3_ms": high, "rounds": len(times_ms)}


def compare(times_ms: Mapping[str, Sequence[float]], ours: str = "fastattn") -> dict[str, Any]:
    """Summarises one candidate beside its peers.

    Returns:
        A summary of each, the name of the fastest peer, and "ratio": that peer's median divided
        by ours, so 2 is twice as fast and less than 1 is slower.
    """
    summaries = {name: summary(times) for name, times in times_ms.items()}
    peers = [name for name in summaries if name != ours]
    best = min(peers, key=lambda name: summaries[name]["median_ms"])
    ratio = summaries[best]["median_ms"] / summaries[ours]["median_ms"]
    return {"times": summaries, "best_peer": best, "ratio": ratio}
