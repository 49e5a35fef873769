"""``fastattn.attention``: the one operation everything else in the package is a view of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastattn import backends, dropout, reference
from fastattn.ops import checks
from fastattn.ops.attention_op import attention_op, heads_first_like


class Options(NamedTuple):
    """The checked arguments of a call, in the form the backends take."""

    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    max_seqlen_q: int | None
    max_seqlen_k: int | None
    key_padding_mask: Tensor | None
    bias: Tensor | None
    alibi_slopes: Tensor | None
    softmax_scale: float
    softcap: float
    window: tuple[int, int]
    dropout_p: float


# Called with q, k (heads second), the options and the backend of every eager call.
_watchers: list[Callable[[Tensor, Tensor, Options, str], None]] = []


@contextlib.contextmanager
def watched(watcher: Callable[[Tensor, Tensor, Options, str], None]) -> Iterator[None]:
    """Shows a function every call, of any thread, for the length of a ``with`` block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = ...,
    cu_seqlens_k: Tensor | None = ...,
    max_seqlen_q: int | None = ...,
    max_seqlen_k: int | None = ...,
    key_padding_mask: Tensor | None = ...,
    bias: Tensor | None = ...,
    causal: bool = ...,
    window: tuple[int, int] = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    softmax_scale: float | None = ...,
    dropout_p: float = ...,
    generator: torch.Generator | None = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = ...,
    cu_seqlens_k: Tensor | None = ...,
    max_seqlen_q: int | None = ...,
    max_seqlen_k: int | None = ...,
    key_padding_mask: Tensor | None = ...,
    bias: Tensor | None = ...,
    causal: bool = ...,
    window: tuple[int, int] = ...,
    softcap: float = ...,
    alibi_slopes: Tensor | None = ...,
    softmax_scale: float | None = ...,
    dropout_p: float = ...,
    generator: torch.Generator | None = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    key_padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact softmax attention that does not store the score matrix.

        out = dropout(softmax(softmax_scale * q @ k.T + bias)) @ v

    Two layouts. *Batch*: every sequence has the same length, padding is named by
    ``key_padding_mask``. *Packed*: the sequences lie one after the other without padding, and
    ``cu_seqlens_q`` says where each begins. :mod:`fastattn.reference` defines every option.

    Args:
        q: (batch, seqlen_q, num_heads, head_dim), or packed (total_q, num_heads, head_dim).
            float32, float64, float16 or bfloat16; any strides, fastest with a contiguous last
            dimension. Under ``torch.autocast``, q, k and v are cast to its dtype.
        k: (batch, seqlen_k, num_heads_kv, head_dim), or packed (total_k, num_heads_kv, head_dim).
            num_heads must be a multiple of num_heads_kv (grouped and multi-query heads).
        v: the shape of k.
        cu_seqlens_q: (batch + 1,) int32, 0 and the running sum of the lengths. Selects the packed
            layout. Rows of q past its last value belong to no sequence: out = 0 there.
        cu_seqlens_k: the same for k and v. Default: cu_seqlens_q.
        max_seqlen_q: length of the longest sequence of q, packed layout. Default: read from
            cu_seqlens_q, which on a GPU waits for the device.
        max_seqlen_k: the same for k and v.
        key_padding_mask: (batch, seqlen_k) bool, True = attend; batch layout only. What padding
            rows of k and v hold is never read into a result, NaN included.
        bias: broadcastable to (batch, num_heads, seqlen_q, seqlen_k), floating-point, added to the
            scaled scores; -inf masks. Packed: the last two dimensions are (max_seqlen_q,
            max_seqlen_k), counted from the start of each sequence. Gets a gradient.
        causal: query i of a sequence sees keys j <= i + seqlen_k - seqlen_q.
        window: (left, right): i + seqlen_k - seqlen_q - left <= j <= i + seqlen_k - seqlen_q +
            right; -1 = unbounded.
        softcap: if positive, scores become softcap * tanh(score / softcap) before the bias.
        alibi_slopes: (num_heads,) or (batch, num_heads); subtracts
            slope * |i + seqlen_k - seqlen_q - j| from the scores.
        softmax_scale: factor of q @ k.T. Default: head_dim ** -0.5.
        dropout_p: probability of dropping an attention weight, in [0, 1], realised as a multiple
            of 1/65536. It is applied whenever it is positive: pass 0 in evaluation.
        generator: source of the dropout seed. Default: torch's generator of the device, so
            ``torch.manual_seed`` governs it.
        return_lse: also return the log of the softmax's denominator.
        backend: "cpu", "cuda", "triton", "cuda-hopper" (an H100's or H200's own kernels, which are
            not chosen unasked) or "reference"; None chooses among those that serve the call.
            :func:`fastattn.explain` says which and why.

    Returns:
        out, of the shape and dtype of q. With return_lse also lse, float32 (float64 for float64
        inputs), natural logarithm, (batch, num_heads, seqlen_q) or (num_heads, total_q);
        differentiable. A row with no key to attend to has out = 0, lse = -inf, zero gradients.

    Raises:
        ValueError, TypeError: an argument breaks its rule; the message says which.
        BackendError: no backend, or not the one asked for, serves the call.
        NotImplementedError: a gradient of a gradient, or a forward-mode derivative, through a fused
            kernel.

    Products are taken in the dtype of q, softmax and sums in float32 (float64 for float64). The
    result is deterministic, forward and backward.

    Source: Dao, "FlashAttention-2", 2023, algorithms 1 and 2.
    """
    q, k, v = autocast(q, k, v)
    options = checked_options(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        key_padding_mask=key_padding_mask,
        bias=bias,
        causal=causal,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        softmax_scale=softmax_scale,
        dropout_p=dropout_p,
    )
    chosen = backends.choose(q, k, options, backend)
    seed = dropout.draw_seed(q.device, generator) if dropout_p > 0.0 else None
    out, lse = run(q, k, v, options, seed, chosen)
    return (out, lse) if return_lse else out


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: Options,
    seed: Tensor | None,
    backend: str,
    *,
    heads_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs a call with checked arguments on the backend chosen for it.

    Args:
        heads_first: q, k, v and out are (batch, heads, seqlen, head_dim), and out has the strides
            of q where these leave no gaps.
    """
    if not torch.compiler.is_compiling() and _watchers:
        rows = (q.transpose(1, 2), k.transpose(1, 2)) if heads_first else (q, k)
        for watcher in _watchers:
            watcher(*rows, options, backend)
    drops_all = options.dropout_p == 1.0
    if drops_all:
        # No kernel has a draw that does. Not _replace(), which not every compiler can trace.
        options, seed = Options(*options[:-1], dropout_p=0.0), None
    if backend != backends.REFERENCE:
        out, lse = attention_op(q, k, v, options, seed, backend, heads_first)
    elif not heads_first:
        out, lse = _reference(q, k, v, options, seed)
    else:
        q_rows, k_rows, v_rows = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = _reference(q_rows, k_rows, v_rows, options, seed)
        out = heads_first_like(out, q)
    return F.dropout(out, 1.0) if drops_all else out, lse


def describe_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    backend: str | None = None,
    generator: torch.Generator | None = None,
    return_lse: bool = False,
    **options: Any,
) -> tuple[backends.Call, str | None]:
    """Checks the arguments of :func:`attention`; returns what decides on its backend."""
    q, k, v = autocast(q, k, v)
    return backends.describe(q, k, checked_options(q, k, v, **options)), backend


def autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Casts q, k, v as torch's own attention does under ``torch.autocast``."""
    # torch has no autocast for tensors without data, and says so by raising.
    if not isinstance(q, Tensor) or q.is_meta or not torch.is_autocast_enabled(q.device.type):
        return q, k, v
    dtype = torch.get_autocast_dtype(q.device.type)
    q, k, v = (
        x.to(dtype) if isinstance(x, Tensor) and x.dtype in checks.AUTOCAST_DTYPES else x
        for x in (q, k, v)
    )
    return q, k, v


def checked_options(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    key_padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
) -> Options:
    """Checks every argument of :func:`attention` and fills in the defaults."""
    packed = cu_seqlens_q is not None
    checks.check_qkv(q, k, v, packed)
    checks.check_dropout_p(dropout_p)
    checks.check_softcap(softcap)
    if softmax_scale is None:
        softmax_scale = q.shape[-1] ** -0.5
    else:
        checks.check_softmax_scale(softmax_scale)
    if cu_seqlens_q is not None:
        cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        checks.check_packed(q, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        batch_size = cu_seqlens_q.shape[0] - 1
    else:
        checks.check_batch_only(cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        batch_size, max_seqlen_q, _, _ = q.shape
        max_seqlen_k = k.shape[1]
    if key_padding_mask is not None:
        checks.check_key_padding_mask(key_padding_mask, k, packed)
    if bias is not None:
        if cu_seqlens_q is not None and max_seqlen_q is None:
            max_seqlen_q = reference.longest(cu_seqlens_q)
        if cu_seqlens_k is not None and max_seqlen_k is None:
            max_seqlen_k = reference.longest(cu_seqlens_k)
        assert max_seqlen_q is not None and max_seqlen_k is not None  # set above in both layouts
        bias = checks.check_bias(bias, q, (batch_size, q.shape[-2], max_seqlen_q, max_seqlen_k))
        bias = bias.to(reference.statistics_dtype(q.dtype))
    if alibi_slopes is not None:
        alibi_slopes = checks.check_alibi_slopes(alibi_slopes, q, batch_size)
        alibi_slopes = alibi_slopes.to(torch.float32)
    return Options(
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        key_padding_mask,
        bias,
        alibi_slopes,
        float(softmax_scale),
        float(softcap),
        checks.check_window(window, causal),
        float(dropout_p),
    )


def _reference(
    q: Tensor, k: Tensor, v: Tensor, options: Options, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The reference as a backend: plain torch, so autograd and the compiler see through it."""
    checks.check_cu_seqlens_on_cpu(q, k, options)
    off = contextlib.nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False)
    with off:
        # Not options._asdict(), which the compiler of torch 2.6 cannot trace.
        named: dict[str, Any] = dict(zip(Options._fields, options, strict=True))
        return reference.attention(q, k, v, seed=seed, **named)
