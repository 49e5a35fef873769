"""The CUDA kernels on a GPU: truth, dropout bits, determinism, streams, graphs, no waiting.

Not run yet (2026-11-24): no GPU was at hand. The same kernels run in the emulator everywhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastattn
from fastattn import dropout
from fastattn.backends.cuda import CUDA
from fastattn.ops.dropout import dropout as hidden_dropout
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.testing import Inputs, backend_outputs, check_against_reference, make_inputs

NO_GPU = CUDA.unavailable_reason() or next(iter(CUDA.architecture_reasons()), None)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU)),
]

HALF, BFLOAT = torch.float16, torch.bfloat16
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout_p": 0.1},
    "causal": {"causal": True},
    "window, softcap": {"window": (40, 9), "softcap": 5.0},
    "bias": {"bias_shape": (1, 4, 200, 200)},
    "grouped heads, dropout": {"num_heads_kv": 2, "dropout_p": 0.2},
}


def serve(dtype: torch.dtype) -> None:
    if dtype == BFLOAT and CUDA.capability() < CUDA.MIN_BFLOAT16:
        pytest.skip("the GPU has no products of bfloat16")


def inputs_of(
    lengths: list[int], head_dim: int = 64, dtype: torch.dtype = HALF, **options: Any
) -> Inputs:
    serve(dtype)
    return make_inputs(
        lengths, head_dim=head_dim, num_heads=4, dtype=dtype, device="cuda", **options
    )


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("head_dim", [8, 32, 40, 64, 80, 96, 128])
@pytest.mark.parametrize("lengths", [[1], [63, 64, 65], [129, 0, 300], [512, 512], [2049]])
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_lengths(lengths, head_dim, dtype, packed):
    check_against_reference(inputs_of(lengths, head_dim, dtype, packed=packed), "cuda")


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("layout", ["contiguous", "guarded", "heads_first"])
def test_options(name, head_dim, dtype, layout):
    inputs = inputs_of([200, 77], head_dim, dtype, layout=layout, **OPTIONS[name])
    check_against_reference(inputs, "cuda")


@pytest.mark.parametrize("shape", [(1, 4, 90, 90), (2, 1, 90, 90), (90, 90), (2, 4, 1, 90)])
def test_gradient_of_a_bias(shape):
    check_against_reference(inputs_of([90, 90], bias_shape=shape, with_dlse=True), "cuda")


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_dropout_bits_are_those_of_the_rule(packed):
    """With v = 1 in one place each, out shows which weights were dropped."""
    rows, heads, dropout_p = 128, 3, 0.3
    q, k = (torch.randn(2, rows, heads, rows, device="cuda", dtype=HALF) for _ in range(2))
    v = torch.eye(rows, device="cuda", dtype=HALF)[:, None].expand(2, rows, heads, rows)
    options: dict[str, Any] = {}
    if packed:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        cu_seqlens = torch.tensor([0, rows, 2 * rows], dtype=torch.int32, device="cuda")
        options = {"cu_seqlens_q": cu_seqlens, "max_seqlen_q": rows}
    seeds = torch.Generator("cuda").manual_seed(2)
    seed = dropout.draw_seed(torch.device("cuda"), torch.Generator("cuda").manual_seed(2))
    out = fastattn.attention(
        q, k, v, dropout_p=dropout_p, generator=seeds, backend="cuda", **options
    )
    assert isinstance(out, Tensor)
    # The rule is evaluated on a CPU, so this compares the two devices.
    kept = dropout.keep_mask(seed.cpu(), 2, heads, rows, rows, dropout_p)
    found = (out != 0).view(2, rows, heads, rows).permute(0, 2, 1, 3).cpu()
    assert torch.equal(found, kept)


def test_two_runs_are_equal_bit_for_bit():
    inputs = inputs_of([512, 300, 1], dropout_p=0.1, bias_shape=(1, 4, 512, 512))
    first = backend_outputs(inputs, "cuda")
    for _ in range(3):
        again = backend_outputs(inputs, "cuda")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def step(inputs: Inputs) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    out = fastattn.attention(*leaves, backend="cuda", **inputs.options)
    assert isinstance(out, Tensor)
    return out.detach(), *torch.autograd.grad(out, leaves, inputs.dout)


def test_nothing_waits_for_the_device():
    inputs = inputs_of([100, 40], packed=True, dropout_p=0.1)
    inputs.options["max_seqlen_q"] = 100
    step(inputs)
    with waiting_is_an_error():
        step(inputs)


def test_runs_on_the_current_stream():
    inputs = inputs_of([256, 256])
    expected = step(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = step(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_replays_from_a_cuda_graph():
    inputs = inputs_of([128, 128], packed=True)
    inputs.options["max_seqlen_q"] = 128
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(inputs)  # what is done once must not be captured
    torch.cuda.current_stream().wait_stream(stream)
    expected = step(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(inputs)
    for x in results:
        x.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_runs_on_the_device_of_its_tensors():
    inputs = make_inputs([70], head_dim=64, dtype=HALF, device="cuda:1")
    check_against_reference(inputs, "cuda")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("dtypes", [(HALF, HALF), (BFLOAT, torch.float32), (torch.float32,) * 2])
@pytest.mark.parametrize("shape", [(1, 33), (700, 384), (300, 768), (50, 1024), (20, 4100)])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_layer_norm_equals_the_reference(shape, dtypes, dropout_p):
    x, residual = (torch.randn(shape, device="cuda").to(dtype) for dtype in dtypes)
    vectors = [torch.randn(shape[-1], device="cuda") for _ in range(3)]
    results = []
    for backend in ("cuda", "reference"):
        leaves = [t.detach().requires_grad_() for t in (x, residual, *vectors)]
        seeds = torch.Generator("cuda").manual_seed(3)
        out = dropout_add_layer_norm(
            *leaves[:4], 1e-5, dropout_p, seeds, leaves[4], backend=backend
        )
        dout = torch.linspace(-1, 1, out.numel(), device="cuda").view(out.shape).to(out.dtype)
        results.append([out, *torch.autograd.grad(out, leaves, dout)])
    for ours, theirs in zip(*results, strict=True):
        eps = torch.finfo(ours.dtype).eps
        scale = theirs.abs().max().item()
        assert (ours - theirs).abs().max().item() <= max(8 * eps, 1e-4) * max(scale, 1.0)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (37, 301), (1000, 3072)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gelu_equals_the_reference(shape, dtype, with_bias):
    x, dout = (torch.randn(shape, device="cuda").to(dtype) for _ in range(2))
    bias = [torch.randn(shape[-1], device="cuda")] if with_bias else []
    results = []
    for backend in ("cuda", "reference"):
        leaves = [t.detach().requires_grad_() for t in (x, *bias)]
        out = bias_gelu(*leaves, backend=backend)
        results.append([out, *torch.autograd.grad(out, leaves, dout)])
    for ours, theirs in zip(*results, strict=True):
        eps = torch.finfo(ours.dtype).eps
        scale = theirs.abs().max().item()
        assert (ours - theirs).abs().max().item() <= max(4 * eps, 1e-5) * max(scale, 1.0)


def test_hidden_dropout_drops_what_a_cpu_drops():
    x = torch.ones(100, 700, device="cuda")
    out = hidden_dropout(x, 0.3, torch.Generator("cuda").manual_seed(5), backend="cuda")
    seed = dropout.draw_seed(torch.device("cuda"), torch.Generator("cuda").manual_seed(5))
    assert torch.equal((out != 0).cpu(), dropout.hidden_keep_mask(seed.cpu(), 100, 700, 0.3))


def test_hidden_states_do_not_wait():
    x = torch.randn(64, 768, device="cuda", dtype=HALF, requires_grad=True)
    vectors = [torch.randn(768, device="cuda", requires_grad=True) for _ in range(2)]

    def run() -> None:
        out = dropout_add_layer_norm(x, x, *vectors, 1e-5, 0.1, backend="cuda")
        bias_gelu(out, vectors[1], backend="cuda").sum().backward()

    run()
    with waiting_is_an_error():
        run()
