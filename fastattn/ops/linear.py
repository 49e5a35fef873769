"""The linear layers around attention: several on one input, and in float32 a product of our own.

On AMD CPUs with AVX-512, torch's float32 matrix product takes a path of half the vector width: 106
to 112 of 256 GFLOP/s on one core at the shapes of MiniLM's and BERT-base's layers, forward and
backward; our own product reaches 207 to 234 (Zen 5, torch 2.13, 2026-11-23). Few rows, as of one
short text, have a kernel of their own in the forward pass. Elsewhere, and for every other dtype,
torch's own product runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastattn.backends import cpu
from fastattn.ops.calls import (
    is_plain_call,
    is_transforming,
    needs_gradient,
    past_functorch,
)
from fastattn.ops.tangents import has_tangents

# A single row is a product with a vector, at which torch is as fast.
_LEAST_ROWS = 2


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, as :func:`torch.nn.functional.linear`, whose arguments these are.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        (..., out_features). Deterministic, forward and backward, in our product as in torch's.
    """
    return linears(x, (weight,), (bias,))[0]


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Several linear layers on one input, such as the query, key and value of attention.

    Under ``torch.autocast`` x is cast once for all of them, and the gradient of x is summed in the
    products, not after them.

    Args:
        x: (..., in_features).
        weights: each (out_features, in_features); out_features may differ.
        biases: one for each weight, (out_features,) or None.

    Returns:
        For each weight (..., out_features).
    """
    given = [bias for bias in biases if bias is not None]
    parameters = [*weights, *given]
    if _has_many_rows(x, weights[0]):
        if len(given) in (0, len(weights)) and _is_ours(x, parameters):
            return tuple(torch.ops.fastattn.linears(x, list(weights), given))
    elif _has_few_rows(x, weights[0]) and _is_ours(x, parameters) and is_plain_call(x, *parameters):
        # The same bits with gradients and without: checkpointing computes an output in both ways.
        product = _product_with_gradients if needs_gradient(x, *parameters) else _product
        return tuple([product(x, w, b) for w, b in zip(weights, biases, strict=True)])
    # torch has no autocast for tensors without data, and says so by raising.
    if x.dtype == torch.float32 and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return tuple([F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)])


def _has_many_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether there are enough rows for our products to be faster, those of gradients as well.

    A graph that is compiled serves batches of all sizes, and mostly large ones.
    """
    return torch.compiler.is_compiling() or x.numel() > cpu.few_rows() * weight.shape[-1]


def _has_few_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether our product of few rows is faster than torch's."""
    return x.numel() >= _LEAST_ROWS * weight.shape[-1]


def _is_ours(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether our product is exact for these tensors and this CPU's faster one."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and all(p.dtype == torch.float32 and p.device == x.device for p in parameters)
        and parameters[0].ndim == 2
        and x.shape[-1] == parameters[0].shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and cpu.prefers_own_matmul()
        and not has_tangents(x, *parameters)
        and (torch.compiler.is_compiling() or not is_transforming())  # torch's has a rule for each
    )


# There are as many biases as weights, or none.
torch.library.define(
    "fastattn::linears", "(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor[]"
)
torch.library.define(
    "fastattn::matmul", "(Tensor a, Tensor b, bool a_transposed, bool b_transposed) -> Tensor"
)
# The sum of a[i] @ b[i].
torch.library.define("fastattn::matmul_sum", "(Tensor[] a, Tensor[] b) -> Tensor")


def _empty_output(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _empty_outputs(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> list[Tensor]:
    return [_empty_output(x, weight) for weight in weights]


def _empty_product(a: Tensor, b: Tensor, a_transposed: bool, b_transposed: bool) -> Tensor:
    return a.new_empty(a.shape[1 if a_transposed else 0], b.shape[0 if b_transposed else 1])


def _empty_sum(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return _empty_product(a[0], b[0], False, False)


torch.library.register_fake("fastattn::linears", _empty_outputs)
torch.library.register_fake("fastattn::matmul", _empty_product)
torch.library.register_fake("fastattn::matmul_sum", _empty_sum)


@torch.library.impl("fastattn::linears", "CPU")
def _linears(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> list[Tensor]:
    return [
        _product(x, weight, biases[index] if biases else None)
        for index, weight in enumerate(weights)
    ]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _empty_output(x, weight)
    cpu.matmul(out.flatten(0, -2), x, weight, bias, b_transposed=True)
    return out


@torch.library.impl("fastattn::matmul", "CPU")
def _matmul(a: Tensor, b: Tensor, a_transposed: bool, b_transposed: bool) -> Tensor:
    product = _empty_product(a, b, a_transposed, b_transposed)
    cpu.matmul(product, a, b, a_transposed=a_transposed, b_transposed=b_transposed)
    return product


@torch.library.impl("fastattn::matmul_sum", "CPU")
def _matmul_sum(a: list[Tensor], b: list[Tensor]) -> Tensor:
    total = _empty_sum(a, b)
    for index, (left, right) in enumerate(zip(a, b, strict=True)):
        cpu.matmul(total, left, right, accumulate=index > 0)
    return total


class _FewRows(torch.autograd.Function):
    """Our product, with gradients by torch's: ours would pack the weights for them."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = dout.flatten(0, -2)
        return (
            (rows @ weight).view(x.shape) if needs_x else None,
            rows.T @ x.flatten(0, -2) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


_product_with_gradients = past_functorch(_FewRows)


def _linears_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, biases = inputs
    ctx.num_biases = len(biases)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *weights)


def _linears_backward(
    ctx: Any, douts: list[Tensor | None]
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    x, *weights = ctx.saved_tensors
    needs_x, needs_weights, needs_biases = ctx.needs_input_grad
    rows = x.flatten(0, -2)
    # A layer whose output nothing depends on has no gradient to pass on.
    grads = [None if dout is None else dout.flatten(0, -2) for dout in douts]
    used = [(grad, weight) for grad, weight in zip(grads, weights, strict=True) if grad is not None]
    dx = None
    if needs_x and used:
        dx = torch.ops.fastattn.matmul_sum(*map(list, zip(*used, strict=True))).view(x.shape)
    dweights = [
        torch.ops.fastattn.matmul(grad, rows, True, False) if grad is not None and needed else None
        for grad, needed in zip(grads, needs_weights, strict=True)
    ]
    dbiases = [
        grad.sum(0) if grad is not None and needed else None
        for grad, needed in zip(grads[: ctx.num_biases], needs_biases, strict=True)
    ]
    return dx, dweights, dbiases


def _matmul_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, *ctx.transposed = inputs
    ctx.save_for_backward(a, b)


def _matmul_backward(ctx: Any, dproduct: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    """Products of products, so that a gradient can be differentiated again."""
    a, b = ctx.saved_tensors
    a_transposed, b_transposed = ctx.transposed
    op = torch.ops.fastattn.matmul
    da = db = None
    if ctx.needs_input_grad[0]:
        if a_transposed:
            da = op(b, dproduct, b_transposed, True)
        else:
            da = op(dproduct, b, False, not b_transposed)
    if ctx.needs_input_grad[1]:
        if b_transposed:
            db = op(dproduct, a, True, a_transposed)
        else:
            db = op(a, dproduct, not a_transposed, False)
    return da, db, None, None


def _matmul_sum_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b = inputs
    ctx.count = len(a)
    ctx.save_for_backward(*a, *b)


def _matmul_sum_backward(
    ctx: Any, dtotal: Tensor
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    a, b = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    needs_a, needs_b = ctx.needs_input_grad
    op = torch.ops.fastattn.matmul
    return (
        [op(dtotal, x, False, True) if need else None for x, need in zip(b, needs_a, strict=True)],
        [op(x, dtotal, True, False) if need else None for x, need in zip(a, needs_b, strict=True)],
    )


for _name, _backward, _context in (
    ("linears", _linears_backward, _linears_context),
    ("matmul", _matmul_backward, _matmul_context),
    ("matmul_sum", _matmul_sum_backward, _matmul_sum_context),
):
    torch.library.register_autograd(f"fastattn::{_name}", _backward, setup_context=_context)
