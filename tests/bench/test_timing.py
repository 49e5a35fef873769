"""Interleaved timing and its summaries, by a clock that the test winds."""

from __future__ import annotations

from functools import partial

import pytest

from fastattn.bench import timing


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.log.append(name)


def test_candidates_take_turns_and_the_first_one_changes() -> None:
    clock = Clock()
    candidates = {
        "fastattn": lambda: clock.takes("fastattn", 0.25),
        "sdpa": lambda: clock.takes("sdpa", 0.5),
    }
    stopwatch = partial(timing.by_clock, clock=clock)
    times_ms = timing.interleave(candidates, rounds=3, warmup=1, stopwatch=stopwatch)
    assert times_ms == {"fastattn": [250.0] * 3, "sdpa": [500.0] * 3}
    # One untimed round, then three; the order alternates.
    first = clock.log[::2]
    assert len(clock.log) == 8
    assert first == ["sdpa", "fastattn", "sdpa", "fastattn"]


def test_a_budget_ends_the_rounds_but_not_before_the_third() -> None:
    clock = Clock()
    candidates = {"fastattn": lambda: clock.takes("fastattn", 1.0)}
    stopwatch = partial(timing.by_clock, clock=clock)
    for budget_s, rounds in ((0.5, 3), (4.5, 5), (100.0, 9)):
        times_ms = timing.interleave(candidates, 9, 0, stopwatch, budget_s)
        assert len(times_ms["fastattn"]) == rounds


def test_a_budget_is_stretched_where_times_lie_apart() -> None:
    """A machine that is slow for the first rounds is not what the median shows."""
    clock = Clock()
    seconds = iter([2.0, 2.0, *[1.0] * 20])
    candidates = {
        "fastattn": lambda: clock.takes("fastattn", next(seconds)),
        "sdpa": lambda: clock.takes("sdpa", 0.25),
    }
    stopwatch = partial(timing.by_clock, clock=clock)
    times_ms = timing.interleave(candidates, 20, 0, stopwatch, budget_s=5.0)
    assert times_ms["fastattn"] == [2000.0] * 2 + [1000.0] * 7
    assert timing.summary(times_ms["fastattn"])["median_ms"] == 1000.0


def test_times_that_never_agree_end_all_the_same() -> None:
    clock = Clock()
    seconds = iter([1.0, 2.0] * 10)
    candidates = {"fastattn": lambda: clock.takes("fastattn", next(seconds))}
    stopwatch = partial(timing.by_clock, clock=clock)
    times_ms = timing.interleave(candidates, 20, 0, stopwatch, budget_s=3.0)
    assert times_ms["fastattn"] == [1000.0, 2000.0] * 3 + [1000.0]


def test_the_better_of_two_of_ours_is_the_ratio() -> None:
    found = timing.compare({"fastattn-cuda": [2.0], "fastattn-triton": [1.0], "flex": [3.0]})
    assert found["ratio"] == 3.0
    assert found["ratios"] == {"fastattn-cuda": 1.5, "fastattn-triton": 3.0}


def test_without_peers_there_is_no_ratio() -> None:
    found = timing.compare({"fastattn": [2.0]})
    assert found["best_peer"] is None and found["ratio"] is None


def test_a_ratio_is_the_best_peer_by_ours() -> None:
    found = timing.compare(
        {"fastattn": [2.0, 3.0, 100.0], "sdpa": [9.0, 9.0, 9.0], "eager": [5.0, 6.0, 7.0]}
    )
    assert found["best_peer"] == "eager"
    assert found["ratio"] == 2.0
    assert found["times"]["fastattn"]["median_ms"] == 3.0


def test_what_is_slower_has_a_ratio_below_one() -> None:
    assert timing.compare({"fastattn": [4.0], "sdpa": [1.0]})["ratio"] == 0.25


@pytest.mark.parametrize(
    ("times", "expected"),
    [([1.0, 2.0, 3.0, 4.0, 5.0], (2.0, 3.0, 4.0)), ([7.0], (7.0, 7.0, 7.0))],
)
def test_quartiles(times: list[float], expected: tuple[float, float, float]) -> None:
    found = timing.summary(times)
    assert (found["q1_ms"], found["median_ms"], found["q3_ms"]) == expected
    assert found["rounds"] == len(times)
