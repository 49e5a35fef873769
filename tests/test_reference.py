"""The reference against torch's own attention, its own derivatives, and its definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastattn import dropout, reference
from fastattn.testing import cu_seqlens, guarded, make_inputs, reference_outputs

INF = float("inf")


def qkv(
    batch: int = 2, size_q: int = 5, size_k: int = 7, heads: int = 4, kv: int = 4, dim: int = 8
) -> list[Tensor]:
    return [
        torch.randn(batch, size, h, dim, dtype=torch.float64)
        for size, h in ((size_q, heads), (size_k, kv), (size_k, kv))
    ]


def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    options.setdefault("softmax_scale", q.shape[-1] ** -0.5)
    return reference.attention(q, k, v, **options)


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """torch's plain implementation, (batch, seqlen, heads, head_dim) like ours."""
    with sdpa_kernel(SDPBackend.MATH):
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options
        )
    return out.transpose(1, 2)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5


def from_scores(s: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhij,bjhd->bihd", s.softmax(-1), v)


@pytest.mark.parametrize("scale", [None, 0.3, -1.0, 0.0])
def test_equals_sdpa(scale):
    q, k, v = qkv()
    ours, _ = attend(q, k, v, **({} if scale is None else {"softmax_scale": scale}))
    torch.testing.assert_close(ours, sdpa(q, k, v, scale=scale))


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_grouped_heads_equal_sdpa(kv):
    q, k, v = qkv(kv=kv)
    torch.testing.assert_close(attend(q, k, v)[0], sdpa(q, k, v, enable_gqa=True))


def test_causal_equals_sdpa():
    q, k, v = qkv(size_k=5)
    ours, _ = attend(q, k, v, window=(-1, 0))
    torch.testing.assert_close(ours, sdpa(q, k, v, is_causal=True))


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 4, 1, 7), (5, 7), (2, 1, 1, 7), (1,)])
def test_bias_equals_sdpa(shape):
    q, k, v = qkv()
    bias = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(attend(q, k, v, bias=bias)[0], sdpa(q, k, v, attn_mask=bias))


def test_key_padding_mask_equals_sdpa():
    q, k, v = qkv()
    mask = torch.tensor([[1, 1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    ours, _ = attend(q, k, v, key_padding_mask=mask)
    torch.testing.assert_close(ours, sdpa(q, k, v, attn_mask=mask[:, None, None]))


def test_infinite_bias_is_a_mask():
    q, k, v = qkv()
    mask = torch.rand(2, 4, 5, 7) < 0.5
    mask[..., 0] = True
    ours, _ = attend(q, k, v, bias=torch.where(mask, 0.0, -INF))
    torch.testing.assert_close(ours, sdpa(q, k, v, attn_mask=mask))


@pytest.mark.parametrize(("size_q", "size_k"), [(5, 5), (3, 7), (7, 3), (1, 6)])
@pytest.mark.parametrize("window", [(-1, 0), (0, -1), (1, 2), (0, 0), (-1, 1), (2, -1), (9, 9)])
def test_window_is_aligned_with_the_last_key(size_q, size_k, window):
    """Against the sentence of the documentation, element by element."""
    left, right = window
    q, k, v = qkv(size_q=size_q, size_k=size_k)
    s = scores(q, k)
    for i, j in itertools.product(range(size_q), range(size_k)):
        diagonal = i + size_k - size_q
        too_early = left >= 0 and j < diagonal - left
        too_late = right >= 0 and j > diagonal + right
        if too_early or too_late:
            s[:, :, i, j] = -INF
    expected = from_scores(s, v).nan_to_num(0.0)
    out, lse = attend(q, k, v, window=window)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, s.logsumexp(-1))


def test_window_of_a_packed_sequence_is_aligned_with_its_own_last_key():
    inputs = make_inputs([2, 5], [4, 3], packed=True, dtype=torch.float64, window=(-1, 0))
    out = reference_outputs(inputs).out
    for rows_q, rows_k in ((slice(0, 2), slice(0, 4)), (slice(2, 7), slice(4, 7))):
        q, k, v = inputs.q[None, rows_q], inputs.k[None, rows_k], inputs.v[None, rows_k]
        torch.testing.assert_close(out[None, rows_q], attend(q, k, v, window=(-1, 0))[0])


def test_softcap():
    q, k, v = qkv()
    expected = from_scores(1.5 * torch.tanh(scores(q, k) / 1.5), v)
    torch.testing.assert_close(attend(q, k, v, softcap=1.5)[0], expected)


def test_bias_comes_after_softcap():
    q, k, v = qkv()
    bias = torch.randn(5, 7, dtype=torch.float64)
    expected = from_scores(1.5 * torch.tanh(scores(q, k) / 1.5) + bias, v)
    torch.testing.assert_close(attend(q, k, v, softcap=1.5, bias=bias)[0], expected)


@pytest.mark.parametrize("per_sequence", [False, True])
def test_alibi(per_sequence):
    q, k, v = qkv()
    slopes = torch.rand((2, 4) if per_sequence else (4,), dtype=torch.float64)
    distance = (torch.arange(5)[:, None] + 2 - torch.arange(7)).abs()
    s = scores(q, k) - slopes.reshape(-1, 4, 1, 1) * distance
    torch.testing.assert_close(attend(q, k, v, alibi_slopes=slopes)[0], from_scores(s, v))


def test_lse():
    q, k, v = qkv()
    torch.testing.assert_close(attend(q, k, v)[1], scores(q, k).logsumexp(-1))


def test_dropout_is_the_rule():
    q, k, v = qkv()
    seed = torch.tensor(42)
    keep = dropout.keep_mask(seed, 2, 4, 5, 7, 0.4)
    p = scores(q, k).softmax(-1) * keep * dropout.keep_scale(0.4)
    expected = torch.einsum("bhij,bjhd->bihd", p, v)
    out, lse = attend(q, k, v, dropout_p=0.4, seed=seed)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, attend(q, k, v)[1])


def test_dropout_needs_a_seed():
    with pytest.raises(
        ValueError, match="attention: seed must be given if dropout_p > 0; got None"
    ):
        attend(*qkv(), dropout_p=0.1)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"window": (-1, 0)},
    "window": {"window": (1, 1)},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.1])},
    "dropout": {"dropout_p": 0.4, "seed": torch.tensor(7)},
    "masked": {"key_padding_mask": torch.tensor([[True, False, True], [False, False, False]])},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_derivatives(name, second):
    """gradcheck and gradgradcheck of out and lse, by q, k, v and bias."""
    leaves = [x.requires_grad_() for x in qkv(size_q=4, size_k=3, heads=2, kv=1, dim=2)]
    leaves.append(torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True))

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        out, lse = attend(q, k, v, bias=bias, **OPTIONS[name])
        return out, lse.masked_fill(lse == -INF, 0.0)

    check = torch.autograd.gradgradcheck if second else torch.autograd.gradcheck
    assert check(run, leaves)


@pytest.mark.parametrize("name", ["plain", "causal", "window", "softcap", "alibi"])
def test_packed_equals_each_sequence_alone(name):
    lengths_q, lengths_k = [3, 0, 5, 1], [2, 4, 5, 0]
    q, k, v = (
        torch.randn(sum(lengths), 2, 4, dtype=torch.float64)
        for lengths in (lengths_q, lengths_k, lengths_k)
    )
    ends_q, ends_k = cu_seqlens(lengths_q), cu_seqlens(lengths_k)
    out, lse = attend(q, k, v, cu_seqlens_q=ends_q, cu_seqlens_k=ends_k, **OPTIONS[name])
    for i in range(4):
        rows_q, rows_k = slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])
        alone = attend(q[None, rows_q], k[None, rows_k], v[None, rows_k], **OPTIONS[name])
        torch.testing.assert_close(out[None, rows_q], alone[0])
        torch.testing.assert_close(lse[None, :, rows_q], alone[1])


def test_packed_bias_and_dropout_use_logical_coordinates():
    inputs = make_inputs([3, 5], dtype=torch.float64, bias_shape=(2, 2, 5, 5), dropout_p=0.4)
    options = dict(
        bias=inputs.options["bias"], dropout_p=0.4, seed=torch.tensor(3), softmax_scale=0.4
    )
    padded, _ = reference.attention(
        inputs.q, inputs.k, inputs.v, key_padding_mask=inputs.options["key_padding_mask"], **options
    )
    q, k, v = (torch.cat([x[0, :3], x[1]]) for x in (inputs.q, inputs.k, inputs.v))
    packed, _ = reference.attention(q, k, v, cu_seqlens_q=cu_seqlens([3, 5]), **options)
    torch.testing.assert_close(packed, torch.cat([padded[0, :3], padded[1]]))


def test_rows_without_keys():
    """Masked, outside the window, under an infinite bias, or simply no keys: 0, -inf, no NaN."""
    bias = torch.zeros(3, 7, dtype=torch.float64)
    bias[1] = -INF
    mask = torch.tensor([[True] * 7, [False] * 7])
    q, k, v = (x.requires_grad_() for x in qkv(size_q=3))
    bias.requires_grad_()
    out, lse = attend(q, k, v, bias=bias, key_padding_mask=mask)
    (out.sum() + lse[lse > -INF].sum()).backward()
    assert (out[1] == 0).all() and (out[:, 1] == 0).all() and (out[0, [0, 2]] != 0).all()
    assert (lse[1] == -INF).all() and (lse[:, :, 1] == -INF).all()
    assert all(x.grad.isfinite().all() for x in (q, k, v, bias))
    assert (q.grad[1] == 0).all() and (k.grad[1] == 0).all() and (bias.grad[1] == 0).all()


@pytest.mark.parametrize(("size_q", "size_k"), [(0, 3), (3, 0), (0, 0)])
def test_no_rows_or_no_keys(size_q, size_k):
    q, k, v = (x.requires_grad_() for x in qkv(size_q=size_q, size_k=size_k))
    out, lse = attend(q, k, v)
    out.sum().backward()
    assert out.shape == q.shape and (out == 0).all()
    assert lse.shape == (2, 4, size_q) and (lse == -INF).all()
    assert all((x.grad == 0).all() for x in (q, k, v))


@pytest.mark.parametrize("tail", [0, 3])
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_packed_without_any_row(lengths, tail):
    inputs = make_inputs(lengths, packed=True, tail=tail)
    outputs = reference_outputs(inputs)
    assert (outputs.out == 0).all() and (outputs.lse == -INF).all()
    assert all((grad == 0).all() for grad in (outputs.dq, outputs.dk, outputs.dv))


def test_padding_is_never_read():
    q, k, v = qkv()
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    clean, _ = attend(q, k, v, key_padding_mask=mask)
    k[0, 4:], v[0, 4:] = float("nan"), INF
    k.requires_grad_()
    out, _ = attend(q, k, v, key_padding_mask=mask)
    out.sum().backward()
    assert torch.equal(out, clean)
    assert k.grad.isfinite().all() and (k.grad[0, 4:] == 0).all()


def test_rows_of_no_sequence():
    inputs = make_inputs([3, 2], packed=True, tail=4, with_dlse=True)
    outputs = reference_outputs(inputs)
    assert (outputs.out[5:] == 0).all() and (outputs.lse[:, 5:] == -INF).all()
    for grad in (outputs.dq, outputs.dk, outputs.dv):
        assert grad.isfinite().all() and (grad[5:] == 0).all()


def test_gradient_of_lse_is_the_probabilities():
    q, k, v = qkv(batch=1, heads=1, kv=1)
    bias = torch.zeros(5, 7, dtype=torch.float64, requires_grad=True)
    attend(q, k, v, bias=bias)[1].sum().backward()
    torch.testing.assert_close(bias.grad, scores(q, k).softmax(-1)[0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype):
    q, k, v = (x.to(dtype) for x in qkv())
    out, lse = attend(q, k, v)
    expected, expected_lse = attend(q.float(), k.float(), v.float())
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert torch.equal(out, expected.to(dtype)) and torch.equal(lse, expected_lse)
    eager, _ = attend(q, k, v, compute_dtype=dtype)
    torch.testing.assert_close(eager, sdpa(q, k, v), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_scores(dtype):
    q, k, v = (x.to(dtype) for x in qkv())
    out, lse = attend(q * 1e4, k, v)
    assert out.isfinite().all() and lse.isfinite().all()
    torch.testing.assert_close(out, sdpa(q * 1e4, k, v))


def test_strides_do_not_matter():
    q, k, v = qkv()
    assert torch.equal(attend(*map(guarded, (q, k, v)))[0], attend(q, k, v)[0])


def test_longest():
    assert reference.longest(cu_seqlens([3, 0, 5])) == 5
    assert reference.longest(cu_seqlens([])) == 0


def test_statistics_dtype():
    assert reference.statistics_dtype(torch.bfloat16) == torch.float32
    assert reference.statistics_dtype(torch.float64) == torch.float64


def test_lse_is_the_natural_logarithm():
    q, k, v = (torch.zeros(1, 1, 1, 2), torch.zeros(1, 5, 1, 2), torch.zeros(1, 5, 1, 2))
    assert float(attend(q, k, v)[1]) == pytest.approx(math.log(5))
