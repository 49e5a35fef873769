"""The operators under the transforms of ``torch.func``: the gradients that autograd gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastattn
from fastattn.ops.dropout import dropout
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.ops.linear import linears
from fastattn.ops.padding import gather_rows, scatter_rows

# torch warns that it runs an operator once for each element: it knows no rule for ours.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

VECTORS = torch.linspace(-1, 1, 24).view(3, 8)
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
INDICES = torch.tensor([3, 0, 1])


def _attention(x: Tensor, **options: Any) -> Tensor:
    out: Any = fastattn.attention(x, x.flip(1), 2 * x, key_padding_mask=MASK, **options)
    return out


# Functions of x, (2, 5, 4, 8), to which a weight may be applied by position.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": _attention,
    "lse": lambda x: fastattn.attention(x, x, x, causal=True, return_lse=True)[1],
    "bias": lambda x: _attention(x.detach(), bias=x.sum(-1).transpose(1, 2)[:, :, None]),
    "sdpa": lambda x: fastattn.scaled_dot_product_attention(x, x, x, is_causal=True),
    "bias_gelu": lambda x: bias_gelu(x, x[0, 0, 0]),
    "layer_norm": lambda x: dropout_add_layer_norm(
        x, x.flip(0), x[0, 0, 0], VECTORS[1], 1e-5, x_bias=VECTORS[2]
    ),
    "linears": lambda x: torch.cat(linears(x, (VECTORS, 2 * VECTORS), (None, x[0, 0, 0, :3])), -1),
    "padding": lambda x: scatter_rows(gather_rows(x[0], INDICES).sin(), INDICES, 4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(cpu_backend, monkeypatch, name):
    monkeypatch.setattr("fastattn.backends.cpu.prefers_own_matmul", lambda: True)
    monkeypatch.setattr("fastattn.backends.cpu.few_rows", lambda: 0)
    samples = torch.randn(3, 2, 5, 4, 8)

    def loss(x: Tensor) -> Tensor:
        return FUNCTIONS[name](x).square().sum()

    expected = []
    for x in samples:
        leaf = x.clone().requires_grad_()
        expected.append(torch.autograd.grad(loss(leaf), leaf)[0])
    torch.testing.assert_close(torch.func.grad(loss)(samples[0]), expected[0])
    values, pullback = torch.func.vjp(loss, samples[1])
    torch.testing.assert_close(pullback(torch.ones_like(values))[0], expected[1])
    of_each = torch.func.vmap(torch.func.grad(loss))(samples)
    torch.testing.assert_close(of_each, torch.stack(expected))
    mapped = torch.func.vmap(FUNCTIONS[name])(samples)
    torch.testing.assert_close(mapped, torch.stack([FUNCTIONS[name](x) for x in samples]))


@pytest.mark.parametrize("run", [lambda x: _attention(x, dropout_p=0.4), lambda x: dropout(x, 0.4)])
def test_dropout(cpu_backend, run):
    """The seed is drawn inside the transform; each sample draws its own if it is told to."""
    x = torch.randn(2, 5, 4, 8)

    def loss(x: Tensor) -> Tensor:
        return run(x).square().sum()

    torch.manual_seed(3)
    derivative = torch.func.grad(loss)(x)
    torch.manual_seed(3)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(derivative, torch.autograd.grad(loss(leaf), leaf)[0])
    same = x.expand(2, 2, 5, 4, 8)
    first, second = torch.func.vmap(torch.func.grad(loss), randomness="different")(same)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["attention", "bias_gelu", "layer_norm"])
def test_second_derivatives_are_refused(cpu_backend, name):
    def loss(x: Tensor) -> Tensor:
        return FUNCTIONS[name](x).square().sum()

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(loss)(x).sum()

    with pytest.raises(NotImplementedError, match="the gradient of a gradient must be taken on"):
        torch.func.grad(slope)(torch.randn(2, 5, 4, 8))
