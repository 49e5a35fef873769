"""Times fastattn.attention beside torch's own attention, forward and backward; compares results.

make bench ARGS="--benchmark-json=FILE" writes the figures with machine and versions to a file.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import fastattn

HEADS = 12
# (batch, seqlen, head_dim): MiniLM and BERT-base on short and on full-length texts.
SHAPES = [(16, 128, 32), (8, 512, 32), (16, 128, 64), (8, 512, 64)]

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    out = fastattn.attention(q, k, v, dropout_p=dropout_p)
    assert isinstance(out, Tensor)
    return out


def sdpa(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*heads_first, dropout_p=dropout_p).transpose(1, 2)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids=["", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("attention", [fused, sdpa])
def test_attention_step(
    benchmark: BenchmarkFixture,
    attention: Attention,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    dropout_p: float,
) -> None:
    batch, seqlen, head_dim = shape
    torch.manual_seed(0)
    size = (batch, seqlen, HEADS, head_dim)
    q, k, v = (torch.randn(size, dtype=dtype, requires_grad=True) for _ in range(3))
    dout = torch.randn(size, dtype=dtype)

    def step() -> tuple[Tensor, ...]:
        out = attention(q, k, v, dropout_p)
        return out, *torch.autograd.grad(out, (q, k, v), dout)

    group = f"{'x'.join(map(str, size))} {dtype}, dropout {dropout_p}, forward and backward"
    benchmark.group = group.replace("torch.", "")
    results = benchmark.pedantic(step, rounds=7, warmup_rounds=2)
    # Five products of seqlen x seqlen x head_dim in the backward pass, two in the forward.
    work = 7 * 2 * batch * HEADS * seqlen * seqlen * head_dim
    benchmark.extra_info["gflops_median"] = work / benchmark.stats.stats.median / 1e9

    if dropout_p == 0.0:
        truth = sdpa(q.double(), k.double(), v.double(), 0.0)
        grads = torch.autograd.grad(truth, (q, k, v), dout.double())
        tolerance = 1e-3 if dtype == torch.float32 else 5e-2
        for result, expected in zip(results, (truth, *grads), strict=True):
            torch.testing.assert_close(
                result.double(), expected.double(), rtol=tolerance, atol=tolerance
            )
