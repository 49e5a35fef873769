"""Dropout, residual and LayerNorm as one operator: how each half of a BERT layer ends."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastattn import backends, dropout
from fastattn.ops import hidden_checks as checks
from fastattn.ops.calls import empty_like, register
from fastattn.ops.tangents import no_double_backward, refuse_tangents
from fastattn.reference import statistics_dtype

OP = "dropout_add_layer_norm"


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    x_bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """LayerNorm of a residual sum with dropout, over the last dimension.

        out = layer_norm(residual + dropout(x + x_bias)) * weight + bias

    Args:
        x: (..., hidden_size), float32, float64, float16 or bfloat16; any strides, fastest with
            contiguous rows.
        residual: the shape of x. Its dtype may differ, as it does under ``torch.autocast``, where
            a matrix product gives 16 bits and the residual stream stays in float32.
        weight: (hidden_size,), any of these dtypes.
        bias: (hidden_size,).
        eps: added to the variance.
        dropout_p: probability of dropping an element of x + x_bias, in [0, 1), realised as a
            multiple of 1/65536. It is applied whenever it is positive: pass 0 in evaluation.
        generator: source of the dropout seed. Default: torch's generator of the device, so
            ``torch.manual_seed`` governs it.
        x_bias: (hidden_size,); that of the linear layer whose product x is.
        backend: "cpu", "cuda", "triton" or "reference"; None chooses the kernels wherever they run.

    Returns:
        out, of the shape of x and of the dtype that ``residual + x`` has.

    Raises:
        ValueError, TypeError: an argument breaks its rule; the message says which.
        BackendError: the backend asked for cannot serve the call.
        NotImplementedError: a gradient of a gradient, or a forward-mode derivative, through a
            kernel.

    The sum and its statistics are never rounded to fewer bits than float32 (float64 for float64
    inputs) has. The result is deterministic, forward and backward.
    """
    _check(x, residual, weight, bias, eps, dropout_p, x_bias)
    out_dtype = torch.promote_types(x.dtype, residual.dtype)
    residual = checks.in_dtype(residual, out_dtype)
    if out_dtype == torch.float64:
        x = x.to(out_dtype)
    stats_dtype = statistics_dtype(out_dtype)
    weight, bias = checks.in_dtype(weight, stats_dtype), checks.in_dtype(bias, stats_dtype)
    if x_bias is not None:
        x_bias = checks.in_dtype(x_bias, stats_dtype)
    chosen = checks.choose_backend(OP, x, backend)
    seed = dropout.draw_seed(x.device, generator) if dropout_p > 0.0 else None
    options = (x, residual, weight, bias, x_bias, seed, float(eps), float(dropout_p))
    if chosen == backends.REFERENCE:
        return reference(*options)
    refuse_tangents(OP, x, residual, weight, bias, x_bias)
    return _fwd_op(*options, chosen)[0]


def reference(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_bias: Tensor | None,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
) -> Tensor:
    """The operator in plain torch: its definition, and the backend where there is no kernel.

    Args:
        seed: scalar int64 tensor, needed if dropout_p > 0.
    """
    stats_dtype = weight.dtype
    h = x.to(stats_dtype)
    if x_bias is not None:
        h = h + x_bias
    if seed is not None:
        keep = dropout.hidden_keep_mask(seed, h[..., 0].numel(), h.shape[-1], dropout_p)
        h = torch.where(keep.view(h.shape), h * dropout.keep_scale(dropout_p), 0.0)
    return F.layer_norm(residual.to(stats_dtype) + h, h.shape[-1:], weight, bias, eps).to(
        residual.dtype
    )


def _check(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    x_bias: Tensor | None,
) -> None:
    checks.check_x(OP, x)
    checks.check_floating(OP, "residual", residual)
    if residual.shape != x.shape:
        raise ValueError(
            f"{OP}: residual must have the shape of x, {tuple(x.shape)}; got "
            f"{tuple(residual.shape)}."
        )
    checks.check_device(OP, "residual", residual, x)
    checks.check_vector(OP, "weight", weight, x)
    checks.check_vector(OP, "bias", bias, x)
    if x_bias is not None:
        checks.check_vector(OP, "x_bias", x_bias, x)
    checks.check_eps(OP, eps)
    checks.check_dropout_p(OP, dropout_p)


# The operators take residual in the dtype of the result, x in that dtype or with 16 bits where it
# is float32, and vectors in the dtype of the statistics, which mean and rstd have too.
torch.library.define(
    "fastattn::layer_norm_fwd",
    "(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor? x_bias, Tensor? seed, "
    'float eps, float dropout_p, str backend="cpu") -> (Tensor, Tensor, Tensor)',
)
torch.library.define(
    "fastattn::layer_norm_bwd",
    "(Tensor dout, Tensor x, Tensor residual, Tensor weight, Tensor? x_bias, Tensor mean, "
    'Tensor rstd, Tensor? seed, float dropout_p, str backend="cpu") '
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _empty_outputs(residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns out, mean and rstd, to be filled."""
    rows = math.prod(residual.shape[:-1])
    return empty_like(residual), weight.new_empty(rows), weight.new_empty(rows)


def _one_gradient(x: Tensor, residual: Tensor, seed: Tensor | None) -> bool:
    """Says whether x and residual have the same gradient."""
    return seed is None and x.dtype == residual.dtype


def _empty_grads(
    x: Tensor, residual: Tensor, weight: Tensor, x_bias: Tensor | None, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the five gradients, to be filled; what is not computed is empty."""
    return (
        x.new_empty(0 if _one_gradient(x, residual, seed) else x.shape),
        empty_like(residual),
        empty_like(weight),
        empty_like(weight),
        weight.new_empty(0 if x_bias is None else x_bias.shape),
    )


def _layer_norm_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_bias: Tensor | None,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
    backend: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    out, mean, rstd = _empty_outputs(residual, weight)
    backends.get(backend).layer_norm_fwd(
        out, mean, rstd, x, residual, weight, bias, x_bias, seed, eps, dropout_p
    )
    return out, mean, rstd


@torch.library.register_fake("fastattn::layer_norm_fwd")
def _layer_norm_fwd_fake(
    x: Tensor, residual: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_outputs(residual, weight)


def _layer_norm_bwd(
    dout: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    x_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    backend: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _empty_grads(x, residual, weight, x_bias, seed)
    dx, dresidual, dweight, dbias, dx_bias = grads
    backends.get(backend).layer_norm_bwd(
        None if _one_gradient(x, residual, seed) else dx,
        dresidual,
        dweight,
        dbias,
        None if x_bias is None else dx_bias,
        dout,
        x,
        residual,
        weight,
        x_bias,
        mean,
        rstd,
        seed,
        dropout_p,
    )
    return grads


@torch.library.register_fake("fastattn::layer_norm_bwd")
def _layer_norm_bwd_fake(
    dout: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    x_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    backend: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_grads(x, residual, weight, x_bias, seed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, _, x_bias, seed, _, ctx.dropout_p, ctx.backend = inputs
    _, mean, rstd = output
    # Not the sum: x and residual give it again, and the residual is kept by other layers anyway.
    ctx.save_for_backward(x, residual, weight, x_bias, mean, rstd, seed)
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple[Any, ...]:
    x, residual, weight, x_bias, mean, rstd, seed = ctx.saved_tensors
    dx, dresidual, dweight, dbias, dx_bias = _bwd_op(
        dout, x, residual, weight, x_bias, mean, rstd, seed, ctx.dropout_p, ctx.backend
    )
    if _one_gradient(x, residual, seed):
        dx = dresidual
    dx_bias = None if x_bias is None else dx_bias
    return dx, dresidual, dweight, dbias, dx_bias, None, None, None, None


_fwd_op = register("fastattn::layer_norm_fwd", _layer_norm_fwd, _backward, _setup_context)
_bwd_op = register("fastattn::layer_norm_bwd", _layer_norm_bwd, no_double_backward(OP))
