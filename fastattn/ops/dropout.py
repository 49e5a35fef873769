"""Dropout of hidden states by the rule of :mod:`fastattn.dropout`, which stores no mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastattn import backends
from fastattn import dropout as rule
from fastattn.ops import hidden_checks as checks
from fastattn.ops.calls import empty_like, register
from fastattn.ops.tangents import refuse_tangents

OP = "dropout"


def dropout(
    x: Tensor,
    dropout_p: float,
    generator: torch.Generator | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Drops elements, and multiplies the others by one over the probability of keeping.

    Args:
        x: (..., hidden_size), float32, float64, float16 or bfloat16; any strides, fastest with
            contiguous rows.
        dropout_p: probability of dropping an element, in [0, 1), realised as a multiple of
            1/65536. It is applied whenever it is positive: pass 0 in evaluation.
        generator: source of the seed. Default: torch's generator of the device, so
            ``torch.manual_seed`` governs it.
        backend: "cpu", "cuda", "triton" or "reference"; None chooses the kernel wherever it runs.

    Returns:
        out, of the shape and dtype of x; x itself if dropout_p is 0.

    Raises:
        ValueError, TypeError: an argument breaks its rule; the message says which.
        BackendError: the backend asked for cannot serve the call.
        NotImplementedError: a forward-mode derivative through a kernel.
    """
    checks.check_x(OP, x)
    checks.check_dropout_p(OP, dropout_p)
    chosen = checks.choose_backend(OP, x, backend)
    if dropout_p == 0.0:
        return x
    seed = rule.draw_seed(x.device, generator)
    if chosen == backends.REFERENCE:
        return reference(x, seed, dropout_p)
    refuse_tangents(OP, x)
    return _op(x, seed, float(dropout_p), chosen)


def reference(x: Tensor, seed: Tensor, dropout_p: float) -> Tensor:
    """The operator in plain torch: its definition, and the backend where there is no kernel."""
    keep = rule.hidden_keep_mask(seed, x[..., 0].numel(), x.shape[-1], dropout_p)
    return torch.where(keep.view(x.shape), x * rule.keep_scale(dropout_p), 0.0)


torch.library.define(
    "fastattn::hidden_dropout",
    '(Tensor x, Tensor seed, float dropout_p, str backend="cpu") -> Tensor',
)


def _hidden_dropout(x: Tensor, seed: Tensor, dropout_p: float, backend: str = "cpu") -> Tensor:
    out = empty_like(x)
    backends.get(backend).hidden_dropout(out, x, seed, dropout_p)
    return out


@torch.library.register_fake("fastattn::hidden_dropout")
def _hidden_dropout_fake(x: Tensor, seed: Tensor, dropout_p: float, backend: str = "cpu") -> Tensor:
    return empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.dropout_p, ctx.backend = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None, None]:
    (seed,) = ctx.saved_tensors
    # Linear in x, and its own transpose; it can be differentiated any number of times.
    dx = _op(dout, seed, ctx.dropout_p, ctx.backend)
    return dx, None, None, None


_op = register("fastattn::hidden_dropout", _hidden_dropout, _backward, _setup_context)
