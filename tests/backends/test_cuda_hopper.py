"""The backends "cuda-hopper" and "cuda-hopper-emulated": choice, refusals, what is theirs alone.

The operation's own tests (``tests/ops``) run over the emulated kernels too, and ``tests/emulator``
has the mistakes that they would catch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastattn
from fastattn import backends
from fastattn.backends.cuda import EMULATED, EMULATED_HOPPER, HOPPER, hopper
from fastattn.errors import BackendError
from fastattn.testing import (
    Inputs,
    backend_outputs,
    check_against_reference,
    make_inputs,
    pack,
    packed_inputs,
)

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
    refused = EMULATED_HOPPER.unsupported_reasons(CALL._replace(head_dim=129))
    assert refused == ["head_dim must be at most 128, got 129"]
    q, k, v = torch.randn(3, 1, 8, 1, 129).half().unbind()
    options = (None,) * 8 + (1.0, 0.0, -1, -1, 0.0)
    message = r'head_dim must be at most 128; got 129\. Call attention\(\.\.\., backend="triton"\)'
    with pytest.raises(ValueError, match=message):
        EMULATED_HOPPER.attention_fwd(torch.empty_like(q), torch.empty(1, 1, 8), q, k, v, *options)
    module.set_options(compute_capability=80)
    assert EMULATED_HOPPER.unavailable_reason() == (
        "the emulator is set to another part, and these kernels are for 9.0"
    )


@needs_emulator
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("length", [90, 50])
def test_no_bank_conflicts(module, length, head_dim, variant):
    options = {"bias_shape": (1, 2, length, length)} if variant == "general" else {}
    inputs = make_inputs(
        [length], head_dim=head_dim, dtype=torch.float16, **options, **VARIANTS[variant]
    )
    # The gradient of a bias has a kernel for all architectures; its tests count too.
    check_against_reference(inputs, NAME)
    counts = module.counters()
    assert counts["wgmma"] > 0
    assert counts["ldmatrix_conflicts"] == counts["lds_conflicts"] == counts["sts_conflicts"] == 0


@needs_emulator
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize(
    ("lengths_q", "lengths_k"),
    [([513, 40], [513, 40]), ([30, 1100], [20, 3]), ([5, 70], [600, 0]), ([512], [512])],
)
def test_sequences_of_more_than_one_block(lengths_q, lengths_k, packed, head_dim):
    """Up to head_dim 64 a block makes one pass for 512 queries and keys; else dq has its own."""
    options: dict[str, Any] = {"packed": True, "tail": 7} if packed else {}
    inputs = make_inputs(
        lengths_q,
        lengths_k,
        num_heads=1,
        head_dim=head_dim,
        dtype=torch.float16,
        dropout_p=0.1,
        **options,
    )
    check_against_reference(inputs, NAME)


@needs_emulator
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_heads_that_share_keys(dtype, head_dim, causal):
    inputs = make_inputs(
        [150, 64], num_heads=6, num_heads_kv=2, head_dim=head_dim, dtype=dtype, causal=causal
    )
    check_against_reference(inputs, NAME)


@st.composite
def wide_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Calls with a head_dim of 65 to 128, of any kind, as ``calls`` in tests/ops makes them."""
    packed = draw(st.booleans())
    length = st.sampled_from([0, 1, 16, 63, 64, 65, 127, 128, 129, 150])
    long = st.sampled_from([16, 63, 64, 65, 127, 128, 129, 150])
    lengths_q = [draw(long), *draw(st.lists(length, max_size=2))]
    lengths_k = [draw(long), *(draw(length) for _ in lengths_q[1:])]
    num_heads_kv = draw(st.sampled_from([1, 2]))
    num_heads = num_heads_kv * draw(st.sampled_from([1, 2]))
    case: dict[str, Any] = {
        "lengths_q": lengths_q,
        "lengths_k": lengths_k,
        "num_heads": num_heads,
        "num_heads_kv": num_heads_kv,
        "head_dim": draw(st.sampled_from([65, 72, 80, 96, 100, 127, 128])),
        "dtype": draw(st.sampled_from([torch.float16, torch.bfloat16])),
        "packed": packed,
        "layout": draw(st.sampled_from(["contiguous", "guarded"])),
        "with_dlse": draw(st.booleans()),
        "dropout_p": draw(st.sampled_from([0.0, 0.3])),
        "softcap": draw(st.sampled_from([0.0, 5.0])),
        "causal": draw(st.booleans()),
    }
    if packed:
        case["tail"] = draw(st.sampled_from([0, 5]))
    elif draw(st.booleans()):
        case["bias_shape"] = (1, num_heads, max(lengths_q), max(lengths_k))
    if draw(st.booleans()):
        case["alibi_slopes"] = torch.rand(num_heads)
    return case


@needs_emulator
@given(wide_cases())
@settings(max_examples=40)
def test_wide_heads_of_any_kind(case):
    # As in tests/ops: the rounding of out can stand out in a sum that is small.
    atol = 4 * torch.finfo(case["dtype"]).eps if "bias_shape" in case else 0.0
    check_against_reference(make_inputs(**case), NAME, atol=atol)


@needs_emulator
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_order_of_sequences_changes_no_bit(head_dim):
    """Packed sequences are computed costliest first, and each has its place in the results."""
    lengths = [130, 300, 0, 64, 257]
    inputs = make_inputs(lengths, head_dim=head_dim, dtype=torch.float16, packed=True)
    check_against_reference(inputs, NAME)
    order = [3, 1, 4, 2, 0]
    rows = torch.arange(sum(lengths)).split(lengths)
    moved = torch.cat([rows[i] for i in order])
    cu_seqlens = torch.tensor([0, *(lengths[i] for i in order)]).cumsum(0, dtype=torch.int32)
    names = ("q", "k", "v", "dout")
    tensors = {name: getattr(inputs, name).detach()[moved] for name in names}
    options = {**inputs.options, "cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    other = backend_outputs(dataclasses.replace(inputs, **tensors, options=options), NAME)
    first = backend_outputs(inputs, NAME)
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(getattr(other, name), getattr(first, name)[moved])
    assert torch.equal(other.lse, first.lse[:, moved])


@needs_emulator
@pytest.mark.parametrize("head_dim", [64, 128])
def test_weights_of_padding_do_not_overflow(head_dim):
    """A padded key's score is 0, far above the others: its weight would be infinite."""
    inputs = make_inputs([100], [130], num_heads=1, head_dim=head_dim, dtype=torch.float16)
    mask = torch.arange(130)[None] % 130 < 101
    inputs.q.fill_(8.0), inputs.k.fill_(-8.0)
    inputs.options["key_padding_mask"] = mask
    results = backend_outputs(inputs, NAME)
    assert all(bool(x.isfinite().all()) for x in results if x is not None)
    assert not results.dk[:, 101:].any() and not results.dv[:, 101:].any()


@needs_emulator
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("lengths", [[200, 33], [64, 33]], ids=str)
def test_the_order_of_threads_changes_no_bit(module, lengths, head_dim):
    inputs = make_inputs(
        lengths, num_heads=3, head_dim=head_dim, dtype=torch.float16, dropout_p=0.2
    )
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


# ---- two heads in a block, of sequences of up to 64 queries and keys ----


@st.composite
def short_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Calls whose sequences are short, all or some of them, with any options."""
    short = st.sampled_from([0, 1, 2, 15, 16, 17, 33, 48, 63, 64])
    length = draw(st.sampled_from([short, short | st.sampled_from([65, 66, 130])]))
    lengths_q = [draw(st.integers(16, 64)), *draw(st.lists(length, max_size=3))]
    lengths_k = [draw(st.integers(16, 64)), *(draw(length) for _ in lengths_q[1:])]
    packed = draw(st.booleans())
    num_heads = draw(st.integers(1, 5))
    case: dict[str, Any] = {
        "lengths_q": lengths_q,
        "lengths_k": lengths_k,
        "num_heads": num_heads,
        "num_heads_kv": draw(st.sampled_from([num_heads, num_heads, 1])),
        "head_dim": draw(st.sampled_from([8, 20, 32, 40, 64, 64, 128])),
        "dtype": draw(st.sampled_from([torch.float16, torch.bfloat16])),
        "packed": packed,
        "tail": draw(st.sampled_from([0, 5])) if packed else 0,
        "layout": draw(st.sampled_from(["contiguous", "guarded", "heads_first"])),
        "with_dlse": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
        "dropout_p": draw(st.sampled_from([0.0, 0.3])),
        "softcap": draw(st.sampled_from([0.0, 5.0])),
        "causal": draw(st.booleans()),
    }
    if draw(st.booleans()):
        sizes = (len(lengths_q), num_heads)
        shape = [draw(st.sampled_from([1, size])) for size in sizes]
        case["bias_shape"] = (*shape, max(lengths_q), max(lengths_k))
    if draw(st.booleans()):
        case["window"] = draw(st.sampled_from([(3, 5), (20, -1), (-1, 4)]))
    if draw(st.booleans()):
        case["alibi_slopes"] = torch.linspace(0.1, 0.5, num_heads)
    return case


@needs_emulator
@given(short_cases())
@settings(max_examples=80)
def test_short_sequences_of_any_kind(case):
    # As in tests/ops: the rounding of out can stand out in a sum that is small.
    atol = 4 * torch.finfo(case["dtype"]).eps if "bias_shape" in case else 0.0
    check_against_reference(make_inputs(**case), NAME, atol=atol)


@needs_emulator
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("length", range(1, 66))
def test_every_length_up_to_a_warpgroups(length, packed):
    inputs = make_inputs(
        [length, 24],
        [max(65 - length, 8), 24],
        num_heads=3,
        head_dim=64,
        dtype=torch.float16,
        packed=packed,
        dropout_p=0.2,
    )
    check_against_reference(inputs, NAME)


def padded_to(inputs: Inputs, seqlen: int) -> Inputs:
    """The same batch with rows behind the end of each sequence, which nobody attends to or asks."""
    shape = (*inputs.k.shape[:1], seqlen)
    length = inputs.k.shape[1]
    mask = inputs.options.get("key_padding_mask", torch.ones(shape[0], length, dtype=torch.bool))
    options = dict(inputs.options)
    options["key_padding_mask"] = torch.zeros(shape, dtype=torch.bool)
    options["key_padding_mask"][:, :length] = mask
    if (bias := options.get("bias")) is not None:
        options["bias"] = torch.zeros(*bias.shape[:2], seqlen, seqlen)
        options["bias"][..., :length, :length] = bias.detach()
        options["bias"].requires_grad_()
    tensors = {}
    for name in ("q", "k", "v", "dout"):
        rows = getattr(inputs, name).detach()
        tensors[name] = rows.new_zeros(*shape, *rows.shape[2:])
        tensors[name][:, :length] = rows
    dlse = None
    if inputs.dlse is not None:
        dlse = inputs.dlse.new_zeros(*inputs.dlse.shape[:2], seqlen)
        dlse[..., :length] = inputs.dlse
    return dataclasses.replace(inputs, **tensors, dlse=dlse, options=options)


@needs_emulator
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout_p": 0.2},
        {"causal": True, "dropout_p": 0.2},
        {"window": (20, 7)},
        {"softcap": 5.0, "with_dlse": True},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1]), "dropout_p": 0.2},
        {"with_bias": True, "dropout_p": 0.2},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("length", [5, 48, 64])
def test_a_block_of_two_heads_gives_the_bits_of_a_block_of_one(module, length, head_dim, options):
    """A batch of more than 64 rows, of which so many are padding, has a block for each head."""
    options = dict(options)
    if options.pop("with_bias", False):
        options["bias_shape"] = (1, 3, length, length)
    paired = make_inputs(
        [length, length],
        [length, length - 3],
        num_heads=3,
        head_dim=head_dim,
        dtype=torch.bfloat16,
        **options,
    )
    for name in ("k", "v"):  # both batches are to have finite padding
        getattr(paired, name).nan_to_num_(0.0)
    apart = padded_to(paired, 70)
    counts, results = [], []
    for inputs in (paired, apart):
        module.reset_counters()
        results.append(backend_outputs(inputs, NAME))
        counts.append(module.counters()["wgmma"])
    ours, theirs = results
    assert counts[0] < counts[1]
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)[:, :length]), name
    assert torch.equal(ours.lse, theirs.lse[..., :length])
    if ours.dbias is not None and theirs.dbias is not None:
        assert torch.equal(ours.dbias, theirs.dbias[..., :length, :length])


@needs_emulator
def test_packed_and_padded_short_sequences_have_the_same_bits():
    padded = make_inputs(
        [64, 30, 1], num_heads=3, head_dim=64, dtype=torch.float16, dropout_p=0.2, causal=False
    )
    lengths = padded.lengths_q
    for i, length in enumerate(lengths):
        padded.dout[i, length:] = 0.0
    batch, packed = (backend_outputs(x, NAME) for x in (padded, packed_inputs(padded)))
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(pack(getattr(batch, name), lengths), getattr(packed, name)), name


@needs_emulator
def test_no_warpgroup_computes_rows_that_do_not_exist(module):
    """Each head takes one warpgroup; three heads take two blocks of which one is half idle."""
    inputs = make_inputs([64, 64], num_heads=3, head_dim=64, dtype=torch.float16)
    q, k, v = inputs.q, inputs.k, inputs.v
    fastattn.attention(q, k, v, backend=NAME)
    counts = module.counters()
    assert counts["blocks"] == 2 * 2
    # 6 heads of 4 warps, 4 products of 16 for each of q @ k.T and p @ v.
    assert counts["wgmma"] == 6 * 4 * 2 * 4
    forward = counts["wgmma"]
    module.reset_counters()
    backend_outputs(inputs, NAME)
    assert module.counters()["wgmma"] - forward == 6 * 4 * 5 * 4


NO_GPU = HOPPER.unavailable_reason() or next(iter(HOPPER.architecture_reasons()), None)
needs_gpu = pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [8, 32, 40, 64, 65, 96, 128])
@pytest.mark.parametrize(
    "lengths", [[1], [40, 64], [63, 64, 65], [129, 0, 300], [512, 512], [2049]]
)
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("num_heads", [3, 4])
def test_lengths_on_a_gpu(num_heads, lengths, head_dim, dtype, packed):
    inputs = make_inputs(
        lengths, head_dim=head_dim, num_heads=num_heads, dtype=dtype, device="cuda", packed=packed
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
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("layout", ["contiguous", "guarded", "heads_first"])
def test_options_on_a_gpu(options, layout, head_dim):
    inputs = make_inputs(
        [200, 77],
        head_dim=head_dim,
        num_heads=4,
        dtype=torch.float16,
        device="cuda",
        layout=layout,
        **options,
    )
    check_against_reference(inputs, HOPPER.NAME)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_two_runs_on_a_gpu_are_equal_bit_for_bit(packed, head_dim):
    inputs = make_inputs(
        [512, 300, 1],
        head_dim=head_dim,
        num_heads=4,
        dtype=torch.float16,
        device="cuda",
        packed=packed,
        dropout_p=0.1,
    )
    first = backend_outputs(inputs, HOPPER.NAME)
    for _ in range(10):
        again = backend_outputs(inputs, HOPPER.NAME)
        for ours, theirs in zip(again, first, strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
