"""The backends "cuda-hopper" and "cuda-hopper-emulated": choice, refusals, what is theirs alone.

The operation's own tests (``tests/ops``) run over the emulated kernels too, and ``tests/emulator``
has the mistakes that they would catch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fastattn
from fastattn import backends
from fastattn.backends.cuda import EMULATED, EMULATED_HOPPER, HOPPER, hopper
from fastattn.errors import BackendError
from fastattn.testing import backend_outputs, check_against_reference, make_inputs

NAME = EMULATED_HOPPER.NAME
needs_emulator = pytest.mark.skipif(
    EMULATED_HOPPER.unavailable_reason() is not None,
    reason=str(EMULATED_HOPPER.unavailable_reason()),
)
CALL = backends.Call("cpu", torch.float16, 64, False, ())
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout_p": 0.1},
    "general": {"dropout_p": 0.1, "softcap": 20.0, "window": (60, 30)},
}


@pytest.fixture
def module() -> Iterator[Any]:
    """The emulator, whose options a test may change."""
    EMULATED.module.reset_counters()
    yield EMULATED.module
    EMULATED.module.set_options()


def test_gpus_that_do_not_run_it():
    assert hopper.capability_reason((9, 0)) is None
    assert hopper.capability_reason((10, 0)) == (
        "the GPU must be an H100 or H200 (compute capability 9.0), got 10.0"
    )
    assert hopper.build_reason([75, 90]) is None
    assert hopper.build_reason([75, 80]) == (
        "the kernels were compiled for sm_75 sm_80, and not for sm_90"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    assert HOPPER.unavailable_reason() is not None
    with pytest.raises(BackendError, match='backend "cuda-hopper" cannot serve this call'):
        backends.select(CALL._replace(device_type="cuda"), HOPPER.NAME)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_it_is_never_chosen_unasked(device_type):
    assert not {HOPPER.NAME, NAME} & {*backends.fused_order(CALL._replace(device_type=device_type))}


@needs_emulator
def test_what_it_refuses(module):
    refused = EMULATED_HOPPER.unsupported_reasons(CALL._replace(head_dim=65))
    assert refused == ["head_dim must be at most 64, got 65"]
    q, k, v = torch.randn(3, 1, 8, 1, 65).half().unbind()
    options = (None,) * 8 + (1.0, 0.0, -1, -1, 0.0)
    with pytest.raises(ValueError, match=r"head_dim must be at most 64; got 65\. Call attention"):
        EMULATED_HOPPER.attention_fwd(torch.empty_like(q), torch.empty(1, 1, 8), q, k, v, *options)
    module.set_options(compute_capability=80)
    assert EMULATED_HOPPER.unavailable_reason() == (
        "the emulator is set to another part, and these kernels are for 9.0"
    )


@needs_emulator
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head_dim", [32, 64])
def test_no_bank_conflicts(module, head_dim, variant):
    options = {"bias_shape": (1, 2, 90, 90)} if variant == "general" else {}
    inputs = make_inputs(
        [90], head_dim=head_dim, dtype=torch.float16, **options, **VARIANTS[variant]
    )
    # The gradient of a bias has a kernel for all architectures; its tests count too.
    check_against_reference(inputs, NAME)
    counts = module.counters()
    assert counts["wgmma"] > 0
    assert counts["ldmatrix_conflicts"] == counts["lds_conflicts"] == counts["sts_conflicts"] == 0


@needs_emulator
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize(
    ("lengths_q", "lengths_k"),
    [([513, 40], [513, 40]), ([30, 1100], [20, 3]), ([5, 70], [600, 0]), ([512], [512])],
)
def test_sequences_of_more_than_one_block(lengths_q, lengths_k, packed):
    """Up to 512 queries and keys take one pass of a block, more take one for each of dk and dq."""
    options: dict[str, Any] = {"packed": True, "tail": 7} if packed else {}
    inputs = make_inputs(
        lengths_q,
        lengths_k,
        num_heads=1,
        head_dim=64,
        dtype=torch.float16,
        dropout_p=0.1,
        **options,
    )
    check_against_reference(inputs, NAME)


@needs_emulator
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_heads_that_share_keys(dtype, causal):
    inputs = make_inputs(
        [150, 64], num_heads=6, num_heads_kv=2, head_dim=64, dtype=dtype, causal=causal
    )
    check_against_reference(inputs, NAME)


@needs_emulator
def test_weights_of_padding_do_not_overflow():
    """A padded key's score is 0, far above the others: its weight would be infinite."""
    inputs = make_inputs([100], [130], num_heads=1, head_dim=64, dtype=torch.float16)
    mask = torch.arange(130)[None] % 130 < 101
    inputs.q.fill_(8.0), inputs.k.fill_(-8.0)
    inputs.options["key_padding_mask"] = mask
    results = backend_outputs(inputs, NAME)
    assert all(bool(x.isfinite().all()) for x in results if x is not None)
    assert not results.dk[:, 101:].any() and not results.dv[:, 101:].any()


@needs_emulator
def test_the_order_of_threads_changes_no_bit(module):
    inputs = make_inputs([200, 33], head_dim=64, dtype=torch.float16, dropout_p=0.2)
    runs = []
    for options in ({"schedule": "in-order"}, {"schedule": "reverse"}, {"seed": 5, "threads": 2}):
        module.set_options(**options)
        runs.append(backend_outputs(inputs, NAME))
    for run in runs[1:]:
        for ours, theirs in zip(run, runs[0], strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@needs_emulator
def test_padding_is_not_multiplied(module):
    """Keys behind the end of a padded sequence cost nothing."""
    q, k, v = torch.randn(3, 1, 512, 1, 64).half().unbind()
    for length in (64, 512):
        mask = torch.arange(512)[None] < length
        module.reset_counters()
        fastattn.attention(q, k, v, key_padding_mask=mask, backend=NAME)
        # 4 tiles of queries, 8 warps, 4 products of 16 for each of q @ k.T and p @ v.
        assert module.counters()["wgmma"] == 4 * 8 * 2 * 4 * length // 64


NO_GPU = HOPPER.unavailable_reason() or next(iter(HOPPER.architecture_reasons()), None)
needs_gpu = pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [8, 32, 40, 64])
@pytest.mark.parametrize("lengths", [[1], [63, 64, 65], [129, 0, 300], [512, 512], [2049]])
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_lengths_on_a_gpu(lengths, head_dim, dtype, packed):
    inputs = make_inputs(
        lengths, head_dim=head_dim, num_heads=4, dtype=dtype, device="cuda", packed=packed
    )
    check_against_reference(inputs, HOPPER.NAME)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "options",
    [
        {"dropout_p": 0.1},
        {"causal": True},
        {"window": (40, 9), "softcap": 5.0},
        {"bias_shape": (1, 4, 200, 200)},
        {"num_heads_kv": 2, "dropout_p": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "guarded", "heads_first"])
def test_options_on_a_gpu(options, layout):
    inputs = make_inputs(
        [200, 77],
        head_dim=64,
        num_heads=4,
        dtype=torch.float16,
        device="cuda",
        layout=layout,
        **options,
    )
    check_against_reference(inputs, HOPPER.NAME)


@pytest.mark.gpu
@needs_gpu
def test_two_runs_on_a_gpu_are_equal_bit_for_bit():
    inputs = make_inputs(
        [512, 300, 1], head_dim=64, num_heads=4, dtype=torch.float16, device="cuda", dropout_p=0.1
    )
    first = backend_outputs(inputs, HOPPER.NAME)
    for _ in range(10):
        again = backend_outputs(inputs, HOPPER.NAME)
        for ours, theirs in zip(again, first, strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
