"""What must hold exactly: padding, determinism, dropout bits, extreme scores, full writes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastattn
from fastattn import dropout
from fastattn.backends import cpu
from fastattn.testing import (
    Inputs,
    Outputs,
    backend_outputs,
    check_against_reference,
    guards_intact,
    make_inputs,
    pack,
    packed_inputs,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INF = float("inf")
LENGTHS = [40, 1, 0, 17, 64, 33]


def dtype_name(value: Any) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def assert_same_bits(first: Outputs, second: Outputs) -> None:
    for name, x, y in zip(Outputs._fields, first, second, strict=True):
        assert (x is None and y is None) or torch.equal(x, y), name


def right_padded(**options: Any) -> Inputs:
    """A padded batch whose padding rows are NaN in k, v and have no gradient in q."""
    inputs = make_inputs(LENGTHS, num_heads=4, with_dlse=True, **options)
    for sequence, length in enumerate(LENGTHS):
        inputs.dout[sequence, length:] = 0
        inputs.dlse[sequence, :, length:] = 0
    return inputs


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout_p": 0.1},
    "causal dropout": {"causal": True, "dropout_p": 0.4},
    "window": {"window": (9, 4)},
    "bias": {"bias_shape": (len(LENGTHS), 4, 64, 64), "dropout_p": 0.3},
    "broadcast bias": {"bias_shape": (4, 1, 64), "softcap": 3.0},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.0])},
    "grouped heads": {"num_heads_kv": 2, "dropout_p": 0.2},
    "head_dim 40": {"head_dim": 40, "dropout_p": 0.2},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("name", OPTIONS)
def test_padded_equals_packed_bit_for_bit(cpu_kernels, name, dtype):
    padded = right_padded(dtype=dtype, **OPTIONS[name])
    theirs = backend_outputs(packed_inputs(padded), cpu_kernels)
    ours = backend_outputs(padded, cpu_kernels)
    assert_same_bits(
        Outputs(
            out=pack(ours.out, LENGTHS),
            lse=pack(ours.lse.transpose(1, 2), LENGTHS).transpose(0, 1),
            dq=pack(ours.dq, LENGTHS),
            dk=pack(ours.dk, LENGTHS),
            dv=pack(ours.dv, LENGTHS),
            dbias=ours.dbias,
        ),
        theirs,
    )


def test_padding_gets_zero_gradients(backend):
    outputs = backend_outputs(right_padded(dropout_p=0.2), backend)
    for sequence, length in enumerate(LENGTHS):
        for grad in (outputs.dq, outputs.dk, outputs.dv):
            assert (grad[sequence, length:] == 0).all()


def test_a_mask_of_ones_changes_no_bit(backend):
    plain = make_inputs([50, 50], dropout_p=0.2)
    masked = plain.with_options(key_padding_mask=torch.ones(2, 50, dtype=torch.bool))
    assert_same_bits(backend_outputs(plain, backend), backend_outputs(masked, backend))


def test_a_sequence_does_not_depend_on_its_batch(cpu_kernels):
    """The same sequence at the same place, with longer and shorter neighbours."""
    lengths = [48, 20, 3]
    whole = packed_inputs(make_inputs(lengths, dropout_p=0.2))
    alone = replace(
        whole, **{name: getattr(whole, name)[:48] for name in ("q", "k", "v", "dout")}
    ).with_options(
        **{f"cu_seqlens_{x}": torch.tensor([0, 48], dtype=torch.int32) for x in "qk"},
        max_seqlen_q=None,
        max_seqlen_k=None,
    )
    first, second = (backend_outputs(x, cpu_kernels) for x in (whole, alone))
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(getattr(first, name)[:48], getattr(second, name))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_nan_and_infinity_in_padding_never_leak(backend, dtype):
    clean = make_inputs([30, 0, 47], dtype=dtype, with_dlse=True, dropout_p=0.1)
    mask = clean.options["key_padding_mask"]
    for k_fill, v_fill in ((float("nan"), INF), (INF, float("nan")), (-INF, -INF)):
        dirty = replace(
            clean,
            k=clean.k.masked_fill(~mask[:, :, None, None], k_fill),
            v=clean.v.masked_fill(~mask[:, :, None, None], v_fill),
        )
        outputs = backend_outputs(dirty, backend)
        assert all(x.isfinite().all() for x in (outputs.out, *outputs[2:5]))
        assert_same_bits(outputs, backend_outputs(clean, backend))


def test_nan_after_the_last_packed_row_never_leaks(backend):
    inputs = make_inputs([30, 0, 5], packed=True, tail=20, with_dlse=True, bias_shape=(30,))
    inputs.dout[35:] = float("nan")
    inputs.dlse[:, 35:] = float("nan")
    outputs = backend_outputs(inputs, backend)
    assert (outputs.lse[:, 35:] == -INF).all()
    for x in (outputs.out, outputs.dq, outputs.dk, outputs.dv):
        assert (x[35:] == 0).all()
        assert x.isfinite().all()
    assert outputs.dbias.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_nan_around_the_tensors_never_leaks(backend, packed, dtype):
    """Slices of tensors of NaN: a read past a row's end would show."""
    inputs = make_inputs(
        [33, 15], [18, 47], packed=packed, dtype=dtype, layout="guarded", head_dim=20
    )
    check_against_reference(inputs, backend)
    assert all(guards_intact(x) for x in (inputs.q, inputs.k, inputs.v, inputs.dout))


def test_a_row_of_nan_stays_a_row_of_nan(backend):
    """NaN in what is attended to is the caller's; it must not be hidden, nor spread."""
    inputs = make_inputs([20, 20])
    inputs.q[0, 7, 1] = float("nan")
    out = backend_outputs(inputs, backend).out
    assert out[0, 7, 1].isnan().all()
    out[0, 7, 1] = 0
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("how", ["mask", "window", "bias", "no keys"])
def test_rows_without_keys(backend, how, dtype):
    """out = 0, lse = -inf, zero gradients."""
    options: dict[str, Any] = {"dtype": dtype, "with_dlse": True, "dropout_p": 0.1}
    if how == "mask":
        inputs = make_inputs([20, 20], [30, 0], **options)
        empty = (slice(1, 2), slice(None))
    elif how == "window":
        inputs = make_inputs([20, 20], [9, 9], causal=True, **options)
        empty = (slice(None), slice(0, 11))
    elif how == "bias":
        inputs = make_inputs([20, 20], [30, 30], bias_shape=(2, 2, 20, 30), **options)
        inputs.options["bias"].data[1, :, 3:5] = -INF
        empty = (slice(1, 2), slice(3, 5))
    else:
        inputs = make_inputs([20, 20], [0, 0], **options)
        empty = (slice(None), slice(None))
    outputs = backend_outputs(inputs, backend)
    assert (outputs.out[empty] == 0).all() and (outputs.dq[empty] == 0).all()
    assert (outputs.lse.transpose(1, 2)[empty] == -INF).all()
    if how == "mask":
        assert (outputs.dk[1] == 0).all() and (outputs.dv[1] == 0).all()
    if how == "bias":
        assert (outputs.dbias[1, :, 3:5] == 0).all()
    check_against_reference(inputs, backend)


def raw_options(inputs: Inputs, seed: Tensor | None = None) -> tuple[Any, ...]:
    """The options of a call in the order that a backend's functions take."""
    option = inputs.options.get
    bias = option("bias")
    return (
        option("cu_seqlens_q"),
        option("cu_seqlens_k", option("cu_seqlens_q")),
        option("key_padding_mask"),
        None if bias is None else bias.detach(),
        None,
        seed,
        None,
        None,
        inputs.q.shape[-1] ** -0.5,
        0.0,
        -1,
        -1,
        option("dropout_p", 0.0),
    )


def between_guards(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A contiguous tensor full of NaN, and the longer row of NaN that it is a part of."""
    size = torch.Size(shape).numel()
    row = torch.full((size + 128,), float("nan"), dtype=dtype)
    return row[64 : 64 + size].view(shape), row


def assert_only_written_inside(inside: Tensor, row: Tensor) -> None:
    assert not inside.isnan().any()
    assert row[:64].isnan().all() and row[-64:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(
    "case",
    [
        {"lengths_q": [33, 33], "lengths_k": [50, 17]},
        {"lengths_q": [33, 33], "lengths_k": [0, 0]},
        {"lengths_q": [33, 0, 7], "packed": True, "tail": 5},
        {"lengths_q": [0, 0], "packed": True, "tail": 5},
        {"lengths_q": [33, 33], "head_dim": 5, "num_heads": 3, "num_heads_kv": 1},
    ],
    ids=str,
)
def test_results_are_written_in_full_and_nothing_else(cpu_kernels, case, dtype):
    """Outputs start as NaN between guards of NaN."""
    case = {"head_dim": 24, **case}
    inputs = make_inputs(dtype=dtype, bias_shape=(1,), dropout_p=0.1, **case)
    q, k, v = inputs.q, inputs.k, inputs.v
    stats = torch.float64 if dtype == torch.float64 else torch.float32
    packed = inputs.options.get("cu_seqlens_q") is not None
    lse_shape = (q.shape[1], len(q)) if packed else (len(q), q.shape[2], q.shape[1])
    options = raw_options(inputs, seed=torch.tensor(11))
    bias_shape = (1, 1, 1, 1)
    bias = inputs.options["bias"].detach().view(bias_shape)
    options = (*options[:3], bias, *options[4:])

    out, out_row = between_guards(q.shape, dtype)
    lse, lse_row = between_guards(lse_shape, stats)
    cpu.attention_fwd(out, lse, q, k, v, *options)
    assert_only_written_inside(out, out_row)
    assert_only_written_inside(lse, lse_row)

    grads = [between_guards(x.shape, dtype) for x in (q, k, v)]
    grads.append(between_guards(bias_shape, stats))
    cpu.attention_bwd(*(x for x, _ in grads), inputs.dout, None, q, k, v, out, lse, *options)
    for grad, row in grads:
        assert_only_written_inside(grad, row)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9, 1e-9, 0.999999])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(100, 256), (256, 67), (17, 16), (1, 130)])
def test_dropped_weights_are_those_of_the_rule(backend, seqlen_q, seqlen_k, dropout_p, dtype):
    """With equal scores and v = identity, out shows which weights are kept; so does dv."""
    batch, heads = 2, 3
    head_dim = {"cuda-emulated": 128, "cuda-hopper-emulated": 128}.get(backend, 256)  # the widest
    q = torch.zeros(batch, seqlen_q, heads, head_dim, dtype=dtype)
    k = torch.zeros(batch, seqlen_k, heads, head_dim, dtype=dtype)
    seed = dropout.draw_seed(q.device, torch.Generator().manual_seed(4))
    keep = dropout.keep_mask(seed, batch, heads, seqlen_q, seqlen_k, dropout_p)
    weight = keep * dropout.keep_scale(dropout_p) / seqlen_k

    def identity(rows: int, first: int) -> Tensor:
        """Row first + i has its 1 in column i."""
        square = torch.eye(first + head_dim, dtype=dtype)
        padded = torch.zeros(max(rows, len(square)), head_dim, dtype=dtype)
        padded[: len(square)] = square[:, first:]
        return padded[None, :rows, None].expand(batch, -1, heads, -1)

    for first in range(0, max(seqlen_q, seqlen_k), head_dim):
        v, dout = identity(seqlen_k, first).clone().requires_grad_(), identity(seqlen_q, first)
        generator = torch.Generator().manual_seed(4)
        out = fastattn.attention(q, k, v, dropout_p=dropout_p, generator=generator, backend=backend)
        (dv,) = torch.autograd.grad(out, v, dout)
        part = slice(first, first + head_dim)
        found = (
            # (batch, heads, seqlen_q, seqlen_k), as far as this identity shows it
            (out.detach().permute(0, 2, 1, 3), keep[..., part], weight[..., part]),
            (dv.permute(0, 2, 3, 1), keep[:, :, part], weight[:, :, part]),
        )
        for shown, kept, expected in found:
            inside = shown[:, :, : kept.shape[2], : kept.shape[3]]
            assert torch.equal(inside != 0, kept)
            torch.testing.assert_close(inside, expected.to(dtype), rtol=0.01, atol=0)


@pytest.mark.parametrize("packed", [False, True])
def test_all_weights_are_dropped_at_1(backend, packed):
    inputs = make_inputs([20, 0, 33], packed=packed, with_dlse=True)
    expected = backend_outputs(inputs, backend)
    outputs = backend_outputs(inputs.with_options(dropout_p=1.0), backend)
    assert not outputs.out.any() and not outputs.dv.any()
    assert torch.equal(outputs.lse, expected.lse)
    assert outputs.dq.isfinite().all() and outputs.dq.any()  # that of lse
    plain = backend_outputs(make_inputs([20, 0, 33], packed=packed, dropout_p=1.0), backend)
    assert not any(x.any() for x in (plain.dq, plain.dk, plain.dv))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dropped_weights_in_the_gradient_of_the_scores(backend, dtype):
    """dbias shows the mask of the backward pass: with v orthogonal to dout but for kept ones."""
    inputs = make_inputs(
        [70, 33], [50, 81], dtype=dtype, bias_shape=(2, 2, 70, 81), dropout_p=0.6, packed=True
    )
    check_against_reference(inputs, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_backends_drop_the_same_weights(cpu_kernels, dtype):
    inputs = make_inputs([129], [65], dtype=dtype, dropout_p=0.5)
    ours = backend_outputs(inputs, cpu_kernels).out
    theirs = backend_outputs(inputs, "reference").out
    # One weight of difference would be 2 * |v| / 65.
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.004)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_window_wider_than_any_sequence_is_none(backend, side, packed):
    """Added to a row, such numbers would overflow."""
    lengths = {"lengths_q": [40, 3], "lengths_k": [3, 40]}
    for farthest in (2**30, 2**31 - 1, 2**63 - 1, 2**70):
        window = (0 if side == "right" else farthest, 0 if side == "left" else farthest)
        unbounded = tuple(-1 if bound else 0 for bound in window)
        results = [
            backend_outputs(make_inputs(**lengths, packed=packed, window=w), backend)
            for w in (window, unbounded)
        ]
        assert_same_bits(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_two_runs_are_equal_bit_for_bit(backend, dtype):
    inputs = make_inputs(
        [70, 3, 129], dtype=dtype, dropout_p=0.2, bias_shape=(129,), with_dlse=True
    )
    assert_same_bits(backend_outputs(inputs, backend), backend_outputs(inputs, backend))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_the_number_of_threads_changes_no_bit(cpu_kernels, num_threads, packed, dtype):
    inputs = make_inputs(
        [70, 3, 200],
        num_heads=3,
        dtype=dtype,
        dropout_p=0.2,
        bias_shape=(3, 1, 200),
        with_dlse=True,
        packed=packed,
    )
    runs = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        runs.append(backend_outputs(inputs, cpu_kernels))
    assert_same_bits(runs[0], runs[1])
    assert_same_bits(runs[0], runs[2])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_set_num_threads_is_obeyed(cpu_backend):
    """One thread starts none; three start two more, which torch then shares."""
    program = """
        import os
        import torch
        import fastattn

        def run():
            q = torch.randn(4, 256, 4, 32, requires_grad=True)
            fastattn.attention(q, q, q, backend="cpu").backward(torch.ones_like(q))
            return len(os.listdir("/proc/self/task"))

        torch.set_num_threads(1)
        run()
        before = len(os.listdir("/proc/self/task"))
        alone = run()
        torch.set_num_threads(3)
        print(alone - before, run() - before)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.split() == ["0", "2"]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_huge_scores(backend, dtype):
    """Scores of +-10000: the softmax is one weight of 1, exactly."""
    seqlen, head_dim = 50, 64
    hot = torch.randperm(seqlen)
    k = torch.full((1, seqlen, 1, head_dim), -10.0, dtype=dtype)
    k[0, torch.arange(seqlen), 0, torch.arange(seqlen)] = 10.0
    q = torch.zeros(1, seqlen, 1, head_dim, dtype=dtype)
    q[0, torch.arange(seqlen), 0, hot] = 1000.0
    v = torch.randn(1, seqlen, 1, head_dim).to(dtype).requires_grad_()
    out, lse = fastattn.attention(q, k, v, softmax_scale=1.0, return_lse=True, backend=backend)
    assert torch.equal(out, v[:, hot])
    assert (lse == 10000.0).all()
    (dv,) = torch.autograd.grad(out.sum(), v)
    assert (dv == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
def test_huge_random_scores(backend, dtype):
    inputs = make_inputs([40, 70], dtype=dtype, softmax_scale=1e4, with_dlse=True)
    outputs = backend_outputs(inputs, backend)
    assert all(x.isfinite().all() for x in outputs[:5])
    # One weight is 1 in nearly all rows, so out is a row of v.
    distance = torch.cdist(
        outputs.out[1].transpose(0, 1).float(), inputs.v[1].transpose(0, 1).float()
    )
    assert (distance.amin(-1) < 1e-2).float().mean() > 0.9


@pytest.mark.parametrize(
    "bias_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=dtype_name
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=dtype_name)
def test_smallest_number_as_a_mask(backend, dtype, bias_dtype):
    """The additive masks of Transformers hold the smallest number of the dtype, not -inf."""
    inputs = make_inputs([20, 20], [30, 30], dtype=dtype)
    mask = torch.rand(2, 1, 20, 30) < 0.6
    mask[..., 0] = True
    smallest = torch.finfo(bias_dtype).min
    additive = torch.where(mask, 0.0, smallest).to(bias_dtype)
    exact = torch.where(mask, 0.0, -INF)
    first = backend_outputs(inputs.with_options(bias=additive), backend)
    second = backend_outputs(inputs.with_options(bias=exact), backend)
    assert_same_bits(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_row_of_the_smallest_number_is_a_mean(backend, dtype):
    """It is no -inf: a row with nothing else weighs all keys alike, as torch's softmax does."""
    inputs = make_inputs([8], [30], dtype=dtype, bias_shape=(8, 30))
    inputs.options["bias"].data.fill_(torch.finfo(torch.float32).min)
    outputs = backend_outputs(inputs, backend)
    mean = inputs.v.float().mean(dim=1, keepdim=True).expand(1, 8, 2, 32)
    torch.testing.assert_close(outputs.out.float(), mean, rtol=0.01, atol=0.01)
    assert all(x.isfinite().all() for x in outputs)


def test_two_smallest_numbers_added_are_a_mask(backend):
    """Models add masks, and the sum of two overflows to -inf."""
    mask = torch.where(torch.arange(30) < 20, 0.0, torch.finfo(torch.float32).min)
    inputs = make_inputs([20], [30])
    first = backend_outputs(inputs.with_options(bias=mask + mask), backend)
    second = backend_outputs(inputs.with_options(bias=mask), backend)
    assert_same_bits(first, second)
    assert (first.dk[:, 20:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("seqlen_k", [1, 16, 31, 130])
def test_equal_scores_are_a_mean(backend, seqlen_k, dtype):
    inputs = make_inputs([5], [seqlen_k], dtype=dtype)
    out, lse = fastattn.attention(
        torch.zeros_like(inputs.q), inputs.k, inputs.v, return_lse=True, backend=backend
    )
    mean = inputs.v.double().mean(dim=1, keepdim=True).to(dtype).expand_as(out)
    torch.testing.assert_close(out, mean)
    torch.testing.assert_close(lse, torch.full_like(lse, seqlen_k).log())


@pytest.mark.parametrize("shift", [-1e4, -7.5, 300.0])
def test_shift_of_all_scores(backend, shift):
    """A constant bias shifts lse and leaves out alone."""
    inputs = make_inputs([20], [30])
    plain = backend_outputs(inputs, backend)
    shifted = backend_outputs(inputs.with_options(bias=torch.tensor([shift])), backend)
    torch.testing.assert_close(shifted.out, plain.out, rtol=0, atol=2e-3)
    torch.testing.assert_close(shifted.lse, plain.lse + shift, rtol=1e-6, atol=2e-3)


def closeness(inputs: Inputs) -> dict[str, float]:
    """How far results in another order of sums may differ."""
    if inputs.q.dtype == torch.float32:
        return {"rtol": 1e-5, "atol": 1e-6}
    return {"rtol": 2e-3, "atol": 2e-3}


def test_order_of_the_keys_does_not_matter(backend):
    inputs = make_inputs([20], [90])
    order = torch.randperm(90)
    moved = replace(inputs, k=inputs.k[:, order], v=inputs.v[:, order])
    first, second = backend_outputs(inputs, backend), backend_outputs(moved, backend)
    close = closeness(inputs)
    torch.testing.assert_close(first.out, second.out, **close)
    torch.testing.assert_close(first.dk[:, order], second.dk, **close)


def test_grouped_heads_equal_repeated_ones(backend):
    inputs = make_inputs([33], num_heads=6, num_heads_kv=2, dropout_p=0.2)
    repeated = replace(
        inputs,
        k=inputs.k.repeat_interleave(3, dim=2),
        v=inputs.v.repeat_interleave(3, dim=2),
    )
    first, second = backend_outputs(inputs, backend), backend_outputs(repeated, backend)
    assert torch.equal(first.out, second.out) and torch.equal(first.dq, second.dq)
    summed = second.dk.unflatten(2, (2, 3)).sum(3)
    torch.testing.assert_close(first.dk, summed, **closeness(inputs))
