"""Bias and exact GELU as one operator: the middle of a BERT layer's feed-forward part."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastattn import backends
from fastattn.ops import hidden_checks as checks
from fastattn.ops.calls import empty_like, register
from fastattn.ops.tangents import no_double_backward, refuse_tangents
from fastattn.reference import statistics_dtype

OP = "bias_gelu"


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """The exact GELU of a sum, the "gelu" of BERT's checkpoints.

        h = x + bias;  out = h * (1 + erf(h / sqrt(2))) / 2

    Args:
        x: (..., hidden_size), float32, float64, float16 or bfloat16; any strides, fastest with
            contiguous rows.
        bias: (hidden_size,), any of these dtypes; that of the linear layer whose product x is.
        backend: "cpu", "cuda", "triton" or "reference"; None chooses the kernels wherever they run.

    Returns:
        out, of the shape and dtype of x.

    Raises:
        ValueError, TypeError: an argument breaks its rule; the message says which.
        BackendError: the backend asked for cannot serve the call.
        NotImplementedError: a gradient of a gradient, or a forward-mode derivative, through a
            kernel.

    Computed in float32 (float64 for float64 inputs). The result is deterministic, forward and
    backward.
    """
    checks.check_x(OP, x)
    if bias is not None:
        checks.check_vector(OP, "bias", bias, x)
        bias = checks.in_dtype(bias, statistics_dtype(x.dtype))
    chosen = checks.choose_backend(OP, x, backend)
    if chosen == backends.REFERENCE:
        return reference(x, bias)
    refuse_tangents(OP, x, bias)
    return _fwd_op(x, bias, chosen)


def reference(x: Tensor, bias: Tensor | None) -> Tensor:
    """The operator in plain torch: its definition, and the backend where there is no kernel."""
    h = x.to(statistics_dtype(x.dtype))
    return F.gelu(h if bias is None else h + bias).to(x.dtype)


# The operators take bias in float32, or float64 for float64 inputs.
torch.library.define("fastattn::gelu_fwd", '(Tensor x, Tensor? bias, str backend="cpu") -> Tensor')
torch.library.define(
    "fastattn::gelu_bwd",
    '(Tensor dout, Tensor x, Tensor? bias, str backend="cpu") -> (Tensor, Tensor)',
)


def _empty_grads(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns dx and dbias, to be filled; dbias is empty if there is no bias."""
    return empty_like(x), x.new_empty(0) if bias is None else empty_like(bias)


def _gelu_fwd(x: Tensor, bias: Tensor | None, backend: str = "cpu") -> Tensor:
    out = empty_like(x)
    backends.get(backend).gelu_fwd(out, x, bias)
    return out


@torch.library.register_fake("fastattn::gelu_fwd")
def _gelu_fwd_fake(x: Tensor, bias: Tensor | None, backend: str = "cpu") -> Tensor:
    return empty_like(x)


def _gelu_bwd(
    dout: Tensor, x: Tensor, bias: Tensor | None, backend: str = "cpu"
) -> tuple[Tensor, Tensor]:
    dx, dbias = _empty_grads(x, bias)
    backends.get(backend).gelu_bwd(dx, None if bias is None else dbias, dout, x, bias)
    return dx, dbias


@torch.library.register_fake("fastattn::gelu_bwd")
def _gelu_bwd_fake(
    dout: Tensor, x: Tensor, bias: Tensor | None, backend: str = "cpu"
) -> tuple[Tensor, Tensor]:
    return _empty_grads(x, bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.backend = inputs
    ctx.save_for_backward(x, bias)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor | None, None]:
    x, bias = ctx.saved_tensors
    dx, dbias = _bwd_op(dout, x, bias, ctx.backend)
    return dx, None if bias is None else dbias, None


_fwd_op = register("fastattn::gelu_fwd", _gelu_fwd, _backward, _setup_context)
_bwd_op = register("fastattn::gelu_bwd", _gelu_bwd, no_double_backward(OP))
