"""``fastattn bench attention``: the operation beside every attention that is installed.

Every implementation reads (batch, seqlen, num_heads, head_dim), as the projections of a model write
it, or the same tokens packed. Each is verified on the case before it is timed: out, dq, dk, dv of
some heads against torch's plain attention in float64. No two implementations draw the same bits of
dropout: all are verified without it, and fastattn once more with it, against the reference.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastattn import testing
from fastattn.bench import peak, peers, texts
from fastattn.bench.cases import (
    GPU_TARGETS,
    PEAK_SHARE_TARGETS,
    THREAD_SCALING_CASE,
    THREAD_SCALING_TARGET,
    AttentionCase,
)
from fastattn.bench.peers import PEER_FACTOR, Implementation
from fastattn.bench.problem import Problem, Results, Sample, make_problem, samples
from fastattn.bench.timing import (
    ByEvents,
    Run,
    by_clock,
    captured,
    compare,
    interleave,
    is_ours,
    summary,
)
from fastattn.errors import VerificationError

ROUNDS = 15
QUICK_ROUNDS = 3
_GPU_FACTOR = 2  # as many rounds: a call takes less than a millisecond
_WARMUP = 1  # beside the run that is verified
_BUDGET_S = 2.5  # of a pass of a case: fewer rounds than ROUNDS where a round takes seconds
_SCALING_ROUNDS = 4  # times ROUNDS, of two candidates alone

# The backward pass takes five products of seqlen x seqlen x head_dim, the forward pass two.
_FLOPS = {"forward": 1.0, "backward": 2.5, "forward_backward": 3.5}

Say = Callable[[str], None]


def verify(
    name: str, implementation: Implementation, problem: Problem, found: Sequence[Sample]
) -> dict[str, dict[str, float]]:
    """Runs an implementation without dropout, and compares it with torch's attention in float64.

    Args:
        problem: one without dropout, which the implementation was made for.
        found: the samples that are compared.

    Returns:
        For out, and dq, dk and dv if it has gradients, the largest error and the one allowed.

    Raises:
        AssertionError: a result is further off than a small multiple of plain torch's error in
            the dtype of the case (:mod:`fastattn.testing`); for peers ten times that.
    """
    passes = implementation.passes(problem)
    results = passes.get("forward_backward", passes["forward"])()
    tensors: tuple[Tensor, ...] = results if isinstance(results, tuple) else (results,)
    slack = 1.0 if is_ours(name) else PEER_FACTOR
    checked: dict[str, dict[str, float]] = {}
    for what, tensor in zip(Results._fields, tensors, strict=False):
        factor = testing.OUT_FACTOR if what == "out" else testing.GRAD_FACTOR
        for sample in found:
            accuracy = testing.assert_as_accurate_as(
                sample.of(tensor, problem, is_packed=implementation.is_packed),
                getattr(sample.plain, what),
                getattr(sample.truth, what),
                factor=slack * factor,
                name=f"{name} {what}",
            )
            worst = checked.setdefault(what, {"error": 0.0, "allowed": accuracy.allowed})
            if accuracy.error > worst["error"]:
                worst |= {"error": accuracy.error, "allowed": accuracy.allowed}
    return checked


def verify_dropout(case: AttentionCase, device: str, backend: str | None) -> dict[str, float]:
    """Compares our attention with dropout with the reference in float64, which drops the same.

    Returns:
        The largest error of any result, and the one allowed.

    Raises:
        AssertionError: a result is further off.
    """
    longest = min(case.seqlen, 512)
    inputs = testing.make_inputs(
        [longest, max(longest // 3, 1)],
        num_heads=2,
        head_dim=case.head_dim,
        dtype=getattr(torch, case.dtype),
        device=device,
        packed=case.lengths != "dense",
        dropout_p=case.dropout_p,
    )
    worst = max(testing.check_against_reference(inputs, backend), key=lambda x: x.error / x.allowed)
    return {"error": worst.error, "allowed": worst.allowed}


def _prepare(
    case: AttentionCase, problem: Problem, quick: bool
) -> tuple[dict[str, Implementation], dict[str, str], dict[str, dict[str, Any]]]:
    """Returns what is timed, what refused and why, and the errors of each."""
    plain = problem.without_dropout()
    found = list(samples(plain))
    checked: dict[str, dict[str, Any]] = {}
    kept: dict[str, Implementation] = {}
    refused: dict[str, str] = {}
    mine, plain_mine = peers.ours(problem), peers.ours(plain)
    for name, implementation in mine.items():
        try:
            checked[name] = verify(name, plain_mine[name], plain, found)
            if case.dropout_p > 0.0:
                device = problem.device.type
                checked[name]["with dropout"] = verify_dropout(case, device, peers.backend_of(name))
            kept[name] = implementation
        except AssertionError as error:
            raise VerificationError(
                f"bench: the results of {case.name} must be as accurate as torch's own; got "
                f"{error}. Nothing was timed; run `fastattn check`."
            ) from error
        except Exception as error:  # a GPU that one of our backends does not serve
            if len(mine) == 1:
                raise
            refused[name] = reason(error)
    for name in peers.PEERS:
        try:
            with _quiet():
                checked[name] = verify(
                    name, peers.make_peer(name, plain, quick=quick), plain, found
                )
                kept[name] = peers.make_peer(name, problem, quick=quick)
                if case.dropout_p > 0.0:
                    kept[name].passes(problem)["forward"]()  # whether it has dropout
        except Exception as error:  # whatever a peer cannot do is part of the result
            refused[name] = reason(error)
            checked.pop(name, None)
            kept.pop(name, None)
    return kept, refused, checked


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch explains at length what its backends lack
        yield


def reason(error: Exception) -> str:
    """Returns what stands in a result of a peer that failed: one line."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, peers.Refusal) else f"{type(error).__name__}: {text}"


def forward_flops(case: AttentionCase, lengths: Sequence[int]) -> int:
    """Returns the operations of the forward pass: 4 * num_heads * head_dim * sum of length^2."""
    return 4 * case.num_heads * case.head_dim * sum(length**2 for length in lengths)


def run_case(
    case: AttentionCase,
    rounds: int,
    peak_gflops: float | None,
    *,
    device: str = "cpu",
    quick: bool = False,
) -> dict[str, Any]:
    """Verifies and times one case.

    Args:
        rounds: how often each implementation is timed, times what the case says; fewer where
            that would take more than a few seconds.
        peak_gflops: what the machine reaches in the dtype of the case.
        quick: without the peers that are compiled.
    """
    problem = make_problem(case, device)
    candidates, refused, checked = _prepare(case, problem, quick)
    implementations = {name: x.passes(problem) for name, x in candidates.items()}
    flops = forward_flops(case, problem.lengths)
    rounds *= case.times_rounds * (_GPU_FACTOR if device == "cuda" else 1)
    passes: dict[str, Any] = {}
    for name, factor in _FLOPS.items():
        runs = {who: x[name] for who, x in implementations.items() if name in x}
        passes[name] = _timed(runs, rounds, device)
        seconds = min(
            times["median_ms"] for who, times in passes[name]["times"].items() if is_ours(who)
        )
        passes[name] |= _rates(factor * flops, seconds / 1e3, peak_gflops)
        passes[name]["target"] = case.targets.get(name)
        if device == "cuda":
            passes[name]["graph"] = _timed_graphs(runs, rounds, name, refused)
    return {
        "name": case.name,
        "batch_size": case.batch_size,
        "num_heads": case.num_heads,
        "seqlen": max(problem.lengths),
        "head_dim": case.head_dim,
        "dtype": case.dtype,
        "dropout_p": case.dropout_p,
        "masked": problem.is_token is not None,
        "lengths": problem.lengths,
        "packed": any(x.is_packed for who, x in candidates.items() if is_ours(who)),
        "refused": refused,
        "verified": checked,
        "target": GPU_TARGETS.get(case.name),
        **passes,
    }


def _timed(runs: dict[str, Run], rounds: int, device: str) -> dict[str, Any]:
    stopwatch = ByEvents() if device == "cuda" else by_clock
    with _quiet():
        times_ms = interleave(runs, rounds, _WARMUP, stopwatch, _BUDGET_S)
    return compare(times_ms)


def _timed_graphs(
    runs: dict[str, Run], rounds: int, name: str, refused: dict[str, str]
) -> dict[str, Any] | None:
    """The same as CUDA graphs: what a call costs the GPU alone. None if nothing of ours is held."""
    replays = {}
    for who, run in runs.items():
        try:
            replays[who] = captured(run)
        except Exception as error:  # some peers wait for the GPU
            refused[f"{who}, {name} as a graph"] = reason(error)
    if not any(is_ours(who) for who in replays):
        return None
    return _timed(replays, rounds, "cuda")


def _rates(flops: float, seconds: float, peak_gflops: float | None) -> dict[str, float]:
    gflops = flops / seconds / 1e9
    return {"gflops": gflops} | ({"peak_share": gflops / peak_gflops} if peak_gflops else {})


def thread_scaling(case: AttentionCase, rounds: int) -> dict[str, Any]:
    """Times our attention on one thread and on two, in turn."""
    problem = make_problem(case)
    passes = peers.ours(problem)["fastattn"].passes(problem)
    before = torch.get_num_threads()

    def on_threads(num_threads: int, step: Run) -> Run:
        def run() -> None:
            torch.set_num_threads(num_threads)
            step()

        return run

    result: dict[str, Any] = {"case": case.name, "threads": [1, 2], "target": THREAD_SCALING_TARGET}
    try:
        for name in ("forward", "forward_backward"):
            runs = {str(threads): on_threads(threads, passes[name]) for threads in (1, 2)}
            times_ms = interleave(runs, _SCALING_ROUNDS * rounds, _WARMUP, budget_s=_BUDGET_S)
            times = {threads: summary(values) for threads, values in times_ms.items()}
            ratio = times["1"]["median_ms"] / times["2"]["median_ms"]
            result[name] = {"times": times, "ratio": ratio}
    finally:
        torch.set_num_threads(before)
    return result


def run(
    cases: Sequence[AttentionCase],
    rounds: int,
    say: Say = lambda line: None,
    *,
    device: str = "cpu",
    quick: bool = False,
) -> dict[str, Any]:
    """Runs cases with torch's number of threads, or on the current GPU.

    Returns:
        What a result file holds beside the machine: the peaks, the targets that all cases share,
        the cases, and thread scaling if its case is among them and there are two threads.
    """
    if any(case.lengths == "imdb" for case in cases):
        texts.require_packages()
    peaks = peak.measure(device, sorted({case.dtype for case in cases}))
    results: list[dict[str, Any]] = []
    for case in cases:
        say(case.name)
        peak_gflops = peaks["gflops"].get(case.dtype)
        results.append(run_case(case, rounds, peak_gflops, device=device, quick=quick))
        gc.collect()  # a long case holds gigabytes in cycles of autograd
    found: dict[str, Any] = {
        "peak_gflops": peaks["gflops"],
        "peak_gb_per_s": peaks["gb_per_s"],
        "peak_share_targets": PEAK_SHARE_TARGETS,
        "cases": results,
        "thread_scaling": None,
    }
    scaled = [case for case in cases if case.name == THREAD_SCALING_CASE]
    if scaled and device == "cpu" and torch.get_num_threads() >= 2:
        say("thread scaling")
        found["thread_scaling"] = thread_scaling(scaled[0], rounds)
    return found
