"""The kernels for Hopper with one mistake each, every one of which must be caught.

As in test_planted_bugs.py, which does this for the attention kernels of all architectures.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.emulator.test_planted_bugs import (
    BASE,
    DRIVER,
    UNITS,
    WRONG,
    Bug,
    Case,
    make_case,
    outcome,
)

FWD, BWD, DQ = (f"../hopper/attention_{name}.cu" for name in ("fwd", "bwd", "dq"))
TILE, STREAM, WORK = (f"../hopper/{name}.cuh" for name in ("tile", "key_stream", "work"))
HOPPER_UNITS = (FWD, BWD, DQ)
# One instantiation of each kernel, of the ones for these head dims.
HEAD_DIMS = {
    64: "    if (params.head_dim <= 64) return with_head_dim(element, "
    "std::integral_constant<int, 64>{});\n",
    128: "    if (params.head_dim <= kHopperMaxHeadDim) {\n"
    "      return with_head_dim(element, std::integral_constant<int, kHopperMaxHeadDim>{});\n"
    "    }\n",
}
HOPPER_BASE = [
    *BASE,
    (
        TILE,
        "    if (params.head_dim <= 32) return with_head_dim(element, "
        "std::integral_constant<int, 32>{});\n",
        "",
    ),
]


def base_for(head_dim: int) -> list[tuple[str, str, str]]:
    """The changes that leave the kernels for this head_dim."""
    return [*HOPPER_BASE, *((TILE, text, "") for dim, text in HEAD_DIMS.items() if dim != head_dim)]


BUGS = [
    # The ring of stages.
    Bug(
        "ring: no fence between copies and products",
        TILE,
        "    fence_proxy_async();\n    arrive(full(n));\n",
        "    arrive(full(n));\n",
        "fence: wgmma reads",
        FWD,
    ),
    Bug(
        "ring: arrivals without sync_warp",
        TILE,
        "    sync_warp();\n    if (lane_idx() == 0) mbarrier_arrive(barrier);\n",
        "    if (lane_idx() == 0) mbarrier_arrive(barrier);\n",
        "race: |fence: ",
        FWD,
    ),
    Bug(
        "ring: one arrival too few completes a phase",
        TILE,
        "mbarrier_init(smem_ + 8 * i, num_warps)",
        "mbarrier_init(smem_ + 8 * i, num_warps - 1)",
        "race: |fence: |in flight: |deadlock: ",
        FWD,
    ),
    Bug(
        "ring: one arrival too many is waited for",
        TILE,
        "mbarrier_init(smem_ + 8 * i, num_warps)",
        "mbarrier_init(smem_ + 8 * i, num_warps + 1)",
        "deadlock: ",
        BWD,
    ),
    Bug(
        "ring: the wrong parity of a full stage",
        TILE,
        "mbarrier_wait(full(n), n / 2 % 2)",
        "mbarrier_wait(full(n), n % 2)",
        "race: |fence: |in flight: |deadlock: |uninitialised: ",
        FWD,
    ),
    Bug(
        "ring: the wrong parity of an empty stage",
        TILE,
        "n / 2 % 2 ^ 1)",
        "n / 2 % 2)",
        "race: |in flight: |deadlock: ",
        BWD,
    ),
    # Forward.
    Bug(
        "fwd: a stage counts as full before its copies have landed",
        STREAM,
        "      cp_async_wait<1>();\n      ring.filled(n);\n",
        "      ring.filled(n);\n      cp_async_wait<1>();\n",
        "race: |in flight: |fence: ",
        FWD,
    ),
    Bug(
        "fwd: a wait for one group too few",
        STREAM,
        "      cp_async_wait<1>();\n",
        "      cp_async_wait<2>();\n",
        "in flight: |fence: |race: ",
        FWD,
    ),
    Bug(
        "fwd: no wait for the other warps' copies",
        STREAM,
        "      ring.wait_until_full(n);\n",
        "",
        "race: |in flight: |fence: |uninitialised: ",
        FWD,
    ),
    Bug(
        "fwd: a stage is filled while others read it",
        STREAM,
        "    ring.wait_until_empty(n);\n",
        "",
        "race: |in flight: ",
        FWD,
    ),
    Bug(
        "fwd: a stage is released before it is read",
        STREAM,
        "      ring.wait_until_full(n);\n",
        "      ring.wait_until_full(n);\n      ring.emptied(n);\n",
        "race: |in flight: |deadlock: ",
        FWD,
    ),
    Bug(
        "fwd: scores are used before the product has ended",
        FWD,
        "    wgmma_wait<0>(s);\n",
        "",
        f"{WRONG}|race: ",
    ),
    Bug(
        "fwd: no wait for the second product",
        FWD,
        "    wgmma_wait<0>(state.acc);\n",
        "",
        f"wgmma: the warp exits|race: |in flight: |{WRONG}",
    ),
    Bug(
        "fwd: no fence of registers",
        FWD,
        "    wgmma_fence(state.acc, p);\n",
        "",
        "wgmma: there must be a wgmma_fence",
    ),
    # Factors.
    Bug(
        "a factor's groups of rows are too far apart",
        TILE,
        "kStride = 8 * kRowBytes",
        "kStride = 16 * kRowBytes",
        f"{WRONG}|out of bounds: |race: |fence: |uninitialised: |in flight: ",
        FWD,
    ),
    Bug(
        "a transposed factor is taken as it lies",
        TILE,
        "wgmma<T, /*kTransposedA=*/true, /*kTransposedB=*/true>",
        "wgmma<T, /*kTransposedA=*/false, /*kTransposedB=*/true>",
        f"{WRONG}|out of bounds: |race: |uninitialised: ",
        BWD,
    ),
    # Backward.
    Bug(
        "bwd: no fence between ds and the product that reads it",
        BWD,
        "sts(Tile::advance(row, 2 * k + i / 2, 8 * (i % 2)), ds[k][i]);\n    }\n"
        "    fence_proxy_async();\n",
        "sts(Tile::advance(row, 2 * k + i / 2, 8 * (i % 2)), ds[k][i]);\n    }\n",
        "fence: wgmma reads",
    ),
    Bug(
        "bwd: no barrier before the product that reads ds",
        BWD,
        "          named_barrier_sync(barrier, Traits::kThreads);\n",
        "          named_barrier_arrive(barrier, Traits::kThreads);\n",
        "race: |fence: |uninitialised: ",
    ),
    Bug(
        "bwd: the barrier of ds counts one warpgroup",
        BWD,
        "named_barrier_sync(barrier, Traits::kThreads)",
        "named_barrier_sync(barrier, Traits::kThreads / 2)",
        "barrier: |race: |fence: |uninitialised: ",
    ),
    Bug(
        "bwd: keys are overwritten while products read them",
        BWD,
        "      sync_threads();  // nobody reads keys or ds any more\n",
        "",
        "race: |in flight: ",
    ),
    Bug(
        "bwd: keys are copied after the queries that announce them",
        BWD,
        "    begin_head(pass.head, queries.tile);\n  }\n",
        "    begin_head(pass.head, queries.tile);\n    copy_keys<Traits>(smem, "
        "k_rows<Traits, const T>(sequence, params.k, kv_head, head_dim), "
        "k_rows<Traits, const T>(sequence, params.v, kv_head, head_dim), head_dim, keys);\n  }\n",
        "in flight: |race: ",
    ),
    Bug(
        "bwd: dq begins with what lies there",
        BWD,
        "    if (kKeepsDq && pass.with_dq) clear_dq(pass);\n",
        "",
        "uninitialised: lds",
    ),
    Bug(
        "bwd: both warpgroups add to a tile's dq",
        BWD,
        "tile % kNumGroups == group",
        "tile % kNumGroups < kNumGroups",
        "barrier: |race: ",
    ),
    Bug(
        "bwd: a stage is released before dk and dv have read it",
        BWD,
        "    wgmma_wait<0>(results.dv, results.dk);\n",
        "",
        f"race: |in flight: |{WRONG}|wgmma: ",
    ),
    Bug(
        "bwd: statistics of the tile before",
        BWD,
        "Stats::store(stats(fills + 1), thread_idx().x, next_stats)",
        "Stats::store(stats(fills), thread_idx().x, next_stats)",
        f"race: |uninitialised: |{WRONG}",
    ),
    Bug(
        "bwd: padding keeps its weights",
        BWD,
        "if (!live.test(8 * (i % 4 / 2), quad_row()))",
        "if (live.test(8 * (i % 4 / 2), quad_row()))",
        WRONG,
    ),
    Bug(
        "bwd: dropout bits of another score",
        "dropout.cuh",
        "return (bits >> (8 * k + 4 * j + i) & 1) != 0;",
        "return (bits >> (8 * k + 4 * (1 - j) + i) & 1) != 0;",
        WRONG,
        BWD,
    ),
    # Rows of two panels, and dq apart.
    Bug(
        "panels: the second one is multiplied from where the first one lies",
        TILE,
        "Factor<kCols>::descriptor(addr + panel * kPanelBytes)",
        "Factor<kCols>::descriptor(addr + panel * 0)",
        WRONG,
        FWD,
        128,
    ),
    Bug(
        "panels: the second one is copied to where the first one lies",
        "tile.cuh",
        "smem + panel * kRows * Tile::kRowBytes + ",
        "smem + ",
        "race: |in flight: |uninitialised: ",
        BWD,
        128,
    ),
    Bug(
        "panels: results of the first one go out twice",
        "tile.cuh",
        "acc[m][col0 / 8 + n]",
        "acc[m][n]",
        WRONG,
        DQ,
        128,
    ),
    Bug(
        "panels: the second one goes out before the first one has",
        "tile.cuh",
        "    sync_warp();  // the warp has read what lay there\n",
        "",
        "race: ",
        BWD,
        128,
    ),
    Bug(
        "dq: no wait for the last product",
        DQ,
        "    wgmma_wait<0>(dq);\n",
        "",
        f"wgmma: |race: |in flight: |{WRONG}",
        head_dim=128,
    ),
    Bug(
        "dq: both warpgroups take the queries of the first",
        DQ,
        "q.from_row(group_row)",
        "q.from_row(0)",
        WRONG,
        head_dim=128,
    ),
    Bug(
        "dq: dropout as for keys in rows",
        DQ,
        "/*kTransposed=*/false, kBlockN / 16>",
        "/*kTransposed=*/true, kBlockN / 16>",
        WRONG,
        head_dim=128,
    ),
    # Two heads in a block.
    Bug(
        "pair: the keys of the second head go where the first one's are",
        FWD,
        "heads.of(1), smem, ring).copy(keys, 1)",
        "heads.of(1), smem, ring).copy(keys, 0)",
        "race: |in flight: |uninitialised: ",
    ),
    Bug(
        "pair: each warpgroup takes the other's keys",
        STREAM,
        "meet(keys, Tile{stage(group)}, Tile{stage(group) + Tile::kBytes})",
        "meet(keys, Tile{stage(1 - group)}, Tile{stage(1 - group) + Tile::kBytes})",
        f"{WRONG}|uninitialised: ",
        FWD,
    ),
    Bug(
        "pair: a warpgroup takes the other's values",
        STREAM,
        "Tile{stage(group)}, Tile{stage(group) + Tile::kBytes}",
        "Tile{stage(group)}, Tile{stage(0) + Tile::kBytes}",
        WRONG,
        FWD,
    ),
    Bug(
        "pair: no fence between keys and products",
        FWD,
        "    fence_proxy_async();\n    sync_threads();  // all of it has landed, and",
        "    sync_threads();  // all of it has landed, and",
        "fence: wgmma reads",
    ),
    Bug(
        "pair: the second head's queries begin as if they were the first one's",
        WORK,
        "row_of(int /*group*/, int row0) const { return row0; }",
        "row_of(int group, int row0) const { return row0 + group * kGroupRows; }",
        WRONG,
        FWD,
    ),
    Bug(
        "pair: the odd last head has a second warpgroup",
        WORK,
        "return first + group >= end; }",
        "return first + group > end; }",
        "out of bounds: |uninitialised: ",
        FWD,
    ),
    Bug(
        "pair: an odd number of heads has one more",
        WORK,
        "2 * slot + 2 < num_heads ? 2 * slot + 2 : num_heads",
        "2 * slot + 2 < 2 * num_heads ? 2 * slot + 2 : num_heads",
        "out of bounds: |two writers: ",
        BWD,
    ),
    Bug(
        "pair: blocks whose heads others have go on",
        WORK,
        "return first < end; }",
        "return first <= end + 1; }",
        "out of bounds: |two writers: ",
        BWD,
    ),
    Bug(
        "pair: an idle warpgroup leaves before the block's barrier",
        BWD,
        "    if (meet) load_pair(heads, keys);\n    if (heads.is_idle(group)) return;\n",
        "    if (heads.is_idle(group)) return;\n    if (meet) load_pair(heads, keys);\n",
        "uninitialised: |in flight: ",
    ),
    Bug(
        "pair: the barrier of ds counts both warpgroups",
        TILE,
        "named_barrier_sync(1 + group, kGroupThreads)",
        "named_barrier_sync(1 + group, 2 * kGroupThreads)",
        "deadlock: ",
        BWD,
    ),
    Bug(
        "pair: no barrier before the product that reads ds",
        BWD,
        "    store_ds(ds, 0);\n    sync_group(group);\n",
        "    store_ds(ds, 0);\n",
        "race: |fence: |uninitialised: ",
    ),
    Bug(
        "pair: results go out over ds that others read",
        BWD,
        "    sync_group(group);  // nobody reads ds any more, on whose place results go out\n",
        "",
        "race: |in flight: ",
    ),
    Bug(
        "pair: dq of the other's ds",
        BWD,
        "half_of(DsTile{smem + kDs}, group)",
        "half_of(DsTile{smem + kDs}, 1 - group)",
        f"race: |fence: |uninitialised: |{WRONG}",
    ),
    Bug(
        "pair: dq of the other's keys",
        BWD,
        "half_of(KeyTile{smem}, group));",
        "half_of(KeyTile{smem}, 1 - group));",
        f"uninitialised: |{WRONG}",
    ),
    Bug(
        "pair: no fence between copies and products",
        BWD,
        "    cp_async_wait<0>();\n    fence_proxy_async();\n    sync_threads();  // all of it",
        "    cp_async_wait<0>();\n    sync_threads();  // all of it",
        "fence: wgmma reads",
    ),
    Bug(
        "pair: statistics of the first head for both",
        BWD,
        "load_stats(heads.of(group), /*tile=*/0, i)",
        "load_stats(heads.first, /*tile=*/0, i)",
        WRONG,
    ),
    # The item of a block.
    Bug(
        "work: costs are compared before all are there",
        WORK,
        "    if (i == 0) sts(smem, uint2{0, 0x7fffffffu});\n    sync_threads();\n",
        "    if (i == 0) sts(smem, uint2{0, 0x7fffffffu});\n",
        "race: |uninitialised: ",
        FWD,
    ),
    Bug(
        "work: the item is read before it is found",
        WORK,
        "    sync_threads();\n    const uint2 found",
        "    const uint2 found",
        "race: ",
        BWD,
    ),
    Bug(
        "work: a sequence has a tile too many",
        WORK,
        "if (local < own.y)",
        "if (local <= own.y)",
        "race: ",
        FWD,
    ),
    Bug(
        "work: sequences of one cost share their tiles",
        WORK,
        "static_cast<uint32_t>(kMaxRanked - 1 - i)",
        "static_cast<uint32_t>(0 * i)",
        f"race: |{WRONG}",
        BWD,
    ),
]


@pytest.fixture(scope="module")
def cases() -> dict[int, list[Case]]:
    # By head_dim. Shared key heads make passes for dk and dv apart from those for dq; the second
    # case needs one pass, with three blocks of keys, and an odd number of tiles of queries. Packed
    # sequences long enough to be ranked, two of which cost the same. Short sequences, with an odd
    # number of heads, where blocks without a head start and where they do not.
    return {
        64: [
            make_case([150, 0, 33, 350, 140], num_heads=2, num_heads_kv=1, packed=True),
            make_case([70, 300], num_heads=1, num_heads_kv=1, packed=False),
            make_case([64, 0, 40], num_heads=3, num_heads_kv=3, packed=True),
            make_case([50, 64], num_heads=3, num_heads_kv=3, packed=False),
        ],
        128: [
            make_case([200, 0, 197], num_heads=2, num_heads_kv=1, packed=True, head_dim=128),
            make_case([64, 20], num_heads=3, num_heads_kv=3, packed=True, head_dim=128),
        ],
    }


Build = Callable[["Bug | None", int], ctypes.CDLL]


@pytest.fixture(scope="module")
def build(
    changed_sources: Callable[..., Path], compile_library: Callable[..., ctypes.CDLL]
) -> Build:
    """build(bug, head_dim) -> the kernels for it with that bug, or without any."""

    def build(bug: Bug | None, head_dim: int) -> ctypes.CDLL:
        base = base_for(head_dim)
        right = changed_sources(base)
        sources = {unit: (right, right / "cuda" / f"{unit}.cu") for unit in UNITS}
        sources |= {unit: (right, right / "cuda" / unit) for unit in HOPPER_UNITS}
        if bug is not None:
            wrong = changed_sources([*base, (bug.file, bug.old, bug.new)])
            unit = bug.in_unit or bug.file
            sources[unit] = (wrong, wrong / "cuda" / unit)
        name = f"hopper-{head_dim}-" + re.sub(r"\W+", "-", bug.name if bug else "attention")
        driver = (right, DRIVER, "-DFASTATTN_HOPPER")
        return compile_library(name, [driver, *sources.values()])

    return build


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_without_a_bug_there_is_no_finding(
    build: Build, cases: dict[int, list[Case]], head_dim: int
) -> None:
    library = build(None, head_dim)
    for case in cases[head_dim]:
        assert outcome(library, case) is None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(build: Build, cases: dict[int, list[Case]], bug: Bug) -> None:
    library = build(bug, bug.head_dim)
    outcomes = [outcome(library, case) for case in cases[bug.head_dim]]
    assert any(found and re.search(bug.shows, found) for found in outcomes), outcomes


def test_names_are_unique() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)
