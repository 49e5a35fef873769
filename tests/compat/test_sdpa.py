"""scaled_dot_product_attention beside its documented meaning, and beside torch's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from fastattn import scaled_dot_product_attention as sdpa
from fastattn.backends import cpu
from fastattn.compat import routed_sdpa
from fastattn.ops.attention import watched
from fastattn.testing import assert_as_accurate_as

INF = math.inf


def documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What torch's documentation says the function computes, one line after the other."""
    rows, columns = query.shape[-2], key.shape[-2]
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1)
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(rows, columns, dtype=torch.bool).tril(), -INF)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -INF)
    elif attn_mask is not None:
        scores = scores + attn_mask
    # A row without keys, where softmax itself says NaN, is 0 since torch 2.5.
    empty = (scores == -INF).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)
    return weights @ value


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> None:
    """Result and gradients equal the documented ones, and torch's own where it takes the call."""
    leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.detach().clone().requires_grad_()
        leaves.append(mask)
    out = sdpa(*leaves[:3], attn_mask=mask, **options)
    expected = documented(*leaves[:3], attn_mask=mask, **options)
    assert out.shape == expected.shape and out.dtype == query.dtype
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous() == query.is_contiguous() or out.numel() == 0
    dout = torch.randn_like(out)
    ours = torch.autograd.grad(out, leaves, dout)
    theirs = torch.autograd.grad(expected, leaves, dout)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(
        F.scaled_dot_product_attention(*leaves[:3], attn_mask=mask, **options), out
    )


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    """Shapes of every kind that torch takes."""
    size = st.integers(1, 3)
    leading = draw(st.lists(size, min_size=0, max_size=4))
    rows, columns, head_dim, head_dim_v = (draw(st.integers(1, 9)) for _ in range(4))
    gqa = len(leading) >= 1 and draw(st.booleans())

    def leading_of(is_query: bool) -> list[int]:
        """Some dimensions are 1 or left out, and broadcast; with groups, heads divide."""
        if gqa:
            first = [draw(st.sampled_from((1, x))) for x in leading[:-1]]
            first = leading[:-1] if is_query else first
            return [
                *first,
                2 * leading[-1] if is_query else draw(st.sampled_from((1, leading[-1]))),
            ]
        ones = [draw(st.sampled_from((1, x))) for x in leading]
        return ones[draw(st.integers(0, len(ones))) :] if len(ones) < 3 else ones

    shapes = [
        (*leading_of(True), rows, head_dim),
        (*leading_of(False), columns, head_dim),
        (*leading_of(False), columns, head_dim_v),
    ]
    last = -3 if gqa else -2
    # torch adds the mask before it meets value.
    full = list(torch.broadcast_shapes(*(shape[:last] for shape in shapes[:2])))
    full += [shapes[0][-3]] if gqa else []
    kind = draw(st.sampled_from(("none", "causal", "bool", "float")))
    mask = None
    if kind in ("bool", "float"):
        mask_shape = [draw(st.sampled_from((1, x))) for x in (*full, rows, columns)]
        mask_shape = mask_shape[draw(st.integers(0, len(full))) :]
        mask = torch.rand(mask_shape) < 0.7
        if kind == "float":
            mask = torch.where(mask, torch.randn(mask_shape, dtype=torch.float64), -INF)
    options: dict[str, Any] = {"is_causal": kind == "causal", "enable_gqa": gqa}
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from((0.0, 1.0, -0.7, 2)))
    return {"shapes": shapes, "mask": mask, "options": options}


@settings(max_examples=150, deadline=None)
@given(calls())
def test_shapes_and_masks(call):
    check(*(randn(*shape) for shape in call["shapes"]), call["mask"], **call["options"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["plain", "causal", "bool", "padding", "float"])
def test_as_accurate_as_torch(dtype, kind):
    query, key, value = (randn(2, 4, length, 16) for length in (33, 40, 40))
    mask = {
        "bool": torch.rand(33, 40) < 0.6,
        "padding": (torch.arange(40) < torch.tensor([[40], [23]]))[:, None, None],
        "float": randn(4, 33, 40, dtype=torch.float32),
    }.get(kind)
    half = [x.to(dtype) for x in (query, key, value)]
    truth = documented(*(x.double() for x in half), mask, is_causal=kind == "causal")
    options = {"attn_mask": mask, "is_causal": kind == "causal"}
    torchs = F.scaled_dot_product_attention(*half, **options)
    ours = sdpa(*half, **options)
    assert ours.dtype == dtype
    assert_as_accurate_as(ours, torchs, truth)


@pytest.mark.parametrize("rows, columns", [(4, 7), (7, 4), (1, 5), (5, 1), (5, 5)])
def test_causality_is_aligned_to_the_top_left(rows, columns):
    check(randn(2, 3, rows, 8), randn(2, 3, columns, 8), randn(2, 3, columns, 8), None)
    query, key = randn(1, 1, rows, 8), randn(1, 1, columns, 8)
    out = sdpa(query, key, torch.eye(columns, dtype=torch.float64)[None, None], is_causal=True)
    seen = out[0, 0] > 0
    assert torch.equal(seen, torch.ones(rows, columns, dtype=torch.bool).tril())


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("corner", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize("rows, columns", [(4, 7), (1, 5), (5, 5), (7, 4)])
def test_causal_masks_of_torch(rows, columns, corner, routed):
    """They hold no values, and say which corner causality is aligned to."""
    if corner is causal_lower_right and rows > columns:
        with pytest.warns(UserWarning, match="NaN"):  # torch's words; these rows are 0
            mask = corner(rows, columns)
    else:
        mask = corner(rows, columns)
    query, key, value = randn(2, 3, rows, 8), randn(2, 3, columns, 8), randn(2, 3, columns, 8)
    for x in ([query, key, value], [query[0], key[0], value[0]]):
        with routed_sdpa() if routed else nullcontext():
            function = F.scaled_dot_product_attention if routed else sdpa
            out = function(*x, attn_mask=mask)
        torch.testing.assert_close(out, documented(*x, mask._materialize()))
    with pytest.raises(ValueError, match=rf"attn_mask must be made for \(L, S\) = \({rows}, 9\)"):
        sdpa(query, randn(2, 3, 9, 8), randn(2, 3, 9, 8), mask)
    with pytest.raises(ValueError, match="attn_mask must be None if is_causal"):
        sdpa(query, key, value, mask, is_causal=True)


@pytest.mark.parametrize("kind", ["bool", "float", "padding"])
def test_a_row_without_keys_is_zero(kind):
    """As in torch 2.6 and 2.13; and so is its gradient."""
    attend = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    attend[:, :, 1] = False
    if kind == "padding":
        attend = torch.tensor([[True] * 5, [False] * 5])[:, None, None]
    mask = torch.where(attend, 0.0, -INF) if kind == "float" else attend
    query, key, value = randn(2, 3, 4, 8), randn(2, 3, 5, 8), randn(2, 3, 5, 8)
    check(query, key, value, mask.double() if kind == "float" else mask)
    query.requires_grad_()
    out = sdpa(query, key, value, mask.double() if kind == "float" else mask)
    (dquery,) = torch.autograd.grad(out.sum(), query)
    empty = out[1] if kind == "padding" else out[:, :, 1]
    assert (empty == 0).all()
    assert (dquery[1] if kind == "padding" else dquery[:, :, 1]).eq(0).all()


@pytest.mark.parametrize(
    "query, key, value",
    [
        ((2, 3, 0, 8), (2, 3, 5, 8), (2, 3, 5, 8)),
        ((2, 3, 4, 8), (2, 3, 0, 8), (2, 3, 0, 8)),
        ((0, 3, 4, 8), (0, 3, 5, 8), (0, 3, 5, 8)),
        ((2, 0, 4, 8), (2, 0, 5, 8), (2, 0, 5, 8)),
        ((0, 4, 8), (0, 5, 8), (0, 5, 8)),
        ((0, 8), (5, 8), (5, 8)),
        ((2, 3, 4, 0), (2, 3, 5, 0), (2, 3, 5, 8)),
        ((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 0)),
        ((2, 3, 4, 0), (2, 3, 5, 0), (2, 3, 5, 0)),
    ],
    ids=str,
)
def test_nothing(query, key, value):
    leaves = [randn(*shape).requires_grad_() for shape in (query, key, value)]
    out = sdpa(*leaves)
    expected = F.scaled_dot_product_attention(*(x.detach() for x in leaves))
    torch.testing.assert_close(out.detach(), expected)
    grads = torch.autograd.grad(out.sum(), leaves)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("layout", ["contiguous", "heads last", "gaps", "head_dim strided"])
def test_strides(layout):
    """Callers view a contiguous result, and get one where torch gives one."""

    def laid_out(x: Tensor) -> Tensor:
        if layout == "heads last":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "gaps":
            return torch.cat([x, x], -1)[..., : x.shape[-1]]
        if layout == "head_dim strided":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        return x

    query, key, value = (laid_out(randn(2, 3, length, 8)) for length in (4, 5, 5))
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    out = sdpa(*leaves)
    torch.testing.assert_close(out, documented(*leaves))
    theirs = F.scaled_dot_product_attention(query, key, value)
    assert out.is_contiguous() or not theirs.is_contiguous()
    if layout in ("contiguous", "heads last"):
        assert out.stride() == theirs.stride()
    dout = torch.randn_like(out)
    ours = torch.autograd.grad(out, leaves, dout)
    expected = torch.autograd.grad(documented(*leaves), leaves, dout)
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_signature():
    """Parameters, their order, kinds and defaults, as torch documents and checks them."""
    parameters = inspect.signature(sdpa).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("query", inspect.Parameter.empty),
        ("key", inspect.Parameter.empty),
        ("value", inspect.Parameter.empty),
        ("attn_mask", None),
        ("dropout_p", 0.0),
        ("is_causal", False),
        ("scale", None),
        ("enable_gqa", False),
    ]
    x = randn(1, 1, 3, 8)
    for function in (sdpa, F.scaled_dot_product_attention):
        function(x, x, x, None, 0.0, True)
        with pytest.raises(TypeError, match="positional"):
            function(x, x, x, None, 0.0, True, 1.0)


def test_dropout():
    """Same seed, same weights; dropped in proportion; those kept are scaled; no weight at 1."""
    query, key = randn(2, 4, 64, 8).float(), randn(2, 4, 64, 8).float()
    value = torch.eye(64).expand(2, 4, 64, 64)
    weights = sdpa(query, key, value)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(sdpa(query, key, value, dropout_p=0.25))
    assert torch.equal(*runs)
    kept = runs[0] != 0
    assert abs(kept.float().mean().item() - 0.75) < 0.01
    torch.testing.assert_close(runs[0][kept], weights[kept] / 0.75)
    query.requires_grad_()
    nothing = sdpa(query, key, value, dropout_p=1.0)
    (dquery,) = torch.autograd.grad(nothing.sum(), query)
    assert (nothing == 0).all() and (dquery == 0).all()


def test_a_hidden_key_may_hold_anything():
    query, key, value = (randn(2, 3, 5, 8) for _ in range(3))
    attend = torch.arange(5) < torch.tensor([[5], [3]])
    expected = sdpa(query, key, value, attend[:, None, None])
    key[1, :, 3:] = math.nan
    value[1, :, 3:] = math.nan
    assert torch.equal(sdpa(query, key, value, attend[:, None, None]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    query, key, value = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    mask = torch.randn(5, 5)
    with torch.autocast("cpu", dtype):
        out = sdpa(query, key, value.to(dtype), mask)
        double = sdpa(*(x.double() for x in (query, key, value)))
    assert out.dtype == dtype and double.dtype == torch.float64
    torch.testing.assert_close(out, sdpa(*(x.to(dtype) for x in (query, key, value)), mask))
    out.sum().backward()
    assert query.grad is not None and query.grad.dtype == torch.float32


def test_mask_in_the_dtype_of_query():
    query, key, value = (randn(2, 3, 5, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = randn(5, 5, dtype=torch.bfloat16).requires_grad_()
    out = sdpa(query, key, value, mask)
    assert torch.equal(out, sdpa(query, key, value, mask.float()))
    out.sum().backward()
    assert mask.grad is not None and mask.grad.dtype == torch.bfloat16


def test_meta_tensors():
    query, key = torch.empty(2, 3, 4, 8, device="meta"), torch.empty(2, 3, 5, 8, device="meta")
    out = sdpa(query, key, key)
    assert out.is_meta and out.shape == (2, 3, 4, 8)


COMPILED: dict[str, Any] = {
    "plain": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.ones(4, 5, dtype=torch.bool).tril(1)},
    "float": {"attn_mask": torch.linspace(-1, 1, 20).view(4, 5)},
    "dropout": {"dropout_p": 0.3},
    "wide values": {"wide": True},
    "three dimensions": {"three": True},
}


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", COMPILED)
def test_compile(_fresh_compiler, name, dynamic):
    options = dict(COMPILED[name])
    query, key, value = (torch.randn(2, 3, n, 8) for n in (4, 5, 5))
    if options.pop("wide", False):
        value = torch.randn(2, 3, 5, 12)
    if options.pop("three", False):
        query, key, value = query[0], key[0], value[0]
    leaves = [x.requires_grad_() for x in (query, key, value)]
    compiled = torch.compile(sdpa, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for function in (sdpa, compiled):
        torch.manual_seed(1)
        out = function(*leaves, **options)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        assert out.is_contiguous()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "type": (
        lambda x: sdpa(x, [1.0], x),
        TypeError,
        r"key must be a torch\.Tensor; got list\.",
    ),
    "layout": (
        lambda x: sdpa(x, x, x.to_sparse()),
        TypeError,
        r"value must be an ordinary tensor; got one of layout torch\.sparse_coo\. Convert it with",
    ),
    "mask layout": (
        lambda x: sdpa(x, x, x, torch.ones(5, 5, dtype=torch.bool).to_sparse()),
        TypeError,
        r"attn_mask must be an ordinary tensor; got one of layout torch\.sparse_coo\. Convert it",
    ),
    "dtype": (
        lambda x: sdpa(x, x, x.int()),
        TypeError,
        r"value must be float32, float64, float16 or bfloat16; got torch\.int32\. Convert it",
    ),
    "device": (
        lambda x: sdpa(x, x.to("meta"), x),
        ValueError,
        r"key must be on the device of query, cpu; got meta\. Move it with key\.to",
    ),
    "rank": (
        lambda x: sdpa(x, x, torch.zeros(8)),
        ValueError,
        r"value must have at least two dimensions, \(\.\.\., length, head_dim\); got shape \(8,\)",
    ),
    "head_dim": (
        lambda x: sdpa(x, x[..., :6], x),
        ValueError,
        r"key must have the last dimension of query, 8; got shape \(2, 3, 5, 6\)",
    ),
    "rows": (
        lambda x: sdpa(x, x, x[:, :, :4]),
        ValueError,
        r"value must have as many rows as key, 5; got shape \(2, 3, 4, 8\)",
    ),
    "mixed": (
        lambda x: sdpa(x, x.double(), x),
        TypeError,
        r"query, key and value must have one dtype; got torch\.float32, torch\.float64 and "
        r"torch\.float32\. Convert them, or run under torch\.autocast",
    ),
    "batch": (
        lambda x: sdpa(x, torch.zeros(5, 3, 5, 8), x),
        ValueError,
        r"the dimensions of query, key and value before the last two must broadcast; got shapes "
        r"\(2, 3, 5, 8\), \(5, 3, 5, 8\), \(2, 3, 5, 8\)\. Grouped heads need enable_gqa=True",
    ),
    "groups": (
        lambda x: sdpa(x, x[:, :2], x[:, :2], enable_gqa=True),
        ValueError,
        r"dimension -3 of query must be a multiple of that of key and of value if enable_gqa; got "
        r"shapes \(2, 3, 5, 8\), \(2, 2, 5, 8\), \(2, 2, 5, 8\)",
    ),
    "groups of nothing": (
        lambda x: sdpa(x[0, 0], x[0, 0], x[0, 0], enable_gqa=True),
        ValueError,
        "dimension -3 of query must be a multiple",
    ),
    "dropout type": (
        lambda x: sdpa(x, x, x, dropout_p=True),
        TypeError,
        r"dropout_p must be a number; got bool",
    ),
    "dropout": (
        lambda x: sdpa(x, x, x, dropout_p=1.5),
        ValueError,
        r"dropout_p must be in \[0, 1\]; got 1\.5",
    ),
    "scale type": (
        lambda x: sdpa(x, x, x, scale="1"),
        TypeError,
        r"scale must be a number; got str",
    ),
    "scale": (
        lambda x: sdpa(x, x, x, scale=INF),
        ValueError,
        r"scale must be finite; got inf",
    ),
    "causal mask": (
        lambda x: sdpa(x, x, x, torch.ones(5, 5, dtype=torch.bool), is_causal=True),
        ValueError,
        r"attn_mask must be None if is_causal; got both\. Put the causal mask into attn_mask",
    ),
    "mask type": (
        lambda x: sdpa(x, x, x, [True]),
        TypeError,
        r"attn_mask must be a torch\.Tensor; got list",
    ),
    "mask dtype": (
        lambda x: sdpa(x, x, x, torch.ones(5, 5, dtype=torch.int64)),
        TypeError,
        r"attn_mask must be bool, float32 or the dtype of query, torch\.float32; got torch\.int64"
        r"\. A 0/1 mask converts with attn_mask\.bool\(\)",
    ),
    "mask device": (
        lambda x: sdpa(x, x, x, torch.ones(5, 5, dtype=torch.bool, device="meta")),
        ValueError,
        r"attn_mask must be on the device of query, cpu; got meta",
    ),
    "mask shape": (
        lambda x: sdpa(x, x, x, torch.ones(5, 6, dtype=torch.bool)),
        ValueError,
        r"attn_mask must broadcast to \(\.\.\., L, S\) = \(2, 3, 5, 5\); got shape \(5, 6\)",
    ),
    "mask wider": (
        lambda x: sdpa(x[:1], x[:1], x[:1], torch.ones(2, 3, 5, 5, dtype=torch.bool)),
        ValueError,
        r"attn_mask must broadcast to \(\.\.\., L, S\) = \(1, 3, 5, 5\); got shape \(2, 3, 5, 5\)",
    ),
    "mask of more dimensions": (
        lambda x: sdpa(x[0], x[0], x[0], torch.ones(1, 3, 5, 5, dtype=torch.bool)),
        ValueError,
        r"attn_mask must broadcast to \(\.\.\., L, S\) = \(3, 5, 5\); got shape \(1, 3, 5, 5\)",
    ),
    "mask of another batch": (
        lambda x: sdpa(x[None], x[None], x[None], torch.ones(1, 4, 3, 5, 5, dtype=torch.bool)),
        ValueError,
        r"attn_mask must broadcast to \(\.\.\., L, S\) = \(1, 2, 3, 5, 5\); got shape",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match="scaled_dot_product_attention: " + message):
        call(torch.randn(2, 3, 5, 8))


@pytest.mark.skipif(cpu.unavailable_reason() is not None, reason="no native module")
def test_second_derivative_is_refused():
    query, key, value = (torch.randn(1, 1, 3, 4, requires_grad=True) for _ in range(3))
    (dquery,) = torch.autograd.grad(
        sdpa(query, key, value).square().sum(), query, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="the gradient of a gradient"):
        dquery.sum().backward()


def test_multihead_attention_routed():
    """torch's own module, in training, with the mask of padding and the causal one."""
    layer = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    x = torch.randn(2, 5, 16, requires_grad=True)
    padding = torch.arange(5) >= torch.tensor([[5], [3]])
    causal = torch.triu(torch.full((5, 5), -INF), 1)
    calls: list[dict[str, Any]] = [
        {},
        {"key_padding_mask": torch.where(padding, -INF, 0.0)},
        {"attn_mask": causal},
        {"attn_mask": causal, "key_padding_mask": torch.where(padding, -INF, 0.0)},
    ]
    for options in calls:
        stock = layer(x, x, x, need_weights=False, **options)[0]
        seen: list[str] = []
        with routed_sdpa(), watched(lambda q, k, options, backend, seen=seen: seen.append(backend)):
            ours = layer(x, x, x, need_weights=False, **options)[0]
        assert len(seen) == 1
        torch.testing.assert_close(ours, stock)
        torch.testing.assert_close(
            torch.autograd.grad(ours.sum(), x), torch.autograd.grad(stock.sum(), x)
        )


def calls_of_ours(function: Any) -> int:
    """How often the attention of this package runs inside a call."""
    seen: list[str] = []
    with watched(lambda q, k, options, backend: seen.append(backend)):
        function()
    return len(seen)


def test_routing_ends_with_the_block():
    x = torch.randn(1, 2, 3, 8)
    own = F.scaled_dot_product_attention

    def call() -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    with routed_sdpa(), routed_sdpa():
        assert calls_of_ours(call) == 1
    assert F.scaled_dot_product_attention is own
    with pytest.raises(ZeroDivisionError), routed_sdpa():
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is own and calls_of_ours(call) == 0


def test_routing_holds_for_one_thread():
    x = torch.randn(1, 2, 3, 8)
    with ThreadPoolExecutor(1) as pool, routed_sdpa():
        other = pool.submit(
            lambda: calls_of_ours(lambda: F.scaled_dot_product_attention(x, x, x))
        ).result()
        assert other == 0
        assert calls_of_ours(lambda: F.scaled_dot_product_attention(x, x, x)) == 1


def test_routing_beside_another_replacement(monkeypatch):
    """What another puts in place stays, and runs again where routing ends."""
    x = torch.randn(1, 2, 3, 8)
    own = F.scaled_dot_product_attention

    def other(*args: Any, **kwargs: Any) -> Tensor:
        return 2 * own(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", own)  # put back at the end
    with routed_sdpa():
        routed = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = other
    assert F.scaled_dot_product_attention is other
    with routed_sdpa():
        torch.testing.assert_close(F.scaled_dot_product_attention(x, x, x), own(x, x, x))
    assert torch.equal(F.scaled_dot_product_attention(x, x, x), 2 * own(x, x, x))
    F.scaled_dot_product_attention = routed  # as one who restores too late
    with routed_sdpa():
        F.scaled_dot_product_attention(x, x, x)
    F.scaled_dot_product_attention(x, x, x)


@pytest.mark.skipif(cpu.unavailable_reason() is not None, reason="no native module")
def test_routing_compiled_code(_fresh_compiler):
    x = torch.randn(1, 2, 3, 8)

    def call(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    with routed_sdpa():
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        with torch.profiler.profile() as seen:
            out = compiled(x)
    assert "fastattn::attention_fwd" in {event.key for event in seen.key_averages()}
    torch.testing.assert_close(out, call(x))
