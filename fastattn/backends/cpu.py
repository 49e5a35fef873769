"""The CPU backend: fused kernels in C++, one build per instruction set."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastattn.backends.native import DTYPES as _DTYPES
from fastattn.backends.native import as_rows as _as_rows
from fastattn.backends.native import require_dtype as _require_dtype
from fastattn.backends.native import rows_contiguous as _rows_contiguous
from fastattn.backends.native import view as _view
from fastattn.compiling import constant_for_the_compiler
from fastattn.dropout import drop_threshold
from fastattn.ops import checks
from fastattn.reference import statistics_dtype

if TYPE_CHECKING:
    from fastattn.backends import Call, HiddenCall

NAME = "cpu"
MAX_HEAD_DIM = 256

_load_error: str | None = None
_C: Any = None
if os.environ.get("FASTATTN_DISABLE_NATIVE", "0") not in ("", "0"):
    _load_error = "the native module is switched off by FASTATTN_DISABLE_NATIVE"
else:
    try:
        _C = importlib.import_module("fastattn._C")
    except ImportError as error:
        _load_error = (
            f"the native module fastattn._C is not there ({error}); "
            "reinstall fastattn on a machine with a C++ compiler"
        )


def unavailable_reason() -> str | None:
    """Returns why the backend cannot run on this machine, or None."""
    return _load_error


def native_module() -> Any:
    """Returns the module fastattn._C; None if there is none."""
    return _C


def serves(device_type: str, head_dim: int) -> bool:
    """Whether neither :func:`unavailable_reason` nor :func:`unsupported_reasons` has one."""
    return _load_error is None and device_type == "cpu" and head_dim <= MAX_HEAD_DIM


def serves_hidden(device_type: str) -> bool:
    """Whether neither :func:`unavailable_reason` nor :func:`hidden_reasons` has one."""
    return _load_error is None and device_type == "cpu"


def unsupported_reasons(call: Call) -> list[str]:
    """Returns why the backend cannot serve a call."""
    reasons = []
    if call.device_type != "cpu":
        reasons.append(f"tensors must be on the CPU, got {call.device_type}")
    if call.head_dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim must be at most {MAX_HEAD_DIM}, got {call.head_dim}")
    return reasons


def hidden_reasons(call: HiddenCall) -> list[str]:
    """Returns why the operators on hidden states cannot serve a call."""
    return (
        [] if call.device_type == "cpu" else [f"tensors must be on the CPU, got {call.device_type}"]
    )


def instruction_sets() -> list[str]:
    """Returns the instruction sets that are compiled in and that this CPU has, best last."""
    return [] if _C is None else list(_C.cpu_instruction_sets())


def instruction_set() -> str | None:
    """Returns the instruction set in use: the best, or FASTATTN_CPU_ISA."""
    return None if _C is None else _C.cpu_instruction_set()


def set_instruction_set(name: str | None) -> None:
    """Chooses the instruction set of every later call; None: the best. For tests.

    Raises:
        ValueError: it is not compiled in, or this CPU lacks it.
    """
    _C.cpu_set_instruction_set(name or "")


def _options(
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    key_padding_mask: Tensor | None,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    softmax_scale: float,
    softcap: float,
    window_left: int,
    window_right: int,
    dropout_p: float,
) -> tuple[Any, ...]:
    """The options of a call in the order of the native functions."""
    return (
        None if cu_seqlens_q is None else _view(cu_seqlens_q),
        None if cu_seqlens_k is None else _view(cu_seqlens_k),
        None if key_padding_mask is None else _view(key_padding_mask),
        None if bias is None else _view(bias),
        None if alibi_slopes is None else _view(alibi_slopes),
        0 if seed is None else int(seed),
        softmax_scale,
        softcap,
        window_left,
        window_right,
        drop_threshold(dropout_p),
        torch.get_num_threads(),
    )


def _contiguous_lengths(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """The kernels read cumulative lengths with stride 1; the caller keeps the copies alive."""
    cu_seqlens_q, cu_seqlens_k = options[:2]
    if cu_seqlens_q.is_contiguous() and cu_seqlens_k.is_contiguous():
        return options
    return cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(), *options[2:]


def _checked_ends(q: Tensor, k: Tensor, options: tuple[Any, ...]) -> tuple[int, int]:
    """Checks cumulative lengths; returns the rows of q, and of k, that belong to sequences."""
    cu_seqlens_q, cu_seqlens_k = options[:2]
    max_seqlen_q, max_seqlen_k = options[6:8]
    total_q, total_k = q.shape[0], k.shape[0]
    end_q = checks.check_cu_seqlens_values("cu_seqlens_q", cu_seqlens_q, total_q, max_seqlen_q)
    if cu_seqlens_k is cu_seqlens_q and (total_k, max_seqlen_k) == (total_q, max_seqlen_q):
        return end_q, end_q
    end_k = checks.check_cu_seqlens_values("cu_seqlens_k", cu_seqlens_k, total_k, max_seqlen_k)
    return end_q, end_k


def _fill_rows_of_no_sequence(end: int, *rows: tuple[Tensor, float]) -> None:
    """The kernels write the rows of the sequences; fills what lies behind the last one."""
    for tensor, fill in rows:
        if end < tensor.shape[0]:
            tensor[end:] = fill


def attention_fwd(
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *options: Any,
    heads_first: bool = False,
) -> None:
    """Fills out and lse.

    Args:
        heads_first: q, k, v and out are (batch, heads, seqlen, head_dim).
    """
    ends = None
    if options[0] is not None:
        options = _contiguous_lengths(options)
        ends = _checked_ends(q, k, options)
    q, k, v = _rows_contiguous(q), _rows_contiguous(k), _rows_contiguous(v)
    _C.cpu_attention_fwd(
        _DTYPES[q.dtype],
        _view(out),
        _view(lse),
        _view(q),
        _view(k),
        _view(v),
        _options(*options),
        heads_first,
    )
    if ends is not None and ends[0] < q.shape[0]:
        _fill_rows_of_no_sequence(ends[0], (out, 0.0), (lse.transpose(0, 1), float("-inf")))


def attention_bwd(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias: Tensor | None,
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *options: Any,
    heads_first: bool = False,
) -> None:
    """Fills dq, dk, dv, and dbias if it is given.

    Args:
        heads_first: q, k, v, out and their gradients are (batch, heads, seqlen, head_dim).
    """
    ends = None
    if options[0] is not None:
        options = _contiguous_lengths(options)
        ends = _checked_ends(q, k, options)
    q, k, v = _rows_contiguous(q), _rows_contiguous(k), _rows_contiguous(v)
    dout, out = _rows_contiguous(dout), _rows_contiguous(out)
    if dbias is not None:
        dbias.zero_()
    _C.cpu_attention_bwd(
        _DTYPES[q.dtype],
        _view(dq),
        _view(dk),
        _view(dv),
        _view(dbias),
        _view(dout),
        _view(dlse),
        _view(q),
        _view(k),
        _view(v),
        _view(out),
        _view(lse),
        _options(*options),
        heads_first,
    )
    if ends is not None:
        _fill_rows_of_no_sequence(ends[0], (dq, 0.0))
        _fill_rows_of_no_sequence(ends[1], (dk, 0.0), (dv, 0.0))


def _dropout_options(seed: Tensor | None, dropout_p: float) -> tuple[int, int, int]:
    """The seed, the threshold, and the number of threads, last in each function below."""
    threshold = 0 if seed is None else drop_threshold(dropout_p)
    return 0 if seed is None else int(seed), threshold, torch.get_num_threads()


def layer_norm_fwd(
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_bias: Tensor | None,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
) -> None:
    """Fills out, contiguous and like residual, and mean and rstd, one number for each row."""
    x, residual = _as_rows(x), _as_rows(residual)
    stats_dtype = statistics_dtype(residual.dtype)
    _require_dtype(stats_dtype, weight=weight, bias=bias, x_bias=x_bias)
    _C.cpu_layer_norm_fwd(
        _DTYPES[x.dtype],
        _DTYPES[residual.dtype],
        _view(_as_rows(out)),
        _view(mean),
        _view(rstd),
        _view(x),
        _view(residual),
        _view(weight),
        _view(bias),
        _view(x_bias),
        eps,
        *_dropout_options(seed, dropout_p),
    )


def layer_norm_bwd(
    dx: Tensor | None,
    dresidual: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    dx_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    x_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> None:
    """Fills the gradients. dx is None where it would be equal to dresidual."""
    x, residual, dout = _as_rows(x), _as_rows(residual), _as_rows(dout)
    stats_dtype = statistics_dtype(residual.dtype)
    _require_dtype(stats_dtype, weight=weight, x_bias=x_bias, mean=mean, rstd=rstd)
    _require_dtype(residual.dtype, dout=dout)
    _C.cpu_layer_norm_bwd(
        _DTYPES[x.dtype],
        _DTYPES[residual.dtype],
        None if dx is None else _view(_as_rows(dx)),
        _view(_as_rows(dresidual)),
        _view(dweight),
        _view(dbias),
        _view(dx_bias),
        _view(dout),
        _view(x),
        _view(residual),
        _view(weight),
        _view(x_bias),
        _view(mean),
        _view(rstd),
        *_dropout_options(seed, dropout_p),
    )


def gelu_fwd(out: Tensor, x: Tensor, bias: Tensor | None) -> None:
    """Fills out, contiguous and of the shape and dtype of x."""
    x = _as_rows(x)
    _require_dtype(statistics_dtype(x.dtype), bias=bias)
    out = out.view(x.shape)
    if bias is None and x.is_contiguous():
        x, out = x.view(1, -1), out.view(1, -1)  # short rows would leave most of a vector empty
    _C.cpu_gelu_fwd(_DTYPES[x.dtype], _view(out), _view(x), _view(bias), torch.get_num_threads())


def gelu_bwd(
    dx: Tensor, dbias: Tensor | None, dout: Tensor, x: Tensor, bias: Tensor | None
) -> None:
    """Fills dx, contiguous and of the shape and dtype of x, and dbias if it is given."""
    x, dout = _as_rows(x), _as_rows(dout)
    _require_dtype(statistics_dtype(x.dtype), bias=bias)
    _require_dtype(x.dtype, dout=dout)
    dx = dx.view(x.shape)
    if bias is None and x.is_contiguous() and dout.is_contiguous():
        x, dout, dx = x.view(1, -1), dout.view(1, -1), dx.view(1, -1)
    _C.cpu_gelu_bwd(
        _DTYPES[x.dtype],
        _view(dx),
        _view(dbias),
        _view(dout),
        _view(x),
        _view(bias),
        torch.get_num_threads(),
    )


def hidden_dropout(out: Tensor, x: Tensor, seed: Tensor, dropout_p: float) -> None:
    """Fills out, contiguous and of the shape and dtype of x."""
    x = _as_rows(x)
    _C.cpu_hidden_dropout(
        _DTYPES[x.dtype], _view(out.view(x.shape)), _view(x), *_dropout_options(seed, dropout_p)
    )


def peak(dtype: str, rounds: int, num_threads: int) -> int:
    """Runs multiply-adds in registers, for benchmarks to take the time of.

    Args:
        dtype: whose arithmetic: "float32", "float64", "float16" or "bfloat16".
        rounds: multiply-adds one after the other; some chains of them run side by side.

    Returns:
        The number of floating-point operations of all threads.
    """
    return int(_C.cpu_peak(dtype, rounds, num_threads))


@constant_for_the_compiler
def prefers_own_matmul() -> bool:
    """Whether our float32 matrix product is the faster one on this CPU."""
    return _C is not None and _C.cpu_prefers_own_matmul()


def few_rows() -> int:
    """Returns up to how many rows :func:`matmul` serves linear layers without packing weights."""
    return 0 if _C is None else int(_C.CPU_FEW_ROWS)


def matmul(
    c: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    a_transposed: bool = False,
    b_transposed: bool = False,
    accumulate: bool = False,
) -> None:
    """Fills c, (m, n) float32, with op(a) @ op(b) + bias, where op transposes or not.

    The rows of a may be those of several dimensions.

    With ``accumulate`` the product is added to c; there is no bias then.
    """
    a, b = _as_rows(a), _as_rows(b)
    _C.cpu_matmul(
        _view(c),
        _view(a),
        _view(b),
        _view(None if bias is None else bias.contiguous()),
        a_transposed,
        b_transposed,
        accumulate,
        torch.get_num_threads(),
    )
