"""What is timed: fastattn, and every implementation of attention that is installed.

A peer is a function of a problem that returns an :class:`Implementation`, or raises: it is not
installed, or cannot do what the case asks. Its reason then stands in the result; no peer is left
out without a word.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import fastattn
from fastattn import backends
from fastattn.backends.cuda import CUDA, EMULATED, HOPPER
from fastattn.bench.memory import available_bytes, eager_attention
from fastattn.bench.passes import passes_of
from fastattn.bench.problem import Attend, Problem

# A peer's rounding is its own affair; results that are off by more than this many times what we
# allow ourselves are wrong, and are not timed.
PEER_FACTOR = 10.0
# Matrices of scores that plain attention holds at once in forward + backward, about.
_MATRICES = 4


class Refusal(Exception):
    """A peer does not serve a case, and says why."""


class Implementation(NamedTuple):
    """A function of q, k and v, and which form of the tensors it takes."""

    attend: Attend
    is_packed: bool
    differentiable: bool = True

    def passes(self, problem: Problem) -> dict[str, Callable[[], Any]]:
        """Returns what is timed (:func:`passes_of`): forward alone if there are no gradients."""
        *inputs, dout = problem.packed if self.is_packed else problem.padded
        passes = passes_of(self.attend, inputs, dout)
        return passes if self.differentiable else {"forward": passes["forward"]}


def ours(problem: Problem) -> dict[str, Implementation]:
    """Returns fastattn: packed, if there is padding, as a patched model removes it once for all
    layers. On a GPU each of our backends, whether it serves the problem or not; without one, "cuda"
    stands for its emulator.
    """
    if problem.device.type != "cpu":
        names = (CUDA.NAME, "triton", HOPPER.NAME)
        return {f"fastattn-{name}": _ours(problem, name) for name in names}
    if problem.case.dtype == "float16" and EMULATED.unavailable_reason() is None:
        return {f"fastattn-{EMULATED.NAME}": _ours(problem, EMULATED.NAME)}
    return {"fastattn": _ours(problem, None)}


def serving(problem: Problem) -> tuple[dict[str, Implementation], dict[str, str]]:
    """Returns what is ours and serves a problem, and why the rest does not.

    Raises:
        Refusal: nothing of ours does.
    """
    case = problem.case
    options = ("dropout_p",) if case.dropout_p > 0.0 else ()
    dtype = getattr(torch, case.dtype)
    call = backends.Call(problem.device.type, dtype, case.head_dim, True, options)
    served, refused = ours(problem), {}
    for name in list(served):
        backend = backend_of(name)
        reasons = [] if backend is None else backends.unsupported_reasons(backend, call)
        if reasons:
            refused[name] = "; ".join(reasons)
            del served[name]
    if not served:
        raise Refusal(". ".join(f"{name}: {why}" for name, why in refused.items()))
    return served, refused


def backend_of(name: str) -> str | None:
    """Returns the backend that is asked for under a name of ours, such as "fastattn-triton"."""
    return name.removeprefix("fastattn").removeprefix("-") or None


def _ours(problem: Problem, backend: str | None) -> Implementation:
    case = problem.case
    options: dict[str, Any] = {"dropout_p": case.dropout_p, "backend": backend}
    is_packed = case.lengths != "dense" or len(set(problem.lengths)) > 1 or backend is not None
    is_packed = is_packed or problem.padded[0].shape[1] > max(problem.lengths)
    if is_packed:
        options |= {"cu_seqlens_q": problem.cu_seqlens, "max_seqlen_q": max(problem.lengths)}
    elif problem.is_token is not None:
        options["key_padding_mask"] = problem.is_token

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = fastattn.attention(q, k, v, **options)
        assert isinstance(out, Tensor)  # lse is not asked for
        return out

    return Implementation(attend, is_packed)


def sdpa(problem: Problem, kind: SDPBackend) -> Implementation:
    """One backend of torch's scaled_dot_product_attention."""
    if kind == SDPBackend.MATH:
        _require_memory(problem)
    options: dict[str, Any] = {"attn_mask": problem.mask, "dropout_p": problem.case.dropout_p}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(kind):
            return scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)

    return Implementation(attend, is_packed=False)


def _eager(problem: Problem) -> Implementation:
    _require_memory(problem)
    mask, dropout_p = problem.mask, problem.case.dropout_p
    return Implementation(lambda q, k, v: eager_attention(q, k, v, mask, dropout_p), False)


def _require_memory(problem: Problem) -> None:
    if problem.device.type != "cpu":
        return
    batch_size, seqlen, num_heads, _ = problem.padded[0].shape
    needed = _MATRICES * 4 * batch_size * num_heads * seqlen**2
    if needed > 0.6 * available_bytes():
        raise Refusal(f"its scores take about {needed / 2**30:.0f} GiB")


def _flash_varlen(problem: Problem) -> Implementation:
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

    return Implementation(Flash.apply, is_packed=True)


def _flex(problem: Problem) -> Implementation:
    """FlexAttention, compiled, with a block mask where there is padding."""
    if problem.case.dropout_p > 0.0:
        raise Refusal("FlexAttention has no dropout")
    from torch.nn.attention import flex_attention as flex

    block_mask = None
    if problem.mask is not None:
        lengths = torch.tensor(problem.lengths, device=problem.device)
        longest = problem.padded[0].shape[1]
        block_mask = flex.create_block_mask(
            lambda b, h, row, col: col < lengths[b],
            *(len(problem.lengths), None, longest, longest),
            device=str(problem.device),
        )
    torch.compiler.reset()  # each shape is compiled for itself, as if it were the only one
    compiled = torch.compile(flex.flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out: Tensor = compiled(q, k, v, block_mask=block_mask)
        return out.transpose(1, 2)

    # On a CPU it refuses tensors that need gradients.
    return Implementation(attend, False, differentiable=problem.device.type != "cpu")


def _flash_attn(problem: Problem) -> Implementation:
    """The flash-attn package, on packed sequences."""
    # Not by importing it: fastattn.compat can stand in for a module of this name.
    require_distributions("flash-attn")
    varlen: Any = importlib.import_module("flash_attn").flash_attn_varlen_func
    longest, dropout_p = max(problem.lengths), problem.case.dropout_p
    lengths = (problem.cu_seqlens, problem.cu_seqlens, longest, longest)
    return Implementation(lambda q, k, v: varlen(q, k, v, *lengths, dropout_p), True)


def _xformers(problem: Problem) -> Implementation:
    """The memory-efficient attention of xformers, on packed sequences."""
    require_distributions("xformers")
    ops: Any = importlib.import_module("xformers.ops")
    bias = ops.fmha.BlockDiagonalMask.from_seqlens(problem.lengths)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x[None] for x in (q, k, v))
        options = {"attn_bias": bias, "p": problem.case.dropout_p}
        out: Tensor = ops.memory_efficient_attention(q, k, v, **options)
        return out[0]

    return Implementation(attend, is_packed=True)


def _onnxruntime(problem: Problem) -> Implementation:
    """The operator MultiHeadAttention of ONNX Runtime, on as many threads as torch has."""
    require_distributions("onnxruntime", "onnx")
    if problem.case.dropout_p > 0.0:
        raise Refusal("ONNX Runtime infers, without dropout")
    if problem.case.dtype != "float32":
        raise Refusal("its operator takes float32 on a CPU")
    from fastattn.bench.onnx_peer import attention_session

    return Implementation(attention_session(problem), False, differentiable=False)


def require_distributions(*distributions: str) -> None:
    """Raises a Refusal that names the first of some packages that is not installed."""
    for name in distributions:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise Refusal(f"{name} is not installed") from None


def _sdpa_peer(kind: SDPBackend) -> Callable[[Problem], Implementation]:
    return lambda problem: sdpa(problem, kind)


_CPU, _GPU = "cpu", "cuda"
# Each with the devices that it is for.
PEERS: dict[str, tuple[Callable[[Problem], Implementation], tuple[str, ...]]] = {
    "sdpa-flash": (_sdpa_peer(SDPBackend.FLASH_ATTENTION), (_CPU, _GPU)),
    "sdpa-efficient": (_sdpa_peer(SDPBackend.EFFICIENT_ATTENTION), (_GPU,)),
    "sdpa-cudnn": (_sdpa_peer(SDPBackend.CUDNN_ATTENTION), (_GPU,)),
    "sdpa-math": (_sdpa_peer(SDPBackend.MATH), (_CPU, _GPU)),
    "eager": (_eager, (_CPU, _GPU)),
    "flex": (_flex, (_CPU, _GPU)),
    "torch-flash-varlen": (_flash_varlen, (_GPU,)),
    "flash-attn": (_flash_attn, (_GPU,)),
    "xformers": (_xformers, (_GPU,)),
    "onnxruntime": (_onnxruntime, (_CPU,)),
}
COMPILED = ("flex",)


def make_peer(name: str, problem: Problem, *, quick: bool = False) -> Implementation:
    """Returns a peer on a problem.

    Raises:
        Exception: it is for another device, is not installed, or cannot serve the case.
    """
    build, devices = PEERS[name]
    if problem.device.type not in devices:
        raise Refusal("it is for GPUs alone" if devices == (_GPU,) else "it is for CPUs alone")
    if name in COMPILED and (quick or not problem.case.compiled):
        what = "a quick run" if quick else "this case"
        raise Refusal(f"it is compiled anew for each shape, which is not done for {what}")
    return build(problem)
