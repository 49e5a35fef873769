"""Every backend against the float64 reference: shapes, dtypes, strides, options, lengths."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import fastattn
from fastattn.testing import (
    LAYOUTS,
    Inputs,
    as_layout,
    backend_outputs,
    check_against_reference,
    make_inputs,
)
from tests.conftest import REFUSED

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FLOAT32_EPS = torch.finfo(torch.float32).eps

# seqlen_q, seqlen_k, head_dim, num_heads, num_heads_kv: around the multiples of 16 that tiles and
# vectors have, primes, and one that is longer than any block.
SHAPES = [
    (1, 17, 32, 2, 1),
    (15, 16, 8, 3, 3),
    (16, 15, 40, 2, 2),
    (17, 2, 64, 4, 2),
    (31, 101, 5, 1, 1),
    (47, 48, 80, 2, 1),
    (48, 49, 128, 1, 1),
    (49, 47, 256, 2, 2),
    (63, 65, 1, 2, 2),
    (64, 64, 64, 4, 4),
    (65, 63, 33, 6, 2),
    (101, 31, 96, 3, 1),
    (127, 129, 64, 2, 2),
    (128, 128, 128, 1, 1),
    (129, 127, 40, 2, 2),
    (13, 251, 17, 2, 2),
    (251, 13, 256, 1, 1),
    (513, 7, 32, 2, 1),
    (7, 513, 80, 1, 1),
    (513, 513, 64, 1, 1),
]


def name_of(value: Any) -> str | None:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return "-".join(map(str, value)) if isinstance(value, tuple) else None


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_shapes(backend, shape, dtype):
    seqlen_q, seqlen_k, head_dim, num_heads, num_heads_kv = shape
    inputs = make_inputs(
        [seqlen_q, seqlen_q],
        [seqlen_k, seqlen_k],
        head_dim=head_dim,
        num_heads=num_heads,
        num_heads_kv=num_heads_kv,
        dtype=dtype,
    )
    check_against_reference(inputs, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("head_dim", [1, 64, 256])
def test_one_query_and_one_key(backend, head_dim, dtype):
    """The true gradients of q and k are 0, so the rounding that may be left is named."""
    inputs = make_inputs([1, 1], head_dim=head_dim, dtype=dtype, with_dlse=True)
    check_against_reference(inputs, backend, atol=64 * FLOAT32_EPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    ("lengths_q", "lengths_k"),
    [
        ([16, 1, 33], None),
        ([0, 20, 0, 7], None),
        ([20, 9, 31], [9, 40, 17]),
        ([5, 0, 18], [0, 12, 18]),
        ([129, 64], [64, 129]),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_ragged_lengths(backend, packed, lengths_q, lengths_k, dtype):
    inputs = make_inputs(
        lengths_q, lengths_k, packed=packed, dtype=dtype, with_dlse=True, tail=3 * packed
    )
    check_against_reference(inputs, backend)


@pytest.mark.parametrize("tail", [0, 4])
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_packed_without_any_row(backend, lengths, tail):
    inputs = make_inputs(lengths, packed=True, tail=tail, with_dlse=True, dropout_p=0.5)
    check_against_reference(inputs, backend)


@pytest.mark.parametrize(
    ("batch", "seqlen_q", "seqlen_k"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0), (0, 0, 0)]
)
def test_empty_batches(backend, batch, seqlen_q, seqlen_k):
    q, dout = (torch.randn(batch, seqlen_q, 2, 8, requires_grad=True) for _ in range(2))
    k, v = (torch.randn(batch, seqlen_k, 2, 8, requires_grad=True) for _ in range(2))
    bias = torch.randn(2, seqlen_q, seqlen_k, requires_grad=True)
    out, lse = fastattn.attention(q, k, v, bias=bias, return_lse=True, backend=backend)
    assert out.shape == q.shape and (out == 0).all()
    assert lse.shape == (batch, 2, seqlen_q) and (lse == float("-inf")).all()
    leaves = (q, k, v, bias)
    for x, grad in zip(leaves, torch.autograd.grad(out, leaves, dout), strict=True):
        assert grad.shape == x.shape and (grad == 0).all()


# One entry for each option; a test takes several and merges them.
BATCH, SEQLEN_Q, SEQLEN_K, NUM_HEADS = 3, 37, 50, 4
OPTIONS: dict[str, dict[str, Any]] = {
    "ragged": {"lengths_k": [50, 0, 23]},
    "causal": {"causal": True},
    "window": {"window": (9, 4)},
    "softcap": {"softcap": 1.5},
    "bias": {"bias_shape": (1, NUM_HEADS, SEQLEN_Q, SEQLEN_K)},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.0, -0.1])},
    "scale": {"softmax_scale": 0.7},
    "dropout": {"dropout_p": 0.3},
    "grouped": {"num_heads_kv": 2},
    "dlse": {"with_dlse": True},
    "packed": {"packed": True, "tail": 2},
    "guarded": {"layout": "guarded"},
}
COMBINATIONS = [(name,) for name in OPTIONS] + list(itertools.combinations(OPTIONS, 2))


@pytest.mark.parametrize(
    ("names", "dtype"),
    [(names, DTYPES[i % 4]) for i, names in enumerate(COMBINATIONS)],
    ids=name_of,
)
def test_options_alone_and_in_pairs(backend, names, dtype):
    arguments: dict[str, Any] = {"lengths_k": [SEQLEN_K] * BATCH, "num_heads": NUM_HEADS}
    for name in names:
        arguments |= OPTIONS[name]
    check_against_reference(make_inputs([SEQLEN_Q] * BATCH, dtype=dtype, **arguments), backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_all_options_together(backend, dtype):
    arguments: dict[str, Any] = {"num_heads": NUM_HEADS, "dtype": dtype}
    for name in OPTIONS.keys() - {"ragged", "window"}:
        arguments |= OPTIONS[name]
    arguments |= {"window": (20, -1), "head_dim": 72}
    check_against_reference(make_inputs([37, 0, 20], [50, 9, 30], **arguments), backend)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 4, 37, 50),
        (3, 1, 37, 50),
        (1, 4, 37, 50),
        (4, 37, 50),
        (37, 50),
        (3, 4, 1, 50),
        (3, 1, 1, 50),
        (50,),
        (1, 1, 37, 1),
        (3, 4, 1, 1),
        (1,),
        (),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_bias_shapes(backend, shape, packed):
    """The gradient of a broadcast dimension is summed."""
    inputs = make_inputs(
        [37, 0, 21],
        [50, 11, 3],
        num_heads=4,
        num_heads_kv=2,
        bias_shape=shape,
        packed=packed,
        dropout_p=0.2,
    )
    # A bias that is the same for all keys of a row has a true gradient of 0. What is left in its
    # place is the rounding of out, from which delta is taken.
    atol = 2e-4 if inputs.q.dtype == torch.float32 else 4e-2
    check_against_reference(inputs, backend, atol=atol if not shape or shape[-1] == 1 else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bias_of_another_dtype(backend, dtype):
    """A bias keeps its own dtype, and so does its gradient."""
    q, k, v = (torch.randn(1, 20, 2, 16, dtype=torch.float32) for _ in range(3))
    bias = torch.randn(20, 20, dtype=dtype, requires_grad=True)
    wide = bias.detach().float().requires_grad_()

    def run(b: Tensor) -> tuple[Tensor, Tensor]:
        out = fastattn.attention(q, k, v, bias=b, backend=backend)
        return out, torch.autograd.grad(out.square().sum(), b)[0]

    (out, grad), (wide_out, wide_grad) = run(bias), run(wide)
    assert torch.equal(out, wide_out)
    assert grad.dtype == dtype and torch.equal(grad, wide_grad.to(dtype))


def test_alibi_slopes_of_each_sequence(backend):
    slopes = torch.rand(3, 4)
    inputs = make_inputs([37, 5, 21], [50, 11, 3], num_heads=4, packed=True, alibi_slopes=slopes)
    check_against_reference(inputs, backend)


def test_key_padding_mask_with_holes(backend):
    """Any set of keys may be masked, not only the last ones."""
    mask = torch.rand(4, 130) < 0.5
    mask[0, :64] = False
    mask[1, 64:] = False
    mask[2] = False
    inputs = make_inputs([130] * 4, key_padding_mask=mask, with_dlse=True)
    inputs.k[~mask] = float("nan")
    inputs.v[~mask] = float("inf")
    check_against_reference(inputs, backend)


def same_outputs(backend: str, inputs: Inputs, other: Inputs) -> None:
    """The same values in other strides give the same bits."""
    results = (backend_outputs(x, backend) for x in (inputs, other))
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def with_tensors(inputs: Inputs, **tensors: Tensor) -> Inputs:
    return Inputs(**{**vars(inputs), **tensors})


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x != "contiguous"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_layouts(backend, layout, packed, dtype):
    plain = make_inputs([19, 33], packed=packed, dtype=dtype, head_dim=24)
    strided = {n: as_layout(getattr(plain, n), layout) for n in ("q", "k", "v", "dout")}
    same_outputs(backend, plain, with_tensors(plain, **strided))


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_slices_of_a_merged_projection(backend, packed):
    plain = make_inputs([33, 33], packed=packed)
    merged = torch.stack([plain.q, plain.k, plain.v], dim=-3)
    q, k, v = merged.unbind(-3)
    same_outputs(backend, plain, with_tensors(plain, q=q, k=k, v=v))


def test_expanded_batch(backend):
    """Sequences and heads that share one memory (stride 0)."""
    plain = make_inputs([21, 21], [30, 30])
    shared = {n: getattr(plain, n)[:1, :, :1].expand_as(getattr(plain, n)) for n in "qkv"}
    copies = {name: x.contiguous() for name, x in shared.items()}
    same_outputs(backend, with_tensors(plain, **copies), with_tensors(plain, **shared))


@pytest.mark.parametrize("name", ["q", "k", "v", "dout"])
def test_last_dimension_not_contiguous(backend, name):
    plain = make_inputs([21, 21], [30, 30])
    x = getattr(plain, name)
    strided = x.transpose(-1, 1).contiguous().transpose(-1, 1)
    assert strided.stride(-1) != 1
    same_outputs(backend, plain, with_tensors(plain, **{name: strided}))


def test_expanded_gradient(backend):
    """The gradient of out.sum() has stride 0 everywhere."""
    inputs = make_inputs([21, 21], [30, 30], with_dlse=True)
    ones = torch.ones(()).expand_as(inputs.dout)
    dlse = torch.ones(()).expand_as(inputs.dlse)
    check_against_reference(with_tensors(inputs, dout=ones, dlse=dlse), backend)


def test_strided_options(backend):
    """Bias, mask, slopes and lengths may be views too."""
    mask = torch.rand(2, 60) < 0.7
    plain = make_inputs(
        [25, 25],
        [30, 30],
        key_padding_mask=mask[:, ::2].contiguous(),
        bias_shape=(2, 2, 25, 30),
        alibi_slopes=torch.tensor([0.5, 0.1]),
    )
    bias = plain.options["bias"].detach()
    views = plain.with_options(
        key_padding_mask=mask[:, ::2],
        bias=bias.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0).requires_grad_(),
        alibi_slopes=torch.tensor([[0.5, 9.0], [0.1, 9.0]])[:, 0],
    )
    same_outputs(backend, plain, views)
    expanded = bias[:1, :1, :1].expand(2, 2, 25, 30)
    same_outputs(
        backend,
        plain.with_options(bias=expanded.contiguous().requires_grad_()),
        plain.with_options(bias=expanded.requires_grad_()),
    )


def test_strided_cu_seqlens(backend):
    plain = make_inputs([25, 4], packed=True)
    ends = plain.options["cu_seqlens_q"]
    views = plain.with_options(cu_seqlens_q=torch.stack([ends, -ends], dim=1)[:, 0])
    same_outputs(backend, plain, views)


def test_max_seqlen_may_be_larger(backend):
    plain = make_inputs([25, 4], packed=True, causal=True, dropout_p=0.2)
    larger = plain.with_options(max_seqlen_q=99, max_seqlen_k=77)
    same_outputs(backend, plain, larger)
    named = plain.with_options(cu_seqlens_k=plain.options["cu_seqlens_q"])
    same_outputs(backend, plain, named)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Any combination of layout, lengths, heads and options, as arguments of make_inputs.

    One sequence has at least 8 rows and keys: if the gradients of all of them cancel, plain
    torch gives no scale for the rounding.
    """
    length = st.integers(0, 70)
    lengths_q = [draw(st.integers(8, 70)), *draw(st.lists(length, max_size=2))]
    lengths_k = [draw(st.integers(8, 70)), *(draw(length) for _ in lengths_q[1:])]
    packed = draw(st.booleans())
    num_heads_kv = draw(st.integers(1, 2))
    num_heads = num_heads_kv * draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DTYPES))
    # A single product in half precision is next to exact in plain torch, and no measure.
    smallest = 1 if dtype in (torch.float32, torch.float64) else 8
    call: dict[str, Any] = {
        "lengths_q": lengths_q,
        "lengths_k": lengths_k,
        "num_heads": num_heads,
        "num_heads_kv": num_heads_kv,
        "head_dim": draw(st.sampled_from([smallest, 8, 16, 24, 64, 100])),
        "dtype": dtype,
        "packed": packed,
        "tail": draw(st.integers(0, 3)) if packed else 0,
        "layout": draw(st.sampled_from(LAYOUTS)),
        "with_dlse": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
        "causal": draw(st.booleans()),
        "softcap": draw(st.sampled_from([0.0, 1.0, 20.0])),
        "dropout_p": draw(st.sampled_from([0.0, 0.1, 0.5])),
    }
    if draw(st.booleans()):
        full = (len(lengths_q), num_heads, max(lengths_q))
        shape = [draw(st.sampled_from((1, size))) for size in full]
        call["bias_shape"] = (*shape, max(lengths_k))
    if draw(st.booleans()):
        call["window"] = draw(st.sampled_from([(3, 5), (20, -1), (-1, 4), (64, 64)]))
    if draw(st.booleans()):
        call["alibi_slopes"] = torch.linspace(-0.1, 0.5, num_heads)
    return call


@hypothesis.given(call=calls())
@hypothesis.settings(
    max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_any_combination(backend, call):
    hypothesis.assume(call["dtype"] not in REFUSED.get(backend, ()))
    # A kernel takes rowsum(out * dout) of the rounded out; summed over a broadcast dimension of a
    # small bias, that rounding can stand out. A wrong formula is wrong by 1.
    half = call["dtype"].itemsize == 2
    atol = 4 * torch.finfo(call["dtype"]).eps if half and "bias_shape" in call else 0.0
    check_against_reference(make_inputs(**call), backend, atol=atol)
