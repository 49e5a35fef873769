"""The weights of a call, computed from its lse: they sum its values to its output."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastattn
from fastattn.dropout import draw_seed
from fastattn.ops.probabilities import attention_probabilities

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": dict(softmax_scale=0.7),
    "causal": dict(window=(-1, 0)),
    "window": dict(window=(2, 1)),
    "softcap": dict(softcap=3.0),
    "bias": dict(bias=torch.randn(2, 1, 7, 9, generator=torch.Generator().manual_seed(1)).double()),
    "padding": dict(key_padding_mask=torch.arange(9) < torch.tensor([[9], [4]])),
    "no key": dict(key_padding_mask=torch.arange(9) < torch.tensor([[9], [0]])),
}


def make(num_heads_kv: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 7, 4, 8), (2, 9, num_heads_kv, 8), (2, 9, num_heads_kv, 8))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("num_heads_kv", [4, 2, 1])
@pytest.mark.parametrize("name", CASES)
def test_they_sum_the_values_to_the_output(name, num_heads_kv):
    q, k, v = make(num_heads_kv)
    options = {"softmax_scale": 8**-0.5} | CASES[name]
    out, lse = fastattn.attention(q, k, v, return_lse=True, **options)
    p = attention_probabilities(q, k, lse, **options)
    values = v.repeat_interleave(4 // num_heads_kv, dim=2)
    torch.testing.assert_close(torch.einsum("bhij,bjhd->bihd", p, values), out)
    sums = p.sum(-1)
    assert ((sums - 1).abs().lt(1e-12) | sums.eq(0)).all()
    assert sums.eq(0).any() == (name == "no key")


def test_dropout_is_that_of_the_call():
    q, k, v = make()
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    out, lse = fastattn.attention(q, k, v, dropout_p=0.4, generator=generators[0], return_lse=True)
    seed = draw_seed(q.device, generators[1])
    p = attention_probabilities(q, k, lse, softmax_scale=8**-0.5, dropout_p=0.4, seed=seed)
    torch.testing.assert_close(torch.einsum("bhij,bjhd->bihd", p, v), out)


@pytest.mark.parametrize("name", ["plain", "causal", "softcap", "padding", "no key"])
def test_gradients(name):
    """Through q, k and lse they are those of a softmax."""
    q, k, v = make()
    options = {"softmax_scale": 8**-0.5} | CASES[name]
    weights = torch.linspace(-1, 2, 2 * 4 * 7 * 9, dtype=torch.float64).view(2, 4, 7, 9)

    def ours(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        _, lse = fastattn.attention(
            q, k, v.detach(), return_lse=True, backend="reference", **options
        )
        return (attention_probabilities(q, k, lse, **options) * weights).sum()

    assert torch.autograd.gradcheck(ours, (q, k))


def test_padding_keys_may_hold_anything():
    q, k, v = make()
    mask = CASES["padding"]["key_padding_mask"]
    with torch.no_grad():
        k[1, 4:] = float("nan")
        v[1, 4:] = float("nan")
    _, lse = fastattn.attention(q, k, v, key_padding_mask=mask, return_lse=True)
    p = attention_probabilities(q, k, lse, softmax_scale=8**-0.5, key_padding_mask=mask)
    assert p.isfinite().all()
    assert not p[1, :, :, 4:].any()
