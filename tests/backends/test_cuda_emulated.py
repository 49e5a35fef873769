"""The CUDA kernels of attention on the emulator: what accuracy alone would not show.

The operation's own tests run over them in ``tests/ops``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastattn
from fastattn import dropout
from fastattn.backends.cuda import EMULATED
from fastattn.testing import (
    Inputs,
    as_layout,
    backend_outputs,
    check_against_reference,
    cu_seqlens,
    make_inputs,
)

pytestmark = pytest.mark.skipif(
    EMULATED.unavailable_reason() is not None, reason=str(EMULATED.unavailable_reason())
)
HEAD_DIMS = (32, 64, 96, 128)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout_p": 0.1},
    "general": {"dropout_p": 0.1, "softcap": 20.0, "window": (60, 30)},
}


@pytest.fixture
def counters() -> Iterator[Any]:
    """Runs inputs and returns what the emulator counted."""

    def count(inputs: Inputs) -> dict[str, int]:
        EMULATED.module.reset_counters()
        backend_outputs(inputs, EMULATED.NAME)
        return EMULATED.module.counters()

    yield count
    EMULATED.module.set_options()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_no_bank_conflicts(counters, head_dim, variant):
    options = {"bias_shape": (1, 2, 90, 90)} if variant == "general" else {}
    inputs = make_inputs(
        [90], head_dim=head_dim, dtype=torch.float16, **options, **VARIANTS[variant]
    )
    counts = counters(inputs)
    assert counts["mma"] > 0
    assert counts["ldmatrix_conflicts"] == counts["lds_conflicts"] == counts["sts_conflicts"] == 0


def test_padding_is_not_multiplied(counters):
    """Keys behind the end of a padded sequence cost nothing, whatever they hold."""
    short = counters(make_inputs([128], dtype=torch.float16, num_heads=1))
    q, k, v, dout = torch.randn(4, 1, 512, 1, 32).half()
    mask = torch.arange(512)[None] < 128
    k[:, 128:] = v[:, 128:] = float("nan")
    options = {"key_padding_mask": mask}
    inputs = Inputs(q, k, v, dout, None, (512,), (512,), seed=0, options=options)
    assert counters(inputs)["mma"] == 4 * short["mma"]  # four times as many queries


def test_a_window_skips_what_it_does_not_see(counters):
    everything = counters(make_inputs([512], dtype=torch.float16, num_heads=1))
    window = counters(make_inputs([512], dtype=torch.float16, num_heads=1, window=(32, 32)))
    assert window["mma"] < 0.5 * everything["mma"]


def one_hot(rows: int, head_dim: int) -> Tensor:
    """(1, rows, 1, head_dim) float16."""
    return torch.eye(rows, head_dim)[None, :, None].half()


def test_dropout_bits_are_those_of_the_rule():
    """Uniform weights and one-hot v and dout show every bit: in out, and transposed in dv."""
    seqlen, dropout_p, seed = 128, 0.3, 11
    q, k = torch.zeros(2, 1, seqlen, 1, seqlen).half()
    v = one_hot(seqlen, seqlen).requires_grad_()
    out = fastattn.attention(
        q,
        k,
        v,
        dropout_p=dropout_p,
        generator=torch.Generator().manual_seed(seed),
        backend=EMULATED.NAME,
    )
    (dv,) = torch.autograd.grad(out, v, one_hot(seqlen, seqlen))
    drawn = dropout.draw_seed(torch.device("cpu"), torch.Generator().manual_seed(seed))
    keep = dropout.keep_mask(drawn, 1, 1, seqlen, seqlen, dropout_p)[0, 0]
    assert torch.equal(out[0, :, 0] != 0, keep)
    assert torch.equal(dv[0, :, 0] != 0, keep.T)


@pytest.mark.parametrize("count", [31, 32, 33, 1100])
def test_many_packed_sequences(count):
    """Blocks find their sequence 32 candidates at a time."""
    lengths = [i % 4 for i in range(count)]
    inputs = make_inputs(lengths, packed=True, tail=70, num_heads=1, dtype=torch.float16)
    check_against_reference(inputs, EMULATED.NAME)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rows_that_are_not_aligned_give_the_same_bits(head_dim, dropout_p):
    """They are read element by element, by the kernels for everything."""
    inputs = make_inputs([70, 20], head_dim=head_dim, dtype=torch.float16, dropout_p=dropout_p)
    tensors = {name: getattr(inputs, name) for name in ("q", "k", "v", "dout")}
    moved = {name: as_layout(x, "guarded") for name, x in tensors.items()}
    other = Inputs(
        **moved,
        dlse=None,
        lengths_q=inputs.lengths_q,
        lengths_k=inputs.lengths_k,
        seed=inputs.seed,
        options=inputs.options,
    )
    results = (backend_outputs(x, EMULATED.NAME) for x in (inputs, other))
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("head_dim", [1, 7, 13, 33, 72, 100, 127])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_odd_head_dims(head_dim, dtype):
    inputs = make_inputs([65], [80], head_dim=head_dim, dtype=dtype, dropout_p=0.1)
    check_against_reference(inputs, EMULATED.NAME)


@pytest.mark.parametrize("bias_shape", [(2, 4, 1, 1), (1, 1, 1, 150), (1, 4, 70, 150)])
def test_bias_of_grouped_heads(bias_shape):
    """dbias is summed over rows, columns, sequences and heads, and more than one tile."""
    inputs = make_inputs(
        [70, 64],
        [150, 64],
        num_heads=4,
        num_heads_kv=2,
        head_dim=16,
        dtype=torch.float16,
        bias_shape=bias_shape,
    )
    # A bias that is one number for a row has a gradient of 0.
    check_against_reference(inputs, EMULATED.NAME, atol=1e-2 if bias_shape[3] == 1 else 0.0)


def native_call(dtype: torch.dtype, head_dim: int) -> None:
    """Calls the operator past the checks of the function."""
    q, k, v = torch.randn(3, 1, 8, 1, head_dim, dtype=dtype).unbind()
    out, lse = torch.empty_like(q), torch.empty(1, 1, 8)
    options = (None,) * 8 + (1.0, 0.0, -1, -1, 0.0)
    EMULATED.attention_fwd(out, lse, q, k, v, *options)


def test_what_the_kernels_refuse():
    with pytest.raises(ValueError, match="attention: dtype must be float16 or bfloat16 on a GPU"):
        native_call(torch.float32, 32)
    with pytest.raises(ValueError, match="attention: head_dim must be at most 128; got 129"):
        native_call(torch.float16, 129)


def test_an_empty_batch():
    q = torch.empty(0, 2, 32).half()
    lengths = cu_seqlens([])
    out = fastattn.attention(q, q, q, cu_seqlens_q=lengths, max_seqlen_q=0, backend=EMULATED.NAME)
    assert out.shape == q.shape
