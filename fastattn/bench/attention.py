"""``fastattn bench attention``: the operation beside torch's own attention.

Every implementation reads (batch, seqlen, num_heads, head_dim), as the projections of a model write
it. Each case is verified before it is timed: out, dq, dk, dv against torch's attention in float64.
With dropout, what is verified is the call without it, as no two implementations draw the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import fastattn
from fastattn import testing
from fastattn.bench import memory, texts
from fastattn.bench.cases import (
    PEAK_SHARE_TARGETS,
    THREAD_SCALING_CASE,
    THREAD_SCALING_TARGET,
    AttentionCase,
    GpuCase,
    MemoryCase,
)
from fastattn.bench.peak import peak_gflops
from fastattn.bench.timing import compare, interleave, summary
from fastattn.errors import VerificationError

ROUNDS = 15
QUICK_ROUNDS = 3
_WARMUP = 2

# The backward pass takes five products of seqlen x seqlen x head_dim, the forward pass two.
_BACKWARD_FLOPS = 2.5

Say = Callable[[str], None]


class Call(NamedTuple):
    """One implementation on one problem: its inputs and what it does with them."""

    attend: Callable[[Tensor, Tensor, Tensor, float], Tensor]  # q, k, v, dropout_p -> out
    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor

    def forward(self, dropout_p: float) -> Tensor:
        """Returns out, without recording anything for a backward pass."""
        with torch.no_grad():
            return self.attend(self.q, self.k, self.v, dropout_p)

    def forward_backward(self, dropout_p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns out, dq, dk, dv."""
        q, k, v = (x.detach().requires_grad_() for x in (self.q, self.k, self.v))
        out = self.attend(q, k, v, dropout_p)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), self.dout)
        return out.detach(), dq, dk, dv

    def to(self, dtype: torch.dtype) -> Call:
        """Returns the same call on the same values in another dtype."""
        return Call(self.attend, *(x.to(dtype) for x in self[1:]))


class Problem(NamedTuple):
    """A case with its tensors."""

    lengths: list[int]
    is_packed: bool  # whether ours gets the sequences without padding
    ours: Call
    peers: dict[str, Call]

    def rows(self, x: Tensor) -> Tensor:
        """Returns the rows of a peer's result that ours has."""
        return testing.pack(x, self.lengths) if self.is_packed else x


def make_problem(case: AttentionCase, seed: int = 0) -> Problem:
    """Draws the tensors of a case, and the lengths if they are those of real texts."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    lengths = [case.seqlen] * case.batch_size
    if case.lengths == "imdb":
        lengths = texts.draw_lengths(case.batch_size, case.seqlen)
    size = (case.batch_size, max(lengths), case.num_heads, case.head_dim)
    q, k, v, dout = (torch.randn(size, generator=generator).to(dtype) for _ in range(4))
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    dout = dout * is_token[:, :, None, None]  # no loss reads a row of padding
    mask = is_token[:, None, None, :] if case.masked else None
    peers: dict[str, Call] = {name: Call(_PEERS[name](mask), q, k, v, dout) for name in case.peers}
    is_packed = case.lengths == "imdb"
    if is_packed:
        ours = Call(
            _fused(cu_seqlens_q=testing.cu_seqlens(lengths), max_seqlen_q=max(lengths)),
            *(testing.pack(x, lengths) for x in (q, k, v, dout)),
        )
    else:
        ours = Call(_fused(key_padding_mask=is_token if case.masked else None), q, k, v, dout)
    return Problem(lengths, is_packed, ours, peers)


def _fused(**options: Any) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        out = fastattn.attention(q, k, v, dropout_p=dropout_p, **options)
        assert isinstance(out, Tensor)  # lse is not asked for
        return out

    return attend


def _sdpa(mask: Tensor | None) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
        return out.transpose(1, 2)

    return attend


def _eager(mask: Tensor | None) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        return memory.eager_attention(q, k, v, mask, dropout_p)

    return attend


_PEERS = {"sdpa": _sdpa, "eager": _eager}


def verify(case_name: str, problem: Problem) -> dict[str, dict[str, float]]:
    """Compares our results with torch's attention in float64.

    Returns:
        For out, dq, dk and dv the largest error, and the one allowed: a small multiple of the
        error of the first peer in the dtype of the case (:mod:`fastattn.testing`).

    Raises:
        VerificationError: a result is further off than that.
    """
    peer = next(iter(problem.peers.values()))
    truth = peer.to(torch.float64).forward_backward(0.0)
    checked = {}
    for name, ours, theirs, expected in zip(
        ("out", "dq", "dk", "dv"),
        problem.ours.forward_backward(0.0),
        peer.forward_backward(0.0),
        truth,
        strict=True,
    ):
        try:
            accuracy = testing.assert_as_accurate_as(
                ours,
                problem.rows(theirs),
                problem.rows(expected),
                factor=testing.OUT_FACTOR if name == "out" else testing.GRAD_FACTOR,
                name=name,
            )
        except AssertionError as error:
            raise VerificationError(
                f"bench: the results of {case_name} must be as accurate as torch's own; got "
                f"{error}. Nothing was timed; run `fastattn check`."
            ) from error
        checked[name] = {"error": accuracy.error, "allowed": accuracy.allowed}
    return checked


def forward_flops(case: AttentionCase | GpuCase, lengths: Sequence[int]) -> int:
    """Returns the operations of the forward pass: 4 * num_heads * head_dim * sum of length^2."""
    return 4 * case.num_heads * case.head_dim * sum(length**2 for length in lengths)


def run_case(case: AttentionCase, rounds: int, peak: float) -> dict[str, Any]:
    """Verifies and times one case.

    Args:
        rounds: how often each implementation is timed, times what the case says.
        peak: GFLOP/s that the machine reaches in registers, in the dtype of the case.
    """
    problem = make_problem(case)
    checked = verify(case.name, problem)
    calls = {"fastattn": problem.ours, **problem.peers}
    flops = forward_flops(case, problem.lengths)
    rounds *= case.times_rounds
    passes: dict[str, Any] = {}
    for name, work in (("forward", flops), ("forward_backward", flops * (1 + _BACKWARD_FLOPS))):
        candidates = {who: _timed(call, name, case) for who, call in calls.items()}
        times_ms = interleave(candidates, rounds, _WARMUP)
        passes[name] = compare(times_ms)
        seconds = passes[name]["times"]["fastattn"]["median_ms"] / 1e3
        passes[name] |= _rates(work, seconds, peak)
        passes[name]["target"] = case.targets.get(name)
    forward, both = (passes[name]["times"]["fastattn"]["median_ms"] for name in passes)
    # By difference: torch runs a backward pass only after a forward pass.
    if both > forward:  # on a machine that does something else, the medians can lie otherwise
        passes["backward"] = _rates(_BACKWARD_FLOPS * flops, (both - forward) / 1e3, peak)
    return {
        "name": case.name,
        "batch_size": case.batch_size,
        "num_heads": case.num_heads,
        "seqlen": max(problem.lengths),
        "head_dim": case.head_dim,
        "dtype": case.dtype,
        "dropout_p": case.dropout_p,
        "masked": case.masked,
        "lengths": problem.lengths,
        "packed": problem.is_packed,
        "verified": checked,
        **passes,
    }


def _timed(call: Call, name: str, case: AttentionCase) -> Callable[[], object]:
    run = getattr(call, name)
    return lambda: run(case.dropout_p)


def _rates(flops: float, seconds: float, peak: float) -> dict[str, float]:
    gflops = flops / seconds / 1e9
    return {"gflops": gflops, "peak_share": gflops / peak}


def thread_scaling(case: AttentionCase, rounds: int) -> dict[str, Any]:
    """Times our attention on one thread and on two, in turn."""
    problem = make_problem(case)
    before = torch.get_num_threads()

    def on_threads(num_threads: int, name: str) -> Callable[[], object]:
        step = _timed(problem.ours, name, case)

        def run() -> None:
            torch.set_num_threads(num_threads)
            step()

        return run

    result: dict[str, Any] = {"case": case.name, "threads": [1, 2], "target": THREAD_SCALING_TARGET}
    try:
        for name in ("forward", "forward_backward"):
            candidates = {str(threads): on_threads(threads, name) for threads in (1, 2)}
            times_ms = interleave(candidates, rounds, _WARMUP)
            times = {threads: summary(values) for threads, values in times_ms.items()}
            ratio = times["1"]["median_ms"] / times["2"]["median_ms"]
            result[name] = {"times": times, "ratio": ratio}
    finally:
        torch.set_num_threads(before)
    return result


def run(
    cases: Sequence[AttentionCase | MemoryCase], rounds: int, say: Say = lambda line: None
) -> dict[str, Any]:
    """Runs cases with torch's number of threads.

    Returns:
        What a result file holds beside the machine: the peak, the targets that all cases share,
        the cases, and thread scaling if its case is among them and there are two threads.
    """
    if any(isinstance(case, AttentionCase) and case.lengths == "imdb" for case in cases):
        texts.require_packages()
    timed = [case for case in cases if isinstance(case, AttentionCase)]
    peaks = {dtype: peak_gflops(dtype) for dtype in sorted({case.dtype for case in timed})}
    results: list[dict[str, Any]] = []
    for case in cases:
        say(case.name)
        if isinstance(case, MemoryCase):
            results.append(run_memory_case(case))
        else:
            results.append(run_case(case, rounds, peaks[case.dtype]))
    found: dict[str, Any] = {
        "peak_gflops": peaks,
        "peak_share_targets": PEAK_SHARE_TARGETS,
        "cases": results,
        "thread_scaling": None,
    }
    scaled = [case for case in timed if case.name == THREAD_SCALING_CASE]
    if scaled and torch.get_num_threads() >= 2:
        say("thread scaling")
        found["thread_scaling"] = thread_scaling(scaled[0], rounds)
    return found


def run_memory_case(case: MemoryCase) -> dict[str, Any]:
    """Verifies one head of a memory case, and measures the peak memory of all of it."""
    one_head = AttentionCase(case.name, 1, 1, case.seqlen, case.head_dim)
    checked = verify(case.name, make_problem(one_head))
    return {
        "name": case.name,
        "batch_size": case.batch_size,
        "num_heads": case.num_heads,
        "seqlen": case.seqlen,
        "head_dim": case.head_dim,
        "dtype": "float32",
        "verified": checked,
        **memory.compare(case),
        "target": case.target,
    }
