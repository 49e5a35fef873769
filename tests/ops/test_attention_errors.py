"""Every message about a wrong argument: its type and its whole text."""

from __future__ import annotations

import ast
import inspect
import re
import traceback
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import fastattn
from fastattn import testing
from fastattn.ops import checks


def random(*shape: int, **options: Any) -> Tensor:
    return torch.randn(shape, **options)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def nested(layout: torch.layout) -> Tensor:
    rows = [torch.zeros(length, 4, 8) for length in (5, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is a prototype of torch
        return torch.nested.nested_tensor(rows, layout=layout)


# A valid batch and a valid packed call; a case changes one argument of one of them.
BATCH = {"q": random(2, 5, 4, 8), "k": random(2, 7, 2, 8), "v": random(2, 7, 2, 8)}
PACKED = {
    "q": random(5, 4, 8),
    "k": random(7, 2, 8),
    "v": random(7, 2, 8),
    "cu_seqlens_q": int32(0, 3, 5),
    "cu_seqlens_k": int32(0, 3, 7),
}

QKV_CASES = [
    (
        {"q": [1.0]},
        TypeError,
        "q must be a torch.Tensor; got list.",
    ),
    (
        {"k": None},
        TypeError,
        "k must be a torch.Tensor; got NoneType.",
    ),
    (
        {"v": "v"},
        TypeError,
        "v must be a torch.Tensor; got str.",
    ),
    (
        {"k": random(2, 7, 2, 8).to_sparse()},
        TypeError,
        "k must be an ordinary tensor; got one of layout torch.sparse_coo. Convert it with "
        "k.to_dense().",
    ),
    (
        {"q": nested(torch.strided)},
        TypeError,
        "q must be an ordinary tensor; got a nested one. Lay its sequences one after the other and "
        "pass cu_seqlens_q, or pad them with torch.nested.to_padded_tensor.",
    ),
    (
        {"v": nested(torch.jagged)},
        TypeError,
        "v must be an ordinary tensor; got a nested one. Lay its sequences one after the other and "
        "pass cu_seqlens_q, or pad them with torch.nested.to_padded_tensor.",
    ),
    (
        {"q": torch.ones(2, 5, 4, 8, dtype=torch.int64)},
        TypeError,
        "q must be float32, float64, float16 or bfloat16; got torch.int64. "
        "Convert it with q.to(dtype).",
    ),
    (
        {"v": torch.ones(2, 7, 2, 8, dtype=torch.complex64)},
        TypeError,
        "v must be float32, float64, float16 or bfloat16; got torch.complex64. "
        "Convert it with v.to(dtype).",
    ),
    (
        {"k": random(2, 7, 2, 8, dtype=torch.float64)},
        TypeError,
        "k must have the dtype of q, torch.float32; got torch.float64. "
        "Convert it with k.to(q.dtype), or run under torch.autocast.",
    ),
    (
        {"v": random(2, 7, 2, 8, device="meta")},
        ValueError,
        "v must be on the device of q, cpu; got meta. Move it with v.to(q.device).",
    ),
    (
        {"q": random(2, 5, 8)},
        ValueError,
        "q must be (batch, seqlen, heads, head_dim), or packed with cu_seqlens_q; got shape "
        "(2, 5, 8).",
    ),
    (
        {"v": random(2, 7, 2, 6)},
        ValueError,
        "v must have the shape of k, (2, 7, 2, 8); got (2, 7, 2, 6). Values of another head_dim "
        "are not supported; pad the smaller one with zeros.",
    ),
    (
        {"q": random(2, 5, 4, 16)},
        ValueError,
        "k must have the head_dim of q, at least 1; got head_dim 8 for k and 16 for q.",
    ),
    (
        {"q": random(2, 5, 4, 0), "k": random(2, 7, 2, 0), "v": random(2, 7, 2, 0)},
        ValueError,
        "k must have the head_dim of q, at least 1; got head_dim 0 for k and 0 for q.",
    ),
    (
        {"q": random(2, 5, 3, 8)},
        ValueError,
        "num_heads of q must be a multiple of num_heads_kv of k and v, both at least 1; got 3 "
        "and 2.",
    ),
    (
        {"q": random(2, 5, 0, 8)},
        ValueError,
        "num_heads of q must be a multiple of num_heads_kv of k and v, both at least 1; got 0 "
        "and 2.",
    ),
    (
        {"k": random(2, 7, 0, 8), "v": random(2, 7, 0, 8)},
        ValueError,
        "num_heads of q must be a multiple of num_heads_kv of k and v, both at least 1; got 4 "
        "and 0.",
    ),
    (
        {"k": random(3, 7, 2, 8), "v": random(3, 7, 2, 8)},
        ValueError,
        "k must have the batch size of q, 2; got 3. Shapes are (batch, seqlen, heads, head_dim).",
    ),
]

OPTION_CASES = [
    (
        {"cu_seqlens_k": int32(0, 7)},
        ValueError,
        "cu_seqlens_k must come with cu_seqlens_q, which selects the packed layout; got "
        "cu_seqlens_k without it. Pass cu_seqlens_q too, or leave it out for a batch.",
    ),
    (
        {"max_seqlen_q": 5},
        ValueError,
        "max_seqlen_q must come with cu_seqlens_q, which selects the packed layout; got "
        "max_seqlen_q without it. Pass cu_seqlens_q too, or leave it out for a batch.",
    ),
    (
        {"max_seqlen_k": 5},
        ValueError,
        "max_seqlen_k must come with cu_seqlens_q, which selects the packed layout; got "
        "max_seqlen_k without it. Pass cu_seqlens_q too, or leave it out for a batch.",
    ),
    (
        {"key_padding_mask": [True]},
        TypeError,
        "key_padding_mask must be a torch.Tensor; got list.",
    ),
    (
        {"key_padding_mask": torch.ones(2, 7, dtype=torch.int64)},
        TypeError,
        "key_padding_mask must be bool, True = attend; got torch.int64. A 0/1 mask converts with "
        "mask.bool(), an additive mask belongs in bias.",
    ),
    (
        {"key_padding_mask": torch.ones(2, 5, dtype=torch.bool)},
        ValueError,
        "key_padding_mask must have shape (batch, seqlen_k) = (2, 7); got (2, 5). A mask of "
        "scores, (..., seqlen_q, seqlen_k), belongs in bias as 0 and -inf.",
    ),
    (
        {"key_padding_mask": torch.ones(2, 1, 5, 7, dtype=torch.bool)},
        ValueError,
        "key_padding_mask must have shape (batch, seqlen_k) = (2, 7); got (2, 1, 5, 7). A mask of "
        "scores, (..., seqlen_q, seqlen_k), belongs in bias as 0 and -inf.",
    ),
    (
        {"key_padding_mask": torch.ones(2, 7, dtype=torch.bool).to_sparse()},
        TypeError,
        "key_padding_mask must be an ordinary tensor; got one of layout torch.sparse_coo. Convert "
        "it with key_padding_mask.to_dense().",
    ),
    (
        {"key_padding_mask": torch.ones(2, 7, dtype=torch.bool, device="meta")},
        ValueError,
        "key_padding_mask must be on the device of q, cpu; got meta. Move it with "
        "key_padding_mask.to(q.device).",
    ),
    (
        {"bias": 1.0},
        TypeError,
        "bias must be a torch.Tensor; got float.",
    ),
    (
        {"bias": torch.ones(5, 7, dtype=torch.bool)},
        TypeError,
        "bias must be a floating-point tensor, added to the scores; got torch.bool. A bool mask of "
        "scores becomes torch.where(mask, 0.0, float('-inf')).",
    ),
    (
        {"bias": random(5, 7, device="meta")},
        ValueError,
        "bias must be on the device of q, cpu; got meta. Move it with bias.to(q.device).",
    ),
    (
        {"bias": random(7, 5)},
        ValueError,
        "bias must broadcast to (batch, num_heads, seqlen_q, seqlen_k) = (2, 4, 5, 7); got shape "
        "(7, 5).",
    ),
    (
        {"bias": random(1, 1, 1, 5, 7)},
        ValueError,
        "bias must broadcast to (batch, num_heads, seqlen_q, seqlen_k) = (2, 4, 5, 7); got shape "
        "(1, 1, 1, 5, 7).",
    ),
    (
        {"bias": random(2, 2, 5, 7)},
        ValueError,
        "bias must broadcast to (batch, num_heads, seqlen_q, seqlen_k) = (2, 4, 5, 7); got shape "
        "(2, 2, 5, 7).",
    ),
    (
        {"alibi_slopes": 0.5},
        TypeError,
        "alibi_slopes must be a torch.Tensor; got float.",
    ),
    (
        {"alibi_slopes": torch.ones(4, dtype=torch.int64)},
        TypeError,
        "alibi_slopes must be floating-point; got torch.int64.",
    ),
    (
        {"alibi_slopes": random(4, device="meta")},
        ValueError,
        "alibi_slopes must be on the device of q, cpu; got meta. Move it with "
        "alibi_slopes.to(q.device).",
    ),
    (
        {"alibi_slopes": random(2)},
        ValueError,
        "alibi_slopes must have shape (num_heads,) = (4,) or (batch, num_heads) = (2, 4); got "
        "(2,).",
    ),
    (
        {"alibi_slopes": random(4, requires_grad=True)},
        ValueError,
        "alibi_slopes must not require a gradient; learn a bias instead, or pass "
        "alibi_slopes.detach().",
    ),
    (
        {"dropout_p": "0.1"},
        TypeError,
        "dropout_p must be a number; got str.",
    ),
    (
        {"dropout_p": True},
        TypeError,
        "dropout_p must be a number; got bool.",
    ),
    (
        {"dropout_p": 1.1},
        ValueError,
        "dropout_p must be in [0, 1], the probability of dropping; got 1.1.",
    ),
    (
        {"dropout_p": -0.1},
        ValueError,
        "dropout_p must be in [0, 1], the probability of dropping; got -0.1.",
    ),
    (
        {"dropout_p": float("nan")},
        ValueError,
        "dropout_p must be in [0, 1], the probability of dropping; got nan.",
    ),
    (
        {"softcap": "tanh"},
        TypeError,
        "softcap must be a number; got str.",
    ),
    (
        {"softmax_scale": torch.tensor(0.1)},
        TypeError,
        "softmax_scale must be a number; got Tensor.",
    ),
    (
        {"softcap": -1.0},
        ValueError,
        "softcap must be 0 (off) or positive and finite; got -1.0.",
    ),
    (
        {"softcap": float("inf")},
        ValueError,
        "softcap must be 0 (off) or positive and finite; got inf.",
    ),
    (
        {"softmax_scale": float("nan")},
        ValueError,
        "softmax_scale must be finite; got nan.",
    ),
    (
        {"softmax_scale": float("-inf")},
        ValueError,
        "softmax_scale must be finite; got -inf.",
    ),
    (
        {"window": 3},
        ValueError,
        "window must be (left, right), two integers of at least -1, -1 = unbounded; got 3.",
    ),
    (
        {"window": (1, 2, 3)},
        ValueError,
        "window must be (left, right), two integers of at least -1, -1 = unbounded; got (1, 2, 3).",
    ),
    (
        {"window": (-2, 0)},
        ValueError,
        "window must be (left, right), two integers of at least -1, -1 = unbounded; got (-2, 0).",
    ),
    (
        {"window": (0.5, 0)},
        ValueError,
        "window must be (left, right), two integers of at least -1, -1 = unbounded; got (0.5, 0).",
    ),
]

PACKED_CASES = [
    (
        {"q": random(2, 5, 4, 8)},
        ValueError,
        "q must be (total, heads, head_dim), because cu_seqlens_q is given; got shape "
        "(2, 5, 4, 8).",
    ),
    (
        {"cu_seqlens_q": [0, 3, 5]},
        TypeError,
        "cu_seqlens_q must be a torch.Tensor; got list.",
    ),
    (
        {"cu_seqlens_k": torch.tensor([0, 3, 7])},
        TypeError,
        "cu_seqlens_k must be int32; got torch.int64. Convert it with "
        "cu_seqlens_k.to(torch.int32).",
    ),
    (
        {"cu_seqlens_q": int32(0, 3, 5)[None]},
        ValueError,
        "cu_seqlens_q must have shape (batch + 1,): 0 and then the running sum of the lengths; "
        "got shape (1, 3).",
    ),
    (
        {"cu_seqlens_q": int32()},
        ValueError,
        "cu_seqlens_q must have shape (batch + 1,): 0 and then the running sum of the lengths; "
        "got shape (0,).",
    ),
    (
        {"cu_seqlens_q": int32(0, 3, 5).to("meta")},
        ValueError,
        "cu_seqlens_q must be on the device of q, cpu; got meta. Move it with "
        "cu_seqlens_q.to(q.device).",
    ),
    (
        {"cu_seqlens_k": int32(0, 7)},
        ValueError,
        "cu_seqlens_k must name as many sequences as cu_seqlens_q, 2; got 1.",
    ),
    (
        {"max_seqlen_q": torch.tensor(3)},
        TypeError,
        "max_seqlen_q must be an int, the length of the longest sequence; got Tensor. Compute it "
        "where the lengths are made, with int(lengths.max()).",
    ),
    (
        {"max_seqlen_k": 4.0},
        TypeError,
        "max_seqlen_k must be an int, the length of the longest sequence; got float. Compute it "
        "where the lengths are made, with int(lengths.max()).",
    ),
    (
        {"max_seqlen_k": -1},
        ValueError,
        "max_seqlen_k must be at least 0; got -1.",
    ),
    (
        {"key_padding_mask": torch.ones(2, 4, dtype=torch.bool)},
        ValueError,
        "key_padding_mask must be None in the packed layout, which has no padding; got a mask of "
        "shape (2, 4). Leave the padding out of k, v and cu_seqlens_k.",
    ),
    (
        {"bias": random(4, 3)},
        ValueError,
        "bias must broadcast to (batch, num_heads, seqlen_q, seqlen_k) = (2, 4, 3, 4); got shape "
        "(4, 3).",
    ),
    (
        {"bias": random(3, 4), "max_seqlen_q": 5, "max_seqlen_k": 6},
        ValueError,
        "bias must broadcast to (batch, num_heads, seqlen_q, seqlen_k) = (2, 4, 5, 6); got shape "
        "(3, 4).",
    ),
    (
        {"alibi_slopes": random(3, 4)},
        ValueError,
        "alibi_slopes must have shape (num_heads,) = (4,) or (batch, num_heads) = (2, 4); got "
        "(3, 4).",
    ),
]

# Found when the lengths are read, just before the kernel runs.
LENGTH_CASES = [
    (
        {"cu_seqlens_q": int32(1, 3, 5)},
        ValueError,
        "cu_seqlens_q must start with 0; got 1.",
    ),
    (
        {"cu_seqlens_k": int32(0, 8, 7)},
        ValueError,
        "cu_seqlens_k must not decrease; got 8 and then 7 at index 2. It is the running sum of the "
        "lengths, starting with 0.",
    ),
    (
        {"cu_seqlens_q": int32(0, -1, 5)},
        ValueError,
        "cu_seqlens_q must not decrease; got 0 and then -1 at index 1. It is the running sum of "
        "the lengths, starting with 0.",
    ),
    (
        {"cu_seqlens_q": int32(0, 3, 6)},
        ValueError,
        "cu_seqlens_q must end within the tensor's 5 rows; got 6 as its last value.",
    ),
    (
        {"cu_seqlens_k": int32(0, 3, 100)},
        ValueError,
        "cu_seqlens_k must end within the tensor's 7 rows; got 100 as its last value.",
    ),
    (
        {"max_seqlen_q": 2},
        ValueError,
        "max_seqlen_q must be at least the longest sequence; got 2, and sequence 0 has 3 rows.",
    ),
    (
        {"max_seqlen_k": 3},
        ValueError,
        "max_seqlen_k must be at least the longest sequence; got 3, and sequence 1 has 4 rows.",
    ),
]


def name_of(value: Any) -> str | None:
    return " ".join(value) if isinstance(value, dict) else None


def as_dtype(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return arguments | {name: arguments[name].to(dtype) for name in ("q", "k", "v")}


def expect(kind: type[Exception], message: str, call: Any, **arguments: Any) -> None:
    with pytest.raises(Exception, match=re.escape("attention: " + message) + "$") as raised:
        call(**arguments)
    assert type(raised.value) is kind


@pytest.mark.parametrize(("change", "kind", "message"), QKV_CASES + OPTION_CASES, ids=name_of)
@pytest.mark.parametrize("call", [fastattn.attention, fastattn.explain])
def test_wrong_argument_of_a_batch(call, change, kind, message):
    expect(kind, message, call, **BATCH | change)


@pytest.mark.parametrize(("change", "kind", "message"), PACKED_CASES, ids=name_of)
@pytest.mark.parametrize("call", [fastattn.attention, fastattn.explain])
def test_wrong_argument_of_packed_sequences(call, change, kind, message):
    expect(kind, message, call, **PACKED | change)


@pytest.mark.parametrize(("change", "kind", "message"), LENGTH_CASES, ids=name_of)
def test_wrong_lengths(backend, change, kind, message):
    packed = as_dtype(PACKED | change, testing.default_dtype)
    expect(kind, message, fastattn.attention, **packed, backend=backend)


@pytest.mark.parametrize(("change", "kind", "message"), LENGTH_CASES, ids=name_of)
def test_wrong_lengths_with_a_bias(backend, change, kind, message):
    """A bias makes the lengths count earlier; they are checked before they size anything."""
    packed = as_dtype(PACKED | change, testing.default_dtype)
    bias = torch.zeros(1)
    expect(kind, message, fastattn.attention, **packed, bias=bias, backend=backend)


@pytest.mark.parametrize(("change", "kind", "message"), LENGTH_CASES, ids=name_of)
def test_wrong_lengths_under_the_compiler(cpu_backend, change, kind, message):
    """The compiled graph never reads the lengths; the kernel does, each time."""
    compiled = torch.compile(fastattn.attention, fullgraph=True, backend="eager")
    expect(kind, message, compiled, **PACKED | change, backend=cpu_backend)


def test_wrong_lengths_of_the_operator(cpu_backend):
    """Whoever calls the operator itself cannot make a kernel read past a tensor's end."""
    q, k, v = PACKED["q"], PACKED["k"], PACKED["v"]
    ends = int32(0, 3, 100)
    rest = (None,) * 4 + (None, None, 1.0, 0.0, -1, -1, 0.0, cpu_backend)
    with pytest.raises(ValueError, match="cu_seqlens_q must end within the tensor's 5 rows"):
        torch.ops.fastattn.attention_fwd(q, k, v, ends, ends, *rest)


def test_autocast_does_not_hide_a_float64():
    with torch.autocast("cpu", torch.bfloat16):
        expect(
            TypeError,
            "v must have the dtype of q, torch.bfloat16; got torch.float64. Convert it with "
            "v.to(q.dtype), or run under torch.autocast.",
            fastattn.attention,
            **BATCH | {"v": BATCH["v"].double()},
        )


def test_every_message_has_a_case():
    """Each place of ops/checks.py that raises is reached by a case above."""
    tree = ast.parse(inspect.getsource(checks))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    places = {
        (call.lineno, call.end_lineno)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "_fail"
    }
    assert places
    for base, cases in (
        (BATCH, QKV_CASES + OPTION_CASES),
        (PACKED, PACKED_CASES + LENGTH_CASES),
    ):
        for change, kind, _ in cases:
            with pytest.raises(kind) as raised:
                fastattn.attention(**base | change, backend="reference")
            frames = traceback.extract_tb(raised.tb)
            lines = [frame.lineno for frame in frames if frame.filename == checks.__file__]
            places -= {place for place in places if place[0] <= lines[-2] <= place[1]}
    assert not places, f"no case reaches the messages at lines {sorted(places)}"
