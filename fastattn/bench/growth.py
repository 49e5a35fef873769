"""``fastattn bench growth``: how cost grows with work, forward + backward, and the exponent.

One size changes at a time: the length of sequences, their number, threads, or the share of padding
in a batch. The exponent is the slope of a straight line through the logarithms of size and median
time, by least squares: attention is quadratic in the length (2), linear in the number of sequences
(1), and would be inversely proportional to the number of threads (-1). Along "padding" the size is
the share of tokens that are real, all sequences of one length: who computes no padding has 2, who
computes it all has 0.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastattn.bench import peers
from fastattn.bench.attention import reason, verify
from fastattn.bench.cases import AttentionCase, GrowthCase
from fastattn.bench.problem import Problem, problem_of, samples
from fastattn.bench.timing import ByEvents, Run, by_clock, compare, interleave
from fastattn.errors import VerificationError

ROUNDS = 9
QUICK_ROUNDS = 3
_BUDGET_S = 1.5  # of a size
# Plain attention stores its scores; beyond this length it would take longer than all the rest.
_PLAIN_LONGEST = 2048
_PEERS = ("sdpa-flash", "eager")

Say = Callable[[str], None]


def exponent(sizes: Sequence[float], times_ms: Sequence[float]) -> float | None:
    """Returns the slope of log(time) over log(size); None of fewer than two sizes."""
    if len(sizes) < 2:
        return None
    line = statistics.linear_regression(
        [math.log(x) for x in sizes], [math.log(x) for x in times_ms]
    )
    return float(line.slope)


def make_problem(case: GrowthCase, value: float, device: str = "cpu") -> Problem:
    """Returns the problem of one size, whose work for padding is its sequences' real length."""
    sizes: dict[str, Any] = {"batch_size": case.batch_size, "seqlen": case.seqlen}
    if case.name in sizes:
        sizes[case.name] = int(value)
    share = 1.0 - value if case.name == "padding" else 1.0
    rows = [max(1, round(sizes["seqlen"] * share))] * sizes["batch_size"]
    attention = AttentionCase(
        f"{case.name} {value:g}",
        num_heads=case.num_heads,
        head_dim=case.head_dim,
        dtype="float32" if device == "cpu" else "float16",
        **sizes,
    )
    return problem_of(attention, rows, device, width=sizes["seqlen"])


def size_of(case: GrowthCase, value: float) -> float:
    """Returns what the exponent is fitted over."""
    return 1.0 - value if case.name == "padding" else value


def run_case(case: GrowthCase, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Verifies and times every size of one case."""
    before = torch.get_num_threads()
    values = [x for x in case.values if case.name != "threads" or (x <= before and device == "cpu")]
    points: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    try:
        for value in values:
            if case.name == "threads":
                torch.set_num_threads(int(value))
            point, failed = _point(case, value, rounds, device)
            points.append(point)
            refused |= failed
    finally:
        torch.set_num_threads(before)
    names = {name for point in points for name in point["times"]}
    exponents = {}
    for name in sorted(names):
        has = [point for point in points if name in point["times"]]
        medians = [point["times"][name]["median_ms"] for point in has]
        exponents[name] = exponent([point["size"] for point in has], medians)
    return {
        **dataclasses.asdict(case),
        "points": points,
        "exponents": exponents,
        "refused": refused,
    }


def _point(
    case: GrowthCase, value: float, rounds: int, device: str
) -> tuple[dict[str, Any], dict[str, str]]:
    problem = make_problem(case, value, device)
    found = list(samples(problem))
    runs: dict[str, Run] = {}
    ours, refused = peers.serving(problem)
    for name, mine in ours.items():
        try:
            verify(name, mine, problem, found)
        except AssertionError as error:
            raise VerificationError(
                f"bench: the results of {problem.case.name} must be as accurate as torch's own; "
                f"got {error}. Nothing was timed; run `fastattn check`."
            ) from error
        runs[name] = mine.passes(problem)["forward_backward"]
    for name in _PEERS:
        if name == "eager" and problem.padded[0].shape[1] > _PLAIN_LONGEST:
            refused[f"{name}, longer than {_PLAIN_LONGEST}"] = "it takes longer than all the rest"
            continue
        try:
            peer = peers.make_peer(name, problem)
            verify(name, peer, problem, found)
            runs[name] = peer.passes(problem)["forward_backward"]
        except Exception as error:
            refused[name] = reason(error)
    stopwatch = ByEvents() if device == "cuda" else by_clock
    timed = compare(interleave(runs, rounds, 1, stopwatch, _BUDGET_S))
    return {"value": value, "size": size_of(case, value), **timed}, refused


def run(
    cases: Sequence[GrowthCase], rounds: int, say: Say = lambda line: None, *, device: str = "cpu"
) -> dict[str, Any]:
    """Runs cases; returns what a result file holds beside the machine."""
    results = []
    for case in cases:
        say(case.name)
        results.append(run_case(case, rounds, device))
    return {"cases": results}
