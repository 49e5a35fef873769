"""The linear layers around attention, in float32 on CPUs where torch leaves half the speed unused.

On AMD CPUs with AVX-512, torch's float32 matrix product takes a path of half the vector width: 95
of 256 GFLOP/s on one core, and our own product 150 to 200 at the shapes of a MiniLM layer (Zen 5,
torch 2.13, 2026-11-23). Elsewhere, and for every other dtype, torch's own product runs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastattn.backends import cpu

# Below this many rows packing the weights costs more than the faster product gains.
_MIN_ROWS = 96


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, as :func:`torch.nn.functional.linear`, whose arguments these are.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        (..., out_features). Deterministic, forward and backward, in our product as in torch's.
    """
    if not _is_ours(x, weight, bias):
        return F.linear(x, weight, bias)
    return torch.ops.fastattn.linear(x, weight, bias)


def _is_ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether our product is exact for these tensors and the faster one."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and weight.ndim == 2
        and x.numel() >= _MIN_ROWS * weight.shape[1]
        and not torch.is_autocast_enabled("cpu")
        and cpu.prefers_own_matmul()
    )


torch.library.define("fastattn::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
torch.library.define(
    "fastattn::matmul", "(Tensor a, Tensor b, bool a_transposed, bool b_transposed) -> Tensor"
)


@torch.library.impl("fastattn::linear", "CPU")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    cpu.matmul(out.flatten(0, -2), x.flatten(0, -2), weight, bias, b_transposed=True)
    return out


@torch.library.register_fake("fastattn::linear")
def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _empty_product(a: Tensor, b: Tensor, a_transposed: bool, b_transposed: bool) -> Tensor:
    """Returns op(a) @ op(b), to be filled."""
    return a.new_empty(a.shape[1 if a_transposed else 0], b.shape[0 if b_transposed else 1])


@torch.library.impl("fastattn::matmul", "CPU")
def _matmul(a: Tensor, b: Tensor, a_transposed: bool, b_transposed: bool) -> Tensor:
    product = _empty_product(a, b, a_transposed, b_transposed)
    cpu.matmul(product, a, b, a_transposed=a_transposed, b_transposed=b_transposed)
    return product


torch.library.register_fake("fastattn::matmul", _empty_product)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    rows = dout.flatten(0, -2)
    dx = dweight = dbias = None
    if needs_x:
        dx = torch.ops.fastattn.matmul(rows, weight, False, False).view(x.shape)
    if needs_weight:
        dweight = torch.ops.fastattn.matmul(rows, x.flatten(0, -2), True, False)
    if ctx.has_bias and needs_bias:
        dbias = rows.sum(0)
    return dx, dweight, dbias


torch.library.register_autograd("fastattn::linear", _backward, setup_context=_setup_context)


def _product_backward(
    ctx: Any, dproduct: Tensor
) -> tuple[Tensor | None, Tensor | None, None, None]:
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


def _product_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, *ctx.transposed = inputs
    ctx.save_for_backward(a, b)


torch.library.register_autograd(
    "fastattn::matmul", _product_backward, setup_context=_product_context
)
