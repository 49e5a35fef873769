"""``fastattn bench attention --device cuda``: the operation beside torch's own on a GPU.

Every case runs our CUDA kernels, our Triton kernels, each of torch's SDPA backends, torch's own
flash attention on packed sequences, and FlexAttention; what refuses a case is recorded with its
reason. Our results are verified against torch's attention in float64 before anything is timed.
Times are those of CUDA events around one call, every implementation once a round, in turn.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import fastattn
from fastattn import testing
from fastattn.backends.cuda import CUDA, EMULATED, EMULATED_HOPPER, HOPPER
from fastattn.bench import texts
from fastattn.bench.attention import forward_flops
from fastattn.bench.cases import GPU_TARGETS, GpuCase
from fastattn.bench.timing import interleave, summary
from fastattn.errors import VerificationError

ROUNDS = 30
QUICK_ROUNDS = 5
_WARMUP = 3
# Of the GPU, before what is timed: half a millisecond, in which Python can queue a whole call. Else
# short kernels would wait for it, and the time between two events would be Python's.
_HEAD_START_CYCLES = 1_000_000
_BACKWARD_FLOPS = 2.5  # five products, where the forward pass takes two
_VERIFIED_ROWS = 4096  # float64 is slow, and its scores are stored

Say = Callable[[str], None]


class Problem(NamedTuple):
    """A case with its tensors: a padded batch, and the same tokens packed."""

    case: GpuCase
    lengths: list[int]
    padded: tuple[Tensor, Tensor, Tensor, Tensor]  # q, k, v, dout
    packed: tuple[Tensor, Tensor, Tensor, Tensor]
    cu_seqlens: Tensor
    mask: Tensor | None  # (batch, 1, 1, seqlen), where there is padding


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Implementation(NamedTuple):
    """What is timed: a function of q, k and v, and which form of the tensors it takes."""

    attend: Attend
    is_packed: bool

    def passes(self, problem: Problem) -> dict[str, Callable[[], Any]]:
        """Returns the two things that are timed."""
        q, k, v, dout = problem.packed if self.is_packed else problem.padded
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]

        def forward() -> Tensor:
            with torch.no_grad():
                return self.attend(q, k, v)

        def forward_backward() -> tuple[Tensor, ...]:
            out = self.attend(*leaves)
            return out, *torch.autograd.grad(out, leaves, dout)

        return {"forward": forward, "forward_backward": forward_backward}


def make_problem(case: GpuCase, device: str, seed: int = 0) -> Problem:
    """Draws the tensors of a case; padding is where the lengths are those of real texts."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [case.seqlen] * case.batch_size
    if case.lengths == "imdb":
        lengths = texts.draw_lengths(case.batch_size, case.seqlen)
    size = (case.batch_size, max(lengths), case.num_heads, case.head_dim)
    dtype = getattr(torch, case.dtype)
    q, k, v, dout = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(4))
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = None if bool(is_token.all()) else is_token[:, None, None, :].to(device)
    dout = dout * is_token[:, :, None, None].to(device)
    packed = [testing.pack(x, lengths) for x in (q, k, v, dout)]
    cu_seqlens = testing.cu_seqlens(lengths).to(device)
    return Problem(
        case,
        lengths,
        (q, k, v, dout),
        (packed[0], packed[1], packed[2], packed[3]),
        cu_seqlens,
        mask,
    )


def implementations(problem: Problem) -> dict[str, Implementation]:
    """Returns everything that is timed, ours first."""
    ours = [EMULATED.NAME, EMULATED_HOPPER.NAME]
    if problem.padded[0].is_cuda:
        ours = [CUDA.NAME, "triton", HOPPER.NAME]
    found = {f"fastattn-{name}": Implementation(_ours(problem, name), True) for name in ours}
    kinds = {
        "sdpa-flash": SDPBackend.FLASH_ATTENTION,
        "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
        "sdpa-math": SDPBackend.MATH,
    }
    for name, kind in kinds.items():
        found[name] = Implementation(_sdpa(problem, kind), False)
    found["torch-flash-varlen"] = Implementation(_flash_varlen(problem), True)
    found["flex"] = Implementation(_flex(problem), False)
    return found


def _ours(problem: Problem, backend: str) -> Attend:
    longest = max(problem.lengths)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = fastattn.attention(
            q,
            k,
            v,
            cu_seqlens_q=problem.cu_seqlens,
            max_seqlen_q=longest,
            dropout_p=problem.case.dropout_p,
            backend=backend,
        )
        assert isinstance(out, Tensor)  # lse is not asked for
        return out

    return attend


def _sdpa(problem: Problem, kind: SDPBackend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        options: dict[str, Any] = {"attn_mask": problem.mask, "dropout_p": problem.case.dropout_p}
        with sdpa_kernel(kind):
            out: Tensor = scaled_dot_product_attention(q, k, v, **options)
        return out.transpose(1, 2)

    return attend


def _flash_varlen(problem: Problem) -> Attend:
    """The flash attention within torch, on packed sequences, which SDPA does not reach."""
    case, longest = problem.case, max(problem.lengths)

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            lengths = (problem.cu_seqlens, problem.cu_seqlens, longest, longest)
            out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
                q, k, v, *lengths, case.dropout_p, False, False
            )
            ctx.save_for_backward(q, k, v, out, lse, seed, offset)
            return out

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
            q, k, v, out, lse, seed, offset = ctx.saved_tensors
            lengths = (problem.cu_seqlens, problem.cu_seqlens, longest, longest)
            return torch.ops.aten._flash_attention_backward(
                dout, q, k, v, out, lse, *lengths, case.dropout_p, False, seed, offset
            )

    return Flash.apply


def _flex(problem: Problem) -> Attend:
    """FlexAttention, compiled, with a block mask where there is padding; it has no dropout."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if problem.case.dropout_p > 0.0:
            raise NotImplementedError("FlexAttention has no dropout")
        attention, block_mask = _flex_parts(problem)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out: Tensor = attention(q, k, v, block_mask=block_mask)
        return out.transpose(1, 2)

    return attend


_flex_cache: dict[int, tuple[Any, Any]] = {}


def _flex_parts(problem: Problem) -> tuple[Any, Any]:
    key = id(problem)
    if key not in _flex_cache:
        from torch.nn.attention import flex_attention as flex

        _flex_cache.clear()
        block_mask = None
        if problem.mask is not None:
            lengths = torch.tensor(problem.lengths, device=problem.mask.device)
            longest = max(problem.lengths)
            block_mask = flex.create_block_mask(
                lambda b, h, row, col: col < lengths[b],
                *(len(lengths), None, longest, longest),
                device=str(problem.mask.device),
            )
        _flex_cache[key] = torch.compile(flex.flex_attention), block_mask
    return _flex_cache[key]


def verify(problem: Problem, ours: Mapping[str, Implementation]) -> dict[str, dict[str, Any]]:
    """Compares our results without dropout with torch's attention in float64.

    Args:
        problem: one without dropout, as no two implementations draw the same bits. One head of two
            sequences of its longest length, cut to 4096, is compared.

    Raises:
        VerificationError: a result is further off than a small multiple of torch's own.
    """
    case = problem.case
    lengths = [min(max(problem.lengths), _VERIFIED_ROWS)] * 2
    small = make_problem(
        dataclasses.replace(case, batch_size=2, num_heads=1, seqlen=lengths[0], lengths="dense"),
        str(problem.padded[0].device),
        seed=1,
    )
    exact = _results(_sdpa(small, SDPBackend.MATH), small, torch.float64)
    plain = _results(_sdpa(small, SDPBackend.MATH), small, getattr(torch, case.dtype))
    checked: dict[str, dict[str, Any]] = {}
    for name in ours:
        backend = name.removeprefix("fastattn-")
        call = _ours(small, backend)
        q, k, v, dout = small.packed
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = call(*leaves)
        found = (out, *torch.autograd.grad(out, leaves, dout))
        for what, got, theirs, truth in zip(
            ("out", "dq", "dk", "dv"), found, plain, exact, strict=True
        ):
            factor = testing.OUT_FACTOR if what == "out" else testing.GRAD_FACTOR
            try:
                accuracy = testing.assert_as_accurate_as(
                    got, theirs, truth, factor=factor, name=f"{name} {what}"
                )
            except AssertionError as error:
                raise VerificationError(
                    f"bench: the results of {case.name} must be as accurate as torch's own; got "
                    f"{error}. Nothing was timed; run `fastattn check`."
                ) from error
            checked[f"{name} {what}"] = {"error": accuracy.error, "allowed": accuracy.allowed}
    return checked


def _results(attend: Attend, problem: Problem, dtype: torch.dtype) -> list[Tensor]:
    """Out and gradients in a dtype, as packed rows."""
    q, k, v, dout = (x.to(dtype) for x in problem.padded)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)
    results = (out.detach(), *torch.autograd.grad(out, leaves, dout))
    return [testing.pack(x, problem.lengths) for x in results]


def run_case(case: GpuCase, rounds: int, device: str = "cuda") -> dict[str, Any]:
    """Verifies and times one case."""
    problem = make_problem(case, device)
    candidates = implementations(problem)
    refused: dict[str, str] = {}
    for name, implementation in list(candidates.items()):
        try:
            for step in implementation.passes(problem).values():
                step()
        except Exception as error:  # whatever a peer cannot do is part of the result
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            del candidates[name]
    ours = {name: x for name, x in candidates.items() if name.startswith("fastattn-")}
    plain = problem._replace(case=dataclasses.replace(case, dropout_p=0.0))
    result: dict[str, Any] = {
        **case.described(),
        "lengths": problem.lengths,
        "refused": refused,
        "verified": verify(plain, ours),
        "target": GPU_TARGETS.get(case.name),
    }
    flops = forward_flops(case, problem.lengths)
    for name, work in (("forward", flops), ("forward_backward", flops * (1 + _BACKWARD_FLOPS))):
        timed = {who: x.passes(problem)[name] for who, x in candidates.items()}
        times_ms = event_times(timed, rounds) if device == "cuda" else interleave(timed, rounds)
        result[name] = _compared(times_ms, work)
    return result


def event_times(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The times on the GPU in milliseconds, in the order of the rounds."""
    times_ms: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(-_WARMUP, rounds):
        names = list(candidates) if index % 2 == 0 else list(candidates)[::-1]
        for name in names:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_HEAD_START_CYCLES)
            start.record()
            candidates[name]()
            end.record()
            end.synchronize()
            if index >= 0:
                times_ms[name].append(start.elapsed_time(end))
    return times_ms


def _compared(times_ms: Mapping[str, Sequence[float]], flops: float) -> dict[str, Any]:
    """A summary of each, its TFLOP/s, and how many times as fast as the best peer ours are."""
    times = {name: summary(values) for name, values in times_ms.items()}
    for name, values in times_ms.items():
        times[name]["tflops"] = flops / statistics.median(values) / 1e9
    peers = [name for name in times if not name.startswith("fastattn-")]
    best = min(peers, key=lambda name: times[name]["median_ms"], default=None)
    ratios = {
        name: times[best]["median_ms"] / times[name]["median_ms"]
        for name in times
        if best is not None and name not in peers
    }
    return {"times": times, "best_peer": best, "ratios": ratios}


def run(
    cases: Sequence[GpuCase], rounds: int, say: Say = lambda line: None, device: str = "cuda"
) -> dict[str, Any]:
    """Runs cases on the current GPU; returns what a result file holds beside the machine."""
    if any(case.lengths == "imdb" for case in cases):
        texts.require_packages()
    results = []
    for case in cases:
        say(case.name)
        results.append(run_case(case, rounds, device))
    return {"cases": results}
