"""Tests of the tests: attention kernels with one mistake each, every one of which must be caught.

A mistake is a replacement of text in a copy of the sources; it must apply exactly once, so that it
cannot go stale unseen. It is caught by a check of the emulator, or because a result is further from
the float64 reference than the project's tolerance allows.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastattn import dropout, testing
from tests.emulator.memory import apart

DRIVER = Path(__file__).with_name("attention_driver.cpp")
UNITS = ("attention_fwd", "attention_bwd", "attention_dkdv", "attention_dq", "attention_dbias")

# A mistake in a header is compiled into one kernel. Were the header's functions not inlined, the
# linker would keep one copy of each, perhaps that of another kernel, which has no mistake.
INLINE = (
    "../emulator/device.h",
    "#define __forceinline__ inline\n",
    "#define __forceinline__ inline __attribute__((always_inline))\n",
)
# Compiles one instantiation of each kernel instead of 24.
_HEAD_DIM = "  if (head_dim <= {0}) return function(std::integral_constant<int, {0}>{{}});\n"
_VARIANT = "    function(Traits<T, kHeadDim, Variant::{}>{{}});\n"
ONE_INSTANTIATION = [
    ("attention_traits.cuh", old, new)
    for old, new in [
        ("  if (dtype == ElementType::kBFloat16) return function(bf16_t{});\n", ""),
        (_HEAD_DIM.format(32), ""),
        (_HEAD_DIM.format(96), ""),
        (_HEAD_DIM.format("kMaxHeadDim"), ""),
        (_VARIANT.format("kGeneral"), '    throw std::invalid_argument("not compiled");\n'),
        (_VARIANT.format("kPlain"), _VARIANT.format("kDropout")),
    ]
]


@dataclass(frozen=True)
class Bug:
    """One mistake, in one file, and how it shows: a pattern of the report, or WRONG."""

    name: str
    file: str
    old: str
    new: str
    shows: str
    in_unit: str = ""  # what is compiled with the mistake; default: the file
    head_dim: int = 64  # of the case that shows it, where kernels differ

    @property
    def unit(self) -> str:
        return self.in_unit or self.file.removesuffix(".cu")


WRONG = "wrong result"
STAGE_WAIT = (
    "    cp_async_wait<0>();\n    sync_threads();  // this stage has landed, and nobody reads the "
    "other one any more\n"
)
NO_BARRIER, NO_WAIT = "    cp_async_wait<0>();\n", "    sync_threads();\n"
FWD, DKDV, DQ = "attention_fwd", "attention_dkdv", "attention_dq"

BASE = [INLINE, *ONE_INSTANTIATION]

BUGS = [
    # Barriers and waits.
    Bug(
        "fwd: no barrier for a stage",
        f"{FWD}.cu",
        STAGE_WAIT,
        "    cp_async_wait<0>();\n",
        "race: ",
    ),
    Bug(
        "fwd: no wait for a stage", f"{FWD}.cu", STAGE_WAIT, "    sync_threads();\n", "in flight: "
    ),
    Bug(
        "fwd: a wait for one group too few",
        f"{FWD}.cu",
        STAGE_WAIT,
        "    cp_async_wait<1>();\n    sync_threads();\n",
        "in flight: ",
    ),
    Bug(
        "fwd: the barrier before the wait",
        f"{FWD}.cu",
        STAGE_WAIT,
        "    sync_threads();\n    cp_async_wait<0>();\n",
        "in flight: |race: ",
    ),
    Bug(
        "fwd: no barrier before queries are read",
        f"{FWD}.cu",
        "  cp_async_wait<0>();\n  sync_threads();\n",
        "  cp_async_wait<0>();\n",
        "in flight: |race: ",
    ),
    Bug(
        "fwd: results overwrite keys that others read",
        f"{FWD}.cu",
        "  sync_threads();  // nobody reads a stage any more\n",
        "",
        "race: sts writes",
    ),
    Bug(
        "dkdv: no barrier for a stage",
        f"{DKDV}.cu",
        STAGE_WAIT,
        "    cp_async_wait<0>();\n",
        "race: ",
    ),
    Bug(
        "dkdv: no wait for a stage",
        f"{DKDV}.cu",
        STAGE_WAIT,
        "    sync_threads();\n",
        "in flight: ",
    ),
    Bug(
        "dkdv: results overwrite queries that others read",
        f"{DKDV}.cu",
        "  sync_threads();  // nobody reads a stage any more\n",
        "",
        "race: sts writes",
    ),
    Bug(
        "dq: no barrier for a stage", f"{DQ}.cu", STAGE_WAIT, "    cp_async_wait<0>();\n", "race: "
    ),
    Bug("dq: no wait for a stage", f"{DQ}.cu", STAGE_WAIT, NO_WAIT, "in flight: "),
    Bug(
        "rows leave before the warp has written them",
        "tile.cuh",
        "    sync_warp();\n    FASTATTN_UNROLL\n    for (int i = 0; i < 16 * kRowTiles * Tile::",
        "    FASTATTN_UNROLL\n    for (int i = 0; i < 16 * kRowTiles * Tile::",
        "race: .* sync_warp",
        FWD,
    ),
    Bug(
        "dv overwrites dk before the warp has stored it",
        "tile.cuh",
        "  sync_warp();  // the warp has read what lay there\n",
        "",
        "race: .* sync_warp",
        DKDV,
    ),
    # Stages.
    Bug(
        "fwd: the other stage is multiplied",
        f"{FWD}.cu",
        "F::attend(state, smem + stage * F::kStageBytes",
        "F::attend(state, smem + (stage ^ 1) * F::kStageBytes",
        "in flight: ldmatrix",
    ),
    Bug(
        "fwd: the next keys go where the present ones are",
        f"{FWD}.cu",
        "copy_keys<Traits>(smem + (stage ^ 1) * F::kStageBytes",
        "copy_keys<Traits>(smem + stage * F::kStageBytes",
        "in flight: ldmatrix|race: ",
    ),
    Bug(
        "dkdv: the next statistics go where the present ones are",
        f"{DKDV}.cu",
        "G::store_stats(smem, stage ^ 1, next_stats)",
        "G::store_stats(smem, stage, next_stats)",
        "race: |uninitialised: ",
    ),
    Bug(
        "dkdv: no statistics for the first block",
        f"{DKDV}.cu",
        "  G::store_stats(smem, 0, G::load_stats(params, sequence, block));\n",
        "",
        "uninitialised: lds",
    ),
    Bug(
        "fwd: half a stage of shared memory too little",
        f"{FWD}.cu",
        "kSmemBytes = 2 * kStageBytes;",
        "kSmemBytes = kStageBytes + kTileBytes;",
        "out of bounds: .* in shared memory",
    ),
    # Rows and columns.
    Bug(
        "no zeros where there is no row",
        "tile.cuh",
        "        cp_async_16(dst + step * Tile::kRowBytes, row + col, live);\n",
        "        if (live) cp_async_16(dst + step * Tile::kRowBytes, row + col, true);\n",
        "uninitialised: ldmatrix",
        FWD,
    ),
    Bug(
        "fwd: one query past the end",
        f"{FWD}.cu",
        "return place.row0 + step + i < sequence.seqlen_q && keys.exists();",
        "return place.row0 + step + i <= sequence.seqlen_q && keys.exists();",
        "out of bounds: cp_async_16",
    ),
    Bug(
        "one key past the end",
        "seqlen.cuh",
        "count <= 0 ? 0u : (1u << count) - 1",
        "count <= 0 ? 0u : (2u << count) - 1",
        f"out of bounds: .* of [kv],|{WRONG}",
        FWD,
    ),
    Bug(
        "one row past the end is stored",
        "tile.cuh",
        "if (row0 + row >= row_end || col >= head_dim) continue;",
        "if (row0 + row > row_end || col >= head_dim) continue;",
        "two writers: |out of bounds: stg",
        FWD,
    ),
    Bug(
        "padding keeps its scores",
        "mask.cuh",
        "  if (live.all()) return;\n",
        "  if (live.any()) return;\n",
        WRONG,
        FWD,
    ),
    Bug(
        "wrong rows of the left factor",
        "tile.cuh",
        "row_ = smem + SmemTile<kHeadDim>::offset(row0 + lane_idx() % 16, lane_idx() / 16);",
        "row_ = smem + SmemTile<kHeadDim>::offset(row0 + lane_idx() % 16, lane_idx() / 8 % 2);",
        WRONG,
        FWD,
    ),
    Bug(
        "the right factor is not transposed",
        "tile.cuh",
        "ldmatrix_x4_trans(",
        "ldmatrix_x4(",
        WRONG,
        FWD,
    ),
    Bug(
        "results are stored with another swizzle than they are read with",
        "tile.cuh",
        "sts(Tile::advance(fragment, n, ",
        "sts(Tile::advance(fragment, n ^ 1, ",
        WRONG,
        FWD,
    ),
    Bug(
        "no swizzle",
        "tile.cuh",
        "row * kRowBytes + (chunk ^ permutation) * 16",
        "row * kRowBytes + (chunk ^ permutation * 0) * 16",
        "bank conflicts: ",
        FWD,
    ),
    Bug(
        "dq: the wrong head of keys",
        f"{DQ}.cu",
        "const int kv_head = head / static_cast<int>(params.num_heads / params.num_heads_kv);",
        "const int kv_head = head % static_cast<int>(params.num_heads_kv);",
        WRONG,
    ),
    # Arithmetic.
    Bug(
        "fwd: what was summed is not rescaled",
        f"{FWD}.cu",
        "state.acc[m][n][i] *= rescale[i / 2];",
        "state.acc[m][n][i] *= rescale[0] > 2.0f ? 0.0f : 1.0f;",
        WRONG,
    ),
    Bug(
        "the sum of a row is not rescaled",
        "online_softmax.cuh",
        "row_sum[half] = row_sum[half] * rescale[half] + sum;",
        "row_sum[half] = row_sum[half] + sum;",
        WRONG,
        FWD,
    ),
    Bug(
        "the maximum of half a quad",
        "online_softmax.cuh",
        "      tile_max = fmaxf(tile_max, shfl_xor(tile_max, 2));\n",
        "",
        WRONG,
        FWD,
    ),
    Bug(
        "delta of half a row",
        "attention_bwd.cu",
        "for (int mask = 1; mask < kRowThreads; mask *= 2)",
        "for (int mask = 1; mask < kRowThreads / 2; mask *= 2)",
        WRONG,
    ),
    Bug(
        "dkdv: delta of the wrong row",
        "score_grad.cuh",
        "(row + 8 * n + quad_col()) *",
        "(row + quad_col()) *",
        WRONG,
        DKDV,
    ),
    Bug(
        "dkdv: delta and lse of the wrong row of the head",
        "score_grad.cuh",
        "ldg(sequence.row_stats(params.delta, head) + row * params.delta.row_stride)",
        "ldg(sequence.row_stats(params.delta, 0) + row * params.delta.row_stride)",
        WRONG,
        DKDV,
    ),
    # Dropout: forward and backward must drop the same.
    Bug(
        "fwd: the same bits for every tile of keys",
        f"{FWD}.cu",
        "dropout.drop(s[m][2 * k], s[m][2 * k + 1], tile_row, keys.col0 + 16 * k);",
        "dropout.drop(s[m][2 * k], s[m][2 * k + 1], tile_row, keys.col0);",
        WRONG,
    ),
    Bug(
        "dkdv: lanes swap the wrong halves of their bits",
        "dropout.cuh",
        "const uint32_t query = 2 * (lane % 4) + odd;",
        "const uint32_t query = 2 * (lane % 4) + !odd;",
        WRONG,
        DKDV,
    ),
    Bug(
        "dq: dropout is forgotten",
        "score_grad.cuh",
        "const bool drops = Traits::kMayDrop && dropout.is_on();",
        "const bool drops = Traits::kMayDrop && !dropout.is_on();",
        WRONG,
        DQ,
    ),
    Bug(
        "fwd: what is kept is not scaled",
        f"{FWD}.cu",
        "scale[m][half] *= kept;",
        "scale[m][half] *= kept > 2.0f ? kept : 1.0f;",
        WRONG,
    ),
]


class Call(ctypes.Structure):
    """Call of attention_driver.cpp."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("dout", ctypes.c_void_p),
        ("dq", ctypes.c_void_p),
        ("dk", ctypes.c_void_p),
        ("dv", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        ("cu_seqlens_q", ctypes.c_void_p),
        ("cu_seqlens_k", ctypes.c_void_p),
        ("key_padding_mask", ctypes.c_void_p),
        ("seed", ctypes.c_void_p),
        ("batch_size", ctypes.c_int64),
        ("seqlen_q", ctypes.c_int64),
        ("seqlen_k", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_heads_kv", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("num_sequences", ctypes.c_int64),
        ("drop_threshold", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Case:
    """A call, and what it must give."""

    inputs: testing.Inputs
    eager: testing.Outputs
    truth: testing.Outputs


def make_case(
    lengths: list[int], *, num_heads: int, num_heads_kv: int, packed: bool, head_dim: int = 64
) -> Case:
    inputs = testing.make_inputs(
        lengths,
        num_heads=num_heads,
        num_heads_kv=num_heads_kv,
        head_dim=head_dim,
        dtype=torch.float16,
        packed=packed,
        dropout_p=0.1,
    )
    return Case(inputs, testing.eager_outputs(inputs), testing.reference_outputs(inputs))


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    # Odd and even numbers of blocks, of keys and of queries by heads: each stage is the last once.
    return [
        make_case([150, 0, 33], num_heads=3, num_heads_kv=1, packed=True),
        make_case([70, 128], num_heads=4, num_heads_kv=2, packed=False),
    ]


def run(library: ctypes.CDLL, case: Case) -> testing.Outputs | str:
    """The results of the kernels in a case, or what the emulator found."""
    inputs = case.inputs
    packed = "cu_seqlens_q" in inputs.options
    q, k = inputs.q, inputs.k
    tensors = {"q": q, "k": k, "v": inputs.v, "dout": inputs.dout}
    results = {"out": q, "dq": q, "dk": k, "dv": inputs.v}
    for name, like in results.items():
        tensors[name] = torch.full_like(like, float("nan"))
    for name in ("lse", "delta"):
        tensors[name] = torch.full(case.truth.lse.shape, float("nan"))
    tensors["seed"] = dropout.draw_seed(q.device, inputs.generator())
    for name in ("cu_seqlens_q", "key_padding_mask"):
        if name in inputs.options:
            tensors[name] = inputs.options[name]
    tensors = {name: apart(x) for name, x in tensors.items()}
    if packed:
        tensors["cu_seqlens_k"] = tensors["cu_seqlens_q"]
    call = Call(
        **{name: x.data_ptr() for name, x in tensors.items()},
        batch_size=1 if packed else len(q),
        seqlen_q=q.shape[-3],
        seqlen_k=k.shape[-3],
        num_heads=q.shape[-2],
        num_heads_kv=k.shape[-2],
        head_dim=q.shape[-1],
        num_sequences=len(inputs.lengths_q),
        drop_threshold=dropout.drop_threshold(inputs.options["dropout_p"]),
    )
    library.attention.restype = ctypes.c_char_p
    finding = library.attention(ctypes.byref(call))
    if finding is not None:
        return str(finding.decode())
    names = ("out", "lse", "dq", "dk", "dv")
    return testing.Outputs(**{name: tensors[name] for name in names}, dbias=None)


def outcome(library: ctypes.CDLL, case: Case) -> str | None:
    """What is wrong with the kernels in a case, or None."""
    ours = run(library, case)
    if isinstance(ours, str):
        return ours
    try:
        testing.assert_outputs_as_accurate_as(ours, case.eager, case.truth)
    except AssertionError as error:
        return f"{WRONG}: {error}"
    return None


Build = Callable[["Bug | None"], ctypes.CDLL]


@pytest.fixture(scope="module")
def build(
    changed_sources: Callable[..., Path], compile_library: Callable[..., ctypes.CDLL]
) -> Build:
    """build(bug) -> the kernels with that bug, or without any."""

    def build(bug: Bug | None) -> ctypes.CDLL:
        right = changed_sources(BASE)
        sources = {unit: (right, right / "cuda" / f"{unit}.cu") for unit in UNITS}
        if bug is not None:
            wrong = changed_sources([*BASE, (bug.file, bug.old, bug.new)])
            sources[bug.unit] = (wrong, wrong / "cuda" / f"{bug.unit}.cu")
        name = re.sub(r"\W+", "-", bug.name if bug else "attention")
        return compile_library(name, [(right, DRIVER), *sources.values()])

    return build


def test_without_a_bug_there_is_no_finding(build: Build, cases: list[Case]) -> None:
    library = build(None)
    for case in cases:
        assert outcome(library, case) is None


def test_results_depend_on_no_schedule_and_no_part(build: Build, cases: list[Case]) -> None:
    """The same bits in whatever order threads run, and where copies are not asynchronous."""
    library = build(None)
    expected = run(library, cases[0])
    assert not isinstance(expected, str)
    random, in_order, reverse = range(3)
    try:
        for seed, threads, schedule, capability in [
            (2, 2, random, 80),
            (3, 1, random, 90),
            (1, 1, in_order, 80),
            (1, 2, reverse, 80),
            (1, 1, random, 75),
        ]:
            library.set_options(ctypes.c_uint64(seed), threads, schedule, capability)
            results = run(library, cases[0])
            assert not isinstance(results, str), results
            for ours, theirs in zip(results[:-1], expected[:-1], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    finally:
        library.set_options(ctypes.c_uint64(1), 1, random, 80)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(build: Build, cases: list[Case], bug: Bug) -> None:
    library = build(bug)
    outcomes = [outcome(library, case) for case in cases]
    assert any(found and re.search(bug.shows, found) for found in outcomes), outcomes


def test_names_are_unique() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)
