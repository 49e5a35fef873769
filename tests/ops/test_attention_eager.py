"""Plain eager calls go past the dispatcher, and give what the operators give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.profiler import profile

import fastattn
from fastattn.ops.calls import is_plain_call
from fastattn.testing import Inputs, backend_outputs, make_inputs

CASES: dict[str, dict[str, Any]] = {
    "plain": {"lengths_q": [5, 5]},
    "padded bias": {"lengths_q": [5, 3], "bias_shape": (2, 1, 5), "dropout_p": 0.3},
    "packed": {"lengths_q": [5, 0, 3], "packed": True, "tail": 2, "dropout_p": 0.2},
    "half": {"lengths_q": [9, 9], "dtype": torch.bfloat16, "num_heads": 4, "num_heads_kv": 2},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_dlse", [False, True])
def test_same_bits_as_the_operators(cpu_backend, watched_operators, name, with_dlse):
    inputs = make_inputs(head_dim=8, with_dlse=with_dlse, **CASES[name])
    past = backend_outputs(inputs, cpu_backend)
    with watched_operators() as names:
        through = backend_outputs(inputs, cpu_backend)
    assert {"fastattn::attention_fwd", "fastattn::attention_bwd"} <= set(names)
    for ours, theirs in zip(past, through, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rows", ["contiguous", "transposed", "expanded"])
def test_same_bits_with_the_heads_first(watched_operators, rows):
    shape = (2, 3, 5, 8)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    if rows == "transposed":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    if rows == "expanded":
        k, v = k[:, :1].expand(shape), v[..., :1].expand(shape)
    mask = torch.randn(3, 5, 5, dtype=torch.float64, requires_grad=True)
    dout = torch.randn(shape, dtype=torch.float64)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]

    def results() -> tuple[Tensor, ...]:
        out = fastattn.scaled_dot_product_attention(*inputs, attn_mask=mask)
        return out, *torch.autograd.grad(out, (*inputs, mask), dout)

    past = results()
    with watched_operators() as names:
        through = results()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        hooked = results()
    if fastattn.explain(q, k, v).backend != "reference":
        assert {"fastattn::attention_fwd", "fastattn::attention_bwd"} <= set(names)
    for ours, theirs, same in zip(past, through, hooked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        torch.testing.assert_close(ours, same, rtol=0, atol=0)


def test_profilers_see_the_operators(cpu_backend):
    inputs = make_inputs([5])
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    with profile() as seen:
        out = fastattn.attention(*leaves, backend=cpu_backend)
        torch.autograd.grad(out.sum(), leaves)
    names = {event.key for event in seen.key_averages()}
    assert {"fastattn::attention_fwd", "fastattn::attention_bwd"} <= names


def test_lazily_negated_tensors(cpu_backend):
    """Their memory holds the opposite of their values."""
    negated = torch.randn(1, 5, 2, 8, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    values = negated.clone()
    assert not is_plain_call(negated) and is_plain_call(values)
    out = fastattn.attention(negated, negated, negated, backend=cpu_backend)
    assert torch.equal(out, fastattn.attention(values, values, values, backend=cpu_backend))


# torch's own forward mode compiles its decompositions with what it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_tangents_are_refused(cpu_backend, name):
    inputs = make_inputs([5], bias_shape=(5, 5))
    tensors = {
        "q": inputs.q,
        "k": inputs.k,
        "v": inputs.v,
        "bias": inputs.options["bias"].detach(),
    }

    def run(x: Tensor, backend: str) -> Tensor:
        return fastattn.attention(**{**tensors, name: x}, backend=backend)

    x, tangent = tensors[name], torch.ones_like(tensors[name])
    message = (
        r"attention: forward-mode derivatives must be taken on the reference backend; got a tensor "
        r'with a tangent\. Call attention\(\.\.\., backend="reference"\)\.'
    )
    with pytest.raises(NotImplementedError, match=message), forward_ad.dual_level():
        run(forward_ad.make_dual(x, tangent), cpu_backend)
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(lambda x: run(x, cpu_backend), (x,), (tangent,))
    _, derivative = torch.func.jvp(lambda x: run(x, "reference"), (x,), (tangent,))
    step = 1e-3 * tangent
    expected = (run(x + step, "reference") - run(x - step, "reference")) / 2e-3
    torch.testing.assert_close(derivative, expected, rtol=1e-3, atol=1e-3)


def test_offloaded_tensors(cpu_backend):
    """Hooks on what is saved for the backward pass see it and may replace it."""
    inputs: Inputs = make_inputs([5])
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    packed: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        packed.append(x)
        return x.clone()

    def grads() -> tuple[Tensor, ...]:
        out = fastattn.attention(*leaves, backend=cpu_backend)
        return torch.autograd.grad(out.square().sum(), leaves)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        replaced = grads()
    assert sum(x.shape == inputs.q.shape for x in packed) >= 4  # q, k, v, out
    for ours, theirs in zip(replaced, grads(), strict=True):
        assert torch.equal(ours, theirs)


def test_changed_inputs_are_noticed(cpu_backend):
    """As ever, a tensor that the backward pass needs must not change in between."""
    inputs = make_inputs([5])
    q = inputs.q.requires_grad_()
    k = inputs.k.clone()
    out = fastattn.attention(q, k, inputs.v, backend=cpu_backend)
    k.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_expanded_gradient_of_nothing(cpu_backend):
    """A sum's gradient has strides of 0, and of no rows torch calls it contiguous all the same."""
    q = torch.randn(2, 0, 2, 8, requires_grad=True)
    k = torch.randn(2, 5, 2, 8, requires_grad=True)
    fastattn.attention(q, k, k, backend=cpu_backend).sum().backward()
    assert q.grad.shape == q.shape and torch.equal(k.grad, torch.zeros_like(k))
