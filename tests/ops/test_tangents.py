"""Forward-mode derivatives: refused by kernels, which would lose them; served by the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastattn.ops.dropout import dropout
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.ops.linear import linears

X, RESIDUAL = torch.randn(4, 33), torch.randn(4, 33)
VECTORS = torch.randn(3, 33)


def _dropped(x: Tensor, backend: str | None) -> Tensor:
    return dropout(x, 0.5, torch.Generator().manual_seed(1), backend=backend)


def _normed(backend: str | None, **changed: Tensor) -> Tensor:
    named = {
        "x": X,
        "residual": RESIDUAL,
        "weight": VECTORS[0],
        "bias": VECTORS[1],
        "x_bias": VECTORS[2],
    }
    return dropout_add_layer_norm(**{**named, **changed}, eps=1e-5, backend=backend)


# Operator -> the function of one of its arguments, and that argument.
CALLS: dict[str, list[tuple[Callable[[Tensor, Any], Tensor], Tensor]]] = {
    "bias_gelu": [
        (lambda x, backend: bias_gelu(x, VECTORS[0], backend=backend), X),
        (lambda bias, backend: bias_gelu(X, bias, backend=backend), VECTORS[0]),
    ],
    "dropout": [(_dropped, X)],
    "dropout_add_layer_norm": [
        (lambda x, backend: _normed(backend, x=x), X),
        (lambda x, backend: _normed(backend, residual=x), RESIDUAL),
        (lambda x, backend: _normed(backend, weight=x), VECTORS[0]),
        (lambda x, backend: _normed(backend, bias=x), VECTORS[1]),
        (lambda x, backend: _normed(backend, x_bias=x), VECTORS[2]),
    ],
}


def assert_is_derivative(derivative: Tensor, run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Compares the derivative along all ones with a difference quotient."""
    step = 1e-3 * torch.ones_like(x)
    quotient = (run(x + step) - run(x - step)) / 2e-3
    torch.testing.assert_close(derivative, quotient, rtol=0, atol=2e-3)


# torch's own forward mode compiles its decompositions with what it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("op", CALLS)
def test_kernels_refuse_and_the_reference_serves(cpu_backend, op):
    message = (
        rf"{op}: forward-mode derivatives must be taken on the reference backend; got a tensor "
        rf'with a tangent\. Call {op}\(\.\.\., backend="reference"\)\.'
    )
    for run, x in CALLS[op]:
        tangent = torch.ones_like(x)
        with pytest.raises(NotImplementedError, match=message), forward_ad.dual_level():
            run(forward_ad.make_dual(x, tangent), None)
        with pytest.raises(NotImplementedError, match=message):
            torch.func.jvp(lambda x, run=run: run(x, None), (x,), (tangent,))
        with forward_ad.dual_level():
            run(x, None)  # a level without a tangent is none of its business
        _, derivative = torch.func.jvp(lambda x, run=run: run(x, "reference"), (x,), (tangent,))
        assert_is_derivative(derivative, lambda x, run=run: run(x, "reference"), x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_linear_layers_are_torchs_then(monkeypatch):
    monkeypatch.setattr("fastattn.backends.cpu.prefers_own_matmul", lambda: True)
    x, weight, bias = torch.randn(200, 16), torch.randn(5, 16), torch.randn(5)
    runs: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda x: linears(x, (weight,), (bias,))[0], x),
        (lambda weight: linears(x, (weight,), (bias,))[0], weight),
        (lambda bias: linears(x, (weight,), (bias,))[0], bias),
    ]
    for run, at in runs:
        _, derivative = torch.func.jvp(run, (at,), (torch.ones_like(at),))
        with forward_ad.dual_level():
            out = run(forward_ad.make_dual(at, torch.ones_like(at)))
            torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, derivative)
        assert_is_derivative(derivative, run, at)
