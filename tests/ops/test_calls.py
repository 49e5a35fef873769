"""Which calls of operators go past the dispatcher, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from fastattn.ops.calls import is_plain_call
from fastattn.ops.dropout import dropout
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.ops.padding import gather_rows, scatter_rows


class Subclass(Tensor):
    """A tensor that may do anything."""


def test_what_is_plain():
    x = torch.ones(2)
    assert is_plain_call(x, None, torch.nn.Parameter(x), torch.ones(2, dtype=torch.bool))
    with torch.inference_mode():
        assert is_plain_call(torch.ones(2), x)
    assert not is_plain_call(torch.ones(2, device="meta"), x)
    assert not is_plain_call(x, x.to_sparse())
    assert not is_plain_call(x, torch.Tensor._make_subclass(Subclass, x))
    with torch.device("cpu"):  # a mode of torch functions
        assert not is_plain_call(x)
    seen = torch.vmap(lambda y: y + is_plain_call(y))(torch.zeros(3))
    assert torch.equal(seen, torch.zeros(3))


def layer_norm(x: Tensor, vector: Tensor, backend: str) -> Tensor:
    torch.manual_seed(0)
    options: dict[str, Any] = {"dropout_p": 0.25, "x_bias": vector, "backend": backend}
    return dropout_add_layer_norm(x, 2 * x, vector, vector, 1e-5, **options)


def dropped(x: Tensor, vector: Tensor, backend: str) -> Tensor:
    torch.manual_seed(0)
    return dropout(x * vector, 0.25, backend=backend)


OPERATORS: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "fastattn::layer_norm_fwd": layer_norm,
    "fastattn::gelu_fwd": lambda x, vector, backend: bias_gelu(x, vector, backend=backend),
    "fastattn::hidden_dropout": dropped,
}


def leaves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5, 24), (24,))
    x, vector = (torch.randn(shape, generator=generator) for shape in shapes)
    return x.requires_grad_(), vector.requires_grad_()


@pytest.mark.parametrize("name", OPERATORS)
def test_same_bits_as_the_operators(cpu_backend, watched_operators, name):
    inputs = leaves()

    def results() -> tuple[Tensor, ...]:
        out = OPERATORS[name](*inputs, cpu_backend)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    past = results()
    with watched_operators() as names:
        through = results()
    assert name in names
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        hooked = results()
    with torch.inference_mode():
        without_gradient = OPERATORS[name](*(x.detach() for x in inputs), cpu_backend)
    assert torch.equal(past[0], without_gradient)
    for ours, theirs, same in zip(past, through, hooked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        torch.testing.assert_close(ours, same, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_profilers_see_the_operators(cpu_backend, name):
    inputs = leaves()
    with profile() as seen:
        torch.autograd.grad(OPERATORS[name](*inputs, cpu_backend).sum(), inputs)
    assert name in {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("name", ["fastattn::layer_norm_fwd", "fastattn::gelu_fwd"])
def test_changed_inputs_are_noticed(cpu_backend, name):
    x, vector = leaves()
    used = x * 1
    out = OPERATORS[name](used, vector, cpu_backend)
    used.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_rows_moved_without_a_gradient():
    rows, indices = torch.randn(6, 4), torch.tensor([4, 0, 2])
    with torch.no_grad():
        gathered = gather_rows(rows, indices)
        assert torch.equal(gathered, rows[indices])
        assert torch.equal(scatter_rows(gathered, indices, 6)[indices], gathered)
