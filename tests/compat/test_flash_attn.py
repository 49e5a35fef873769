"""The functions of flash-attn 2.8: signatures, meaning, gradients, dropout masks, caches."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode

import fastattn
from fastattn.compat import bert_padding, flash_attn
from fastattn.compat.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from fastattn.compat.rotary import apply_rotary, apply_rotary_emb

EMPTY = inspect.Parameter.empty
COMMON = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "alibi_slopes": None,
    "deterministic": False,
    "return_attn_probs": False,
}
VARLEN = dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"), EMPTY)
# Parameters in their order, and their defaults, as flash_attn/flash_attn_interface.py and
# flash_attn/bert_padding.py of version 2.8.3 have them.
SIGNATURES: dict[str, dict[str, Any]] = {
    "flash_attn_func": {"q": EMPTY, "k": EMPTY, "v": EMPTY, **COMMON},
    "flash_attn_kvpacked_func": {"q": EMPTY, "kv": EMPTY, **COMMON},
    "flash_attn_qkvpacked_func": {"qkv": EMPTY, **COMMON},
    "flash_attn_varlen_func": {
        **{"q": EMPTY, "k": EMPTY, "v": EMPTY, **VARLEN},
        **COMMON,
        "block_table": None,
    },
    "flash_attn_varlen_kvpacked_func": {"q": EMPTY, "kv": EMPTY, **VARLEN, **COMMON},
    "flash_attn_varlen_qkvpacked_func": {
        **{"qkv": EMPTY, "cu_seqlens": EMPTY, "max_seqlen": EMPTY},
        **COMMON,
    },
    "flash_attn_with_kvcache": {
        **dict.fromkeys(("q", "k_cache", "v_cache"), EMPTY),
        **dict.fromkeys(("k", "v", "rotary_cos", "rotary_sin", "cache_seqlens")),
        **dict.fromkeys(("cache_batch_idx", "cache_leftpad", "block_table", "softmax_scale")),
        **{"causal": False, "window_size": (-1, -1), "softcap": 0.0, "rotary_interleaved": True},
        **{"alibi_slopes": None, "num_splits": 0, "return_softmax_lse": False},
    },
}
PADDING_SIGNATURES: dict[str, dict[str, Any]] = {
    "unpad_input": {"hidden_states": EMPTY, "attention_mask": EMPTY, "unused_mask": None},
    "unpad_input_for_concatenated_sequences": {
        "hidden_states": EMPTY,
        "attention_mask_in_length": EMPTY,
    },
    "pad_input": dict.fromkeys(("hidden_states", "indices", "batch", "seqlen"), EMPTY),
}
ROTARY_SIGNATURE = {
    **dict.fromkeys(("x", "cos", "sin"), EMPTY),
    **{"interleaved": False, "inplace": False, "seqlen_offsets": 0},
    **dict.fromkeys(("cu_seqlens", "max_seqlen")),
}


@pytest.mark.parametrize("name", [*SIGNATURES, *PADDING_SIGNATURES])
def test_signatures(name):
    module, table = flash_attn, SIGNATURES
    if name in PADDING_SIGNATURES:
        module, table = bert_padding, PADDING_SIGNATURES
    parameters = inspect.signature(getattr(module, name)).parameters
    assert [(p.name, p.default) for p in parameters.values()] == list(table[name].items())
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())


def test_signature_of_the_rotary_embedding():
    parameters = inspect.signature(apply_rotary_emb).parameters
    assert [(p.name, p.default) for p in parameters.values()] == list(ROTARY_SIGNATURE.items())


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"softmax_scale": 0.3},
    "causal": {"causal": True},
    "window": {"window_size": (3, 2)},
    "causal window": {"causal": True, "window_size": (3, -1)},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.0])},
    "dropout": {"dropout_p": 0.3},
    "deterministic": {"deterministic": True},
}


def ours(options: dict[str, Any]) -> dict[str, Any]:
    """The options under the names of fastattn.attention."""
    renamed = {"window" if name == "window_size" else name: x for name, x in options.items()}
    renamed.pop("deterministic", None)
    return renamed


def results(function: Any, leaves: list[Tensor], dout: Tensor) -> list[Tensor]:
    """Result and gradients, with the same dropout each time."""
    torch.manual_seed(7)
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, dout)]


def assert_equal(first: list[Tensor], second: list[Tensor]) -> None:
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIONS)
def test_batch(name, dtype):
    options = OPTIONS[name]
    q = torch.randn(2, 7, 4, 16, dtype=dtype)
    kv = torch.randn(2, 9, 2, 2, 16, dtype=dtype)
    qkv = torch.randn(2, 7, 3, 4, 16, dtype=dtype)
    dout = torch.randn_like(q)
    q, k, v = (x.clone().requires_grad_() for x in (q, kv[:, :, 0], kv[:, :, 1]))
    kv, qkv = kv.requires_grad_(), qkv.requires_grad_()
    expected = results(lambda *x: fastattn.attention(*x, **ours(options)), [q, k, v], dout)
    assert_equal(results(lambda *x: flash_attn_func(*x, **options), [q, k, v], dout), expected)
    out, dq, dkv = results(lambda *x: flash_attn_kvpacked_func(*x, **options), [q, kv], dout)
    assert_equal([out, dq, dkv[:, :, 0], dkv[:, :, 1]], expected)

    parts = [x.detach().clone().requires_grad_() for x in qkv.unbind(2)]
    expected = results(lambda *x: fastattn.attention(*x, **ours(options)), parts, dout)
    out, dqkv = results(lambda x: flash_attn_qkvpacked_func(x, **options), [qkv], dout)
    assert_equal([out, *dqkv.unbind(2)], expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_varlen(name):
    options = OPTIONS[name]
    ends_q, ends_k = (torch.tensor(x, dtype=torch.int32) for x in ([0, 5, 5, 8], [0, 3, 7, 9]))
    q = torch.randn(8, 4, 16, requires_grad=True)
    kv = torch.randn(9, 2, 2, 16)
    k, v = (x.clone().requires_grad_() for x in kv.unbind(1))
    kv.requires_grad_()
    dout = torch.randn(8, 4, 16)
    lengths = (ends_q, ends_k, 5, 4)
    named = {"cu_seqlens_q": ends_q, "cu_seqlens_k": ends_k, "max_seqlen_q": 5, "max_seqlen_k": 4}
    expected = results(lambda *x: fastattn.attention(*x, **named, **ours(options)), [q, k, v], dout)
    assert_equal(
        results(lambda *x: flash_attn_varlen_func(*x, *lengths, **options), [q, k, v], dout),
        expected,
    )
    out, dq, dkv = results(
        lambda *x: flash_attn_varlen_kvpacked_func(*x, *lengths, **options), [q, kv], dout
    )
    assert_equal([out, dq, *dkv.unbind(1)], expected)

    qkv = torch.randn(8, 3, 4, 16, requires_grad=True)
    parts = [x.detach().clone().requires_grad_() for x in qkv.unbind(1)]
    expected = results(
        lambda *x: fastattn.attention(*x, cu_seqlens_q=ends_q, max_seqlen_q=5, **ours(options)),
        parts,
        dout,
    )
    # The longest length as a tensor, as some callers have it.
    longest = torch.tensor(5)
    out, dqkv = results(
        lambda x: flash_attn_varlen_qkvpacked_func(x, ends_q, longest, **options), [qkv], dout
    )
    assert_equal([out, *dqkv.unbind(1)], expected)


def check_dropped(out: Tensor, s_dmask: Tensor, v: Tensor, p: float) -> None:
    """The weights and their signs give the result; out and v are (batch, heads, rows, columns)."""
    weights = s_dmask.abs().float()
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights / torch.where(total == 0, 1.0, total)
    kept = weights * (s_dmask >= 0) / (1 - round(p * 65536) / 65536)
    torch.testing.assert_close(kept @ v.float(), out.float(), rtol=1e-4, atol=1e-5)
    largest = s_dmask.abs().amax(dim=-1)
    assert ((largest == 1) | (largest == 0)).all()


@pytest.mark.parametrize("causal", [False, True])
def test_returned_weights_of_a_batch(causal):
    q, k, v = torch.randn(2, 20, 4, 8), torch.randn(2, 33, 2, 8), torch.randn(2, 33, 2, 8)
    options = {"dropout_p": 0.3, "causal": causal, "softcap": 2.0}
    out, lse, s_dmask = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    assert s_dmask.shape == (2, 4, 20, 33) and s_dmask.dtype == q.dtype
    values = v.transpose(1, 2).repeat_interleave(2, dim=1)
    check_dropped(out.transpose(1, 2), s_dmask, values, 0.3)
    expected_lse = fastattn.attention(q, k, v, causal=causal, softcap=2.0, return_lse=True)[1]
    torch.testing.assert_close(lse, expected_lse)
    dropped = (s_dmask < 0).sum() / (s_dmask != 0).sum()
    assert abs(dropped.item() - 0.3) < 0.05


def test_returned_weights_of_packed_sequences():
    ends_q, ends_k = (torch.tensor(x, dtype=torch.int32) for x in ([0, 6, 6, 17], [0, 9, 12, 20]))
    q, k, v = torch.randn(18, 2, 8), torch.randn(21, 2, 8), torch.randn(21, 2, 8)
    out, lse, s_dmask = flash_attn_varlen_func(
        q, k, v, ends_q, ends_k, 11, 9, 0.2, causal=True, return_attn_probs=True
    )
    assert lse.shape == (2, 18) and s_dmask.shape == (3, 2, 11, 9)
    for i in range(3):
        rows, columns = (slice(int(x[i]), int(x[i + 1])) for x in (ends_q, ends_k))
        own = s_dmask[i, :, : rows.stop - rows.start, : columns.stop - columns.start]
        if own.numel():
            values = v[columns].transpose(0, 1)
            check_dropped(out[rows].transpose(0, 1), own, values, 0.2)
    assert (s_dmask[1] == 0).all()


def test_returned_weights_without_dropout_are_empty():
    q = torch.randn(1, 5, 2, 8)
    _, lse, s_dmask = flash_attn_qkvpacked_func(torch.stack([q, q, q], 2), return_attn_probs=True)
    assert lse.shape == (1, 2, 5) and lse.dtype == torch.float32 and s_dmask.shape == (0,)


def test_block_size_of_the_weights():
    """With it, tests written for flash-attn undo the scaling of S_dmask."""
    q, k = torch.randn(1, 6, 1, 8), torch.randn(1, 9, 1, 8)
    _, lse, s_dmask = flash_attn_func(q, k, k, 0.5, return_attn_probs=True)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
    width = flash_attn._get_block_size_n(q.device, 8, True, False)
    blocks = [x.amax(-1) for x in scores.split(width, dim=-1)]
    assert len(blocks) == 1
    weights = s_dmask.abs() * torch.exp(blocks[0] - lse)[..., None]
    torch.testing.assert_close(weights, scores.softmax(-1))


def test_a_row_without_keys():
    """Zero, as in flash-attn; its lse is -inf."""
    q, k = torch.randn(1, 5, 1, 8), torch.randn(1, 2, 1, 8)
    out, lse, _ = flash_attn_func(q, k, k, causal=True, return_attn_probs=True)
    assert (out[:, :3] == 0).all() and (lse[..., :3] == -torch.inf).all()
    assert (out[:, 3:] != 0).all() and lse[..., 3:].isfinite().all()


def expected_from_cache(
    q: Tensor, k: Tensor, v: Tensor, starts: list[int], ends: list[int], **options: Any
) -> tuple[Tensor, Tensor]:
    """Each sequence alone, on its own rows."""
    outs = [
        fastattn.attention(
            q[i : i + 1],
            k[i : i + 1, starts[i] : ends[i]],
            v[i : i + 1, starts[i] : ends[i]],
            return_lse=True,
            **options,
        )
        for i in range(len(q))
    ]
    return torch.cat([out for out, _ in outs]), torch.cat([lse for _, lse in outs])


CACHE_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (4, 0)},
    "softcap": {"softcap": 1.0, "softmax_scale": 0.7},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.3]), "causal": True},
}


@pytest.mark.parametrize("name", CACHE_OPTIONS)
@pytest.mark.parametrize("seqlen_q", [1, 3])
@pytest.mark.parametrize("kind", ["lengths", "number", "chosen", "left padding", "whole"])
def test_cache(name, seqlen_q, kind):
    options = CACHE_OPTIONS[name]
    q = torch.randn(3, seqlen_q, 4, 16)
    k_cache, v_cache = (torch.randn(4, 12, 2, 16) for _ in range(2))
    before = [9, 5, 9] if kind != "number" else [6, 6, 6]
    starts, order = [0, 0, 0], [0, 1, 2]
    arguments: dict[str, Any] = {"cache_seqlens": torch.tensor(before, dtype=torch.int32)}
    new = torch.randn(2, 3, 3, 2, 16)
    arguments |= {"k": new[0], "v": new[1]}
    if kind == "number":
        arguments["cache_seqlens"] = 6
    if kind == "chosen":
        order = [3, 0, 2]
        arguments["cache_batch_idx"] = torch.tensor(order, dtype=torch.int32)
    if kind == "left padding":
        starts = [2, 0, 4]
        arguments["cache_leftpad"] = torch.tensor(starts, dtype=torch.int32)
    if kind == "whole":
        arguments, before, new = {}, [12, 12, 12], new[:, :, :0]
        k_cache, v_cache = k_cache[:3], v_cache[:3]
    full_k, full_v = k_cache.clone(), v_cache.clone()
    ends = [n + new.shape[2] for n in before]
    for i, sequence in enumerate(order):
        full_k[sequence, before[i] : ends[i]] = new[0, i]
        full_v[sequence, before[i] : ends[i]] = new[1, i]
    expected = expected_from_cache(q, full_k[order], full_v[order], starts, ends, **ours(options))
    out, lse = flash_attn_with_kvcache(
        q, k_cache, v_cache, **arguments, **options, return_softmax_lse=True
    )
    torch.testing.assert_close((out, lse), expected)
    assert torch.equal(k_cache, full_k) and torch.equal(v_cache, full_v)
    if kind == "whole":
        assert torch.equal(flash_attn_with_kvcache(q, k_cache, v_cache, **options), out)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_cache_with_rotary_embedding(interleaved, causal):
    q, k, v = (torch.randn(2, 3, 2, 16) for _ in range(3))
    k_cache, v_cache = (torch.randn(2, 10, 2, 16) for _ in range(2))
    angles = torch.randn(10, 4)
    cos, sin = angles.cos(), angles.sin()
    before = torch.tensor([4, 6], dtype=torch.int32)
    positions = before[:, None] + torch.arange(3)
    turned_q = apply_rotary(q, cos, sin, interleaved, positions if causal else positions[:, :1])
    turned_k = apply_rotary(k, cos, sin, interleaved, positions)
    other_k, other_v = k_cache.clone(), v_cache.clone()
    expected = flash_attn_with_kvcache(
        turned_q, other_k, other_v, turned_k, v, cache_seqlens=before, causal=causal
    )
    out = flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k,
        v,
        cos,
        sin,
        before,
        causal=causal,
        rotary_interleaved=interleaved,
    )
    assert torch.equal(out, expected) and torch.equal(k_cache, other_k)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary(interleaved):
    """A turn of pairs, as complex numbers; columns past rotary_dim stay."""
    x, angles = torch.randn(2, 3, 2, 10), torch.randn(5, 4)
    positions = torch.tensor([[0, 1, 2], [2, 3, 4]])
    out = apply_rotary(x, angles.cos(), angles.sin(), interleaved, positions)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + 4) for i in range(4)]
    for i, (a, b) in enumerate(pairs):
        turn = torch.polar(torch.ones(()), angles[positions][..., i])[..., None]
        turned = torch.complex(x[..., a], x[..., b]) * turn
        torch.testing.assert_close(out[..., [a, b]], torch.view_as_real(turned))
    assert torch.equal(out[..., 8:], x[..., 8:])


@pytest.mark.parametrize("interleaved", [True, False])
def test_apply_rotary_emb(interleaved):
    """Offsets, packed sequences, in place, and the gradient, which is the turn back."""
    x, angles = torch.randn(2, 3, 2, 10), torch.randn(9, 4)
    cos, sin = angles.cos(), angles.sin()
    offsets = torch.tensor([1, 5])
    positions = offsets[:, None] + torch.arange(3)
    expected = apply_rotary(x, cos, sin, interleaved, positions)
    leaf = x.clone().requires_grad_()
    out = apply_rotary_emb(leaf, cos, sin, interleaved, seqlen_offsets=offsets)
    assert torch.equal(out, expected)
    (dx,) = torch.autograd.grad(out, leaf, out.detach())
    torch.testing.assert_close(dx, x)
    assert torch.equal(
        apply_rotary_emb(x, cos, sin, interleaved),
        apply_rotary(x, cos, sin, interleaved, torch.arange(3).expand(2, 3)),
    )
    ends = torch.tensor([0, 3, 5], dtype=torch.int32)
    packed = torch.cat([x[0], x[1, :2], x[1, 2:]])  # the last row is of no sequence
    out = apply_rotary_emb(
        packed, cos, sin, interleaved, seqlen_offsets=offsets, cu_seqlens=ends, max_seqlen=3
    )
    assert torch.equal(out[:5], torch.cat([expected[0], expected[1, :2]]))
    same = apply_rotary_emb(x, cos, sin, interleaved, True, offsets)
    assert same is x and torch.equal(x, expected)


def test_compiled():
    """One graph, as Transformers' own use of flash-attn needs it."""
    q = torch.randn(8, 2, 8, requires_grad=True)
    ends = torch.tensor([0, 3, 8], dtype=torch.int32)

    def run(q: Tensor) -> Tensor:
        return flash_attn_varlen_func(q, q, q, ends, ends, 5, 5, causal=True)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q), run(q))
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["numbers", "tensors"])
@torch.no_grad()
def test_a_cache_that_fills_is_compiled_once(kind):
    """One graph serves every number of rows in the cache."""
    q, k, v = (torch.randn(3, 1, 2, 8) for _ in range(3))
    caches = torch.randn(2, 3, 20, 2, 8)
    angles = torch.randn(20, 4)
    cos, sin = angles.cos(), angles.sin()

    def step(q: Tensor, k_cache: Tensor, v_cache: Tensor, before: Any) -> Tensor:
        q = apply_rotary_emb(q, cos, sin, seqlen_offsets=before)
        return flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cos, sin, before, causal=True)

    counter = CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for rows in range(4, 9):
        before = rows if kind == "numbers" else torch.full((3,), rows, dtype=torch.int32)
        theirs = caches.clone()
        out = compiled(q, *caches, before)
        torch.testing.assert_close(out, step(q, *theirs, before))
        assert torch.equal(caches, theirs)
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_fake_cache():
    """Its lengths are not read where they have no values."""
    with FakeTensorMode():
        q, k_cache, v_cache = (torch.randn(3, size, 2, 8) for size in (1, 9, 9))
        for before in (4, torch.tensor([4, 5, 6])):
            out = flash_attn_with_kvcache(q, k_cache, v_cache, q, q, cache_seqlens=before)
            assert out.shape == q.shape


def test_autocast():
    q = torch.randn(1, 5, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert flash_attn_func(q, q, q).dtype == torch.bfloat16


X, CACHE = torch.randn(2, 5, 2, 8), torch.randn(2, 6, 2, 8)
ENDS = torch.tensor([0, 5], dtype=torch.int32)
ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "pages": (
        lambda: flash_attn_varlen_func(X[0], X[0], X[0], ENDS, ENDS, 5, 5, block_table=ENDS),
        ValueError,
        r"flash_attn_varlen_func: block_table must be None, because paged caches are not served; "
        r"got a table\. Gather the pages of each sequence with",
    ),
    "pages of a cache": (
        lambda: flash_attn_with_kvcache(X, CACHE, CACHE, block_table=ENDS),
        ValueError,
        "flash_attn_with_kvcache: block_table must be None",
    ),
    "not a tensor": (
        lambda: flash_attn_qkvpacked_func([1.0]),
        TypeError,
        r"flash_attn_qkvpacked_func: qkv must be a torch\.Tensor; got list\.",
    ),
    "packed": (
        lambda: flash_attn_kvpacked_func(X, X),
        ValueError,
        r"flash_attn_kvpacked_func: kv must be \(batch_size, seqlen, 2, nheads, headdim\); got "
        r"shape \(2, 5, 2, 8\)\.",
    ),
    "packed sequences": (
        lambda: flash_attn_varlen_qkvpacked_func(X, ENDS, 5),
        ValueError,
        r"flash_attn_varlen_qkvpacked_func: qkv must be \(total, 3, nheads, headdim\); got",
    ),
    "k alone": (
        lambda: flash_attn_with_kvcache(X, CACHE, CACHE, X, cache_seqlens=1),
        ValueError,
        "k and v must come together; got one of them alone",
    ),
    "unknown length": (
        lambda: flash_attn_with_kvcache(X, CACHE, CACHE, X, X),
        ValueError,
        "cache_seqlens must be given with k, which is written behind that many rows; got None",
    ),
    "no room": (
        lambda: flash_attn_with_kvcache(X, CACHE, CACHE, X, X, cache_seqlens=2),
        ValueError,
        r"cache_seqlens must be between 0 and 1, the rows of the cache less those of k; got "
        r"\[2, 2\]\. Make a longer cache",
    ),
    "gradient": (
        lambda: flash_attn_with_kvcache(X.clone().requires_grad_(), CACHE, CACHE),
        ValueError,
        "q, k, v and the caches must not need a gradient, because the cache is written in place; "
        r"got one that does\. Call it under torch\.no_grad\(\)",
    ),
    "cos alone": (
        lambda: flash_attn_with_kvcache(X, CACHE, CACHE, rotary_cos=X),
        ValueError,
        "rotary_cos and rotary_sin must come together, and with k; got some of them alone",
    ),
    "rotary and left padding": (
        lambda: flash_attn_with_kvcache(
            X, CACHE, CACHE, X, X, X, X, cache_seqlens=1, cache_leftpad=ENDS
        ),
        ValueError,
        "cache_leftpad must be None if rotary_cos is given, because positions are not defined "
        r"then; got both\. Turn q and k before the call",
    ),
    "rotary of a batch": (
        lambda: apply_rotary_emb(X[0], X, X),
        ValueError,
        r"apply_rotary_emb: x must be \(batch, seqlen, heads, head_dim\); got shape \(5, 2, 8\)",
    ),
    "rotary of packed sequences": (
        lambda: apply_rotary_emb(X, X, X, cu_seqlens=ENDS),
        ValueError,
        r"apply_rotary_emb: x must be \(total, heads, head_dim\), because cu_seqlens is given; got",
    ),
    "table": (
        lambda: apply_rotary(X, torch.ones(3, 5), torch.ones(3, 5), True, torch.zeros(2, 5).long()),
        ValueError,
        r"rotary: cos and sin must both be \(positions, rotary_dim / 2\) with rotary_dim at most "
        r"head_dim, 8; got shapes \(3, 5\) and \(3, 5\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def test_unpad_input():
    x = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    rows, indices, ends, longest, used = bert_padding.unpad_input(x, mask)
    assert indices.tolist() == [0, 1, 5, 6, 7] and longest == 3
    assert ends.tolist() == [0, 2, 5] and ends.dtype == torch.int32
    assert used.tolist() == [2, 3] and used.dtype == torch.int32
    assert torch.equal(rows, x.flatten(0, 1)[indices])
    back = bert_padding.pad_input(rows, indices, 2, 4)
    assert torch.equal(back, x * mask[..., None])
    assert torch.equal(bert_padding.index_first_axis(x.flatten(0, 1), indices), rows)
    assert torch.equal(bert_padding.index_put_first_axis(rows, indices, 8), back.flatten(0, 1))
    (dx,) = torch.autograd.grad(back.sum(), x)
    assert torch.equal(dx, mask[..., None].expand(2, 4, 3).float())


def test_unpad_input_with_unused_places():
    """They are taken out with the tokens, and counted apart."""
    x = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    unused = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    rows, indices, ends, longest, used = bert_padding.unpad_input(x, mask, unused)
    assert indices.tolist() == [0, 1, 2, 4, 5, 6, 7] and ends.tolist() == [0, 3, 7]
    assert longest == 4 and used.tolist() == [2, 3]
    assert torch.equal(rows, x.flatten(0, 1)[indices])


def test_unpad_concatenated_sequences():
    x = torch.randn(3, 6, 2)
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    rows, indices, ends, longest = bert_padding.unpad_input_for_concatenated_sequences(x, lengths)
    assert ends.tolist() == [0, 2, 5, 8, 10, 16] and longest == 6
    assert indices.tolist() == [*range(5), *range(6, 11), *range(12, 18)]
    assert torch.equal(rows, x.flatten(0, 1)[indices])
