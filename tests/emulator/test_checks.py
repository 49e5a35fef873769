"""Each check of the emulator: a kernel that breaks the rule, and what the report says."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNELS = Path(__file__).with_name("kernels.cu")
SCHEDULES = {"random": 0, "in-order": 1, "reverse": 2}
# In the order of emulator::Counters.
COUNTERS = [
    "launches",
    "blocks",
    "mma",
    "wgmma",
    "ldmatrix",
    "ldmatrix_conflicts",
    "lds",
    "lds_conflicts",
    "sts",
    "sts_conflicts",
    "shuffles",
    "sync_threads",
    "named_barriers",
    "sync_warps",
    "mbarrier_arrivals",
    "cp_async",
    "bytes_loaded",
    "bytes_stored",
    "switches",
]


class Kernels:
    """The kernels of kernels.cu, by name."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.run.restype = library.set_options.restype = ctypes.c_char_p
        library.worst_conflict_site.restype = ctypes.c_char_p
        self.input = np.arange(1024, dtype=np.uint32)
        self.output = np.zeros(1024, dtype=np.uint32)

    def set_options(
        self, seed: int = 1, threads: int = 1, schedule: str = "random", capability: int = 80
    ) -> str | None:
        error = self.library.set_options(
            ctypes.c_uint64(seed), threads, SCHEDULES[schedule], capability
        )
        return None if error is None else error.decode()

    def run(
        self, name: str, grid: int = 1, threads: int = 64, smem: int = 4096, registered: bool = True
    ) -> str | None:
        """The finding, or None."""
        finding = self.library.run(
            name.encode(),
            self.input.ctypes.data_as(ctypes.c_void_p),
            self.output.ctypes.data_as(ctypes.c_void_p),
            int(registered),
            grid,
            threads,
            smem,
        )
        return None if finding is None else finding.decode()

    def counters(self) -> dict[str, int]:
        values = (ctypes.c_uint64 * len(COUNTERS))()
        self.library.read_counters(values)
        return dict(zip(COUNTERS, values, strict=True))

    def worst_conflict_site(self) -> str:
        site: bytes = self.library.worst_conflict_site()
        return site.decode()


@pytest.fixture(scope="module")
def library(compile_library: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return compile_library("kernels", [(CSRC, KERNELS)])


@pytest.fixture(scope="module")
def portable(compile_library: Callable[..., ctypes.CDLL]) -> Kernels:
    """The kernels with fibres as on machines that have no assembly here."""
    sources = [(CSRC, KERNELS)]
    return Kernels(compile_library("portable", sources, "-DFASTATTN_EMULATOR_UCONTEXT"))


@pytest.fixture
def kernels(library: ctypes.CDLL) -> Kernels:
    kernels = Kernels(library)
    assert kernels.set_options() is None
    return kernels


def line_of(name: str) -> int | None:
    """The line that a report about a kernel must name, where it does not depend on the schedule."""
    for number, line in enumerate(KERNELS.read_text().splitlines(), start=1):
        if line.endswith(f"// finding: {name}"):
            return number
    return None


FINDINGS = {
    "read_after_write": "race: (lds|sts) .* with no barrier in between",
    "between_lanes": "race: (lds|sts) .* with no sync_warp in between",
    "write_after_read": "race: (lds|sts) .* with no barrier in between",
    "write_after_write": "race: sts writes byte .*, which lane .* of warp . wrote at .* no barrier",
    "ldmatrix_of_unsynced_rows": "race: ldmatrix reads byte .* wrote at .* with no sync_warp",
    "arrival_before_the_store": "race: .* with no barrier in between",
    "uninitialised": "uninitialised: lds reads byte 28 of shared memory",
    "uninitialised_row": "uninitialised: ldmatrix reads byte 144 .*\n.*lane 9",
    "waits_for_too_few": "in flight: lds reads byte .* which the copy begun at kernels.cu:.* fills",
    "barrier_before_wait": "in flight: lds reads|race: lds reads",
    "store_into_a_copy": "in flight: sts writes byte",
    "exit_with_a_copy": "in flight: the thread exits before this copy has ended",
    "shared_past_the_end": "out of bounds: sts of 4 bytes at byte 4096 of 4096 in shared memory",
    "shared_without_base": "out of bounds: sts of 4 bytes at byte -[0-9]+ of 4096",
    "shared_misaligned": "misaligned: sts of 16 bytes at byte .* of shared memory",
    "global_past_the_end": "out of bounds: stg of 4 bytes at byte 4096 of output, which has 4096",
    "global_before_the_start": "out of bounds: ldg of 4 bytes at byte -4 of input, which has 4096",
    "global_misaligned": "misaligned: ldg of 16 bytes",
    "copy_past_the_end": "out of bounds: cp_async_16 of 16 bytes at byte 4096 of input",
    "copy_misaligned": "misaligned: the source of cp_async_16 must be a multiple of 16 bytes",
    "write_to_the_input": "read-only: stg of 4 bytes at byte 0 of input",
    "read_the_output": "ldg reads byte .* of output, which block number 0 writes in this launch",
    "different_instructions": "divergence: the lane is at .* others of its warp are at",
    "different_lines": "divergence: the lane is at sync_warp while others .* are at sync_warp at",
    "a_lane_leaves": "divergence: ",
    "nobody_else_comes": "deadlock: every thread waits\n  warp 0: 32 lanes in named_barrier at",
    "different_counts": "barrier: barrier 1 is for .* threads here, and for",
    "barrier_zero": "barrier: a named barrier must be 1 to 15; got 0",
    "part_of_a_warp": "barrier: the number of threads must be a multiple of 32 .*; got 40",
    "arrives_twice": "barrier: the warp arrives at barrier 1 again before the others have",
}
THREADS = {
    "ldmatrix_of_unsynced_rows": 32,
    "uninitialised_row": 32,
    "waits_for_too_few": 32,
    "copy_past_the_end": 32,
    "shared_past_the_end": 32,
    "different_counts": 96,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", FINDINGS)
def test_a_mistake_is_found_in_any_schedule(kernels: Kernels, name: str, schedule: str) -> None:
    kernels.set_options(schedule=schedule)
    finding = kernels.run(name, threads=THREADS.get(name, 64))
    assert finding is not None
    assert re.search(FINDINGS[name], finding), finding
    if line := line_of(name):
        assert f"kernels.cu:{line}" in finding
    assert re.search(r"at kernels\.cu:\d+, block \(0, 0, 0\), thread \d+ \(warp \d, lane", finding)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "name",
    [
        "read_after_write, synced",
        "between_lanes, synced",
        "write_after_read, synced",
        "write_after_write, synced",
        "arrival_before_the_store, synced",
        "barrier_after_wait",
        "halves_of_a_word",
        "a_warp_leaves",
        "nothing",
    ],
)
def test_no_mistake_no_finding(kernels: Kernels, name: str, seed: int) -> None:
    kernels.set_options(seed=seed)
    assert kernels.run(name) is None


@pytest.mark.parametrize(
    "name", ["ldmatrix_of_unsynced_rows, synced", "ldmatrix_then_store", "waits_for_one"]
)
def test_no_mistake_no_finding_in_one_warp(kernels: Kernels, name: str) -> None:
    assert kernels.run(name, threads=32) is None


def test_copies_bring_their_source_or_zeros(kernels: Kernels) -> None:
    assert kernels.run("waits_for_one", threads=32) is None
    first, second = kernels.output[:32], kernels.output[32:64]
    lanes = np.arange(32)
    np.testing.assert_array_equal(first, 4 * lanes)
    np.testing.assert_array_equal(second, np.where(lanes % 2 == 0, 4 * lanes, 0))


def test_part_without_async_copies_copies_at_once(kernels: Kernels) -> None:
    kernels.set_options(capability=75)
    assert kernels.run("waits_for_too_few", threads=32) is None


@pytest.mark.parametrize("threads", [1, 2])
def test_two_blocks_write_one_word(kernels: Kernels, threads: int) -> None:
    kernels.set_options(threads=threads)
    finding = kernels.run("two_writers", grid=2)
    assert finding is not None
    assert re.search(
        r"two writers: thread \d+ of block number [01] writes byte .* of output", finding
    )


def test_two_threads_write_one_word(kernels: Kernels) -> None:
    finding = kernels.run("two_threads_write")
    assert finding is not None
    assert re.search(r"two writers: thread \d+ of block number 0 writes byte .* of output", finding)


def test_a_block_writes_what_another_reads(kernels: Kernels) -> None:
    finding = kernels.run("write_what_another_block_reads", grid=2)
    assert finding is not None
    assert re.search("which (another block reads|block number 1 writes) in this launch", finding)


def test_blocks_may_write_halves_of_a_word(kernels: Kernels) -> None:
    assert kernels.run("blocks_write_halves_of_a_word", grid=4) is None


def test_memory_that_is_not_registered(kernels: Kernels) -> None:
    finding = kernels.run("two_writers", registered=False)
    assert finding is not None
    assert finding.startswith("out of bounds: stg of 4 bytes, and no buffer is registered")


def test_launches_that_no_gpu_accepts(kernels: Kernels) -> None:
    assert kernels.run("nothing", threads=48) == (
        "launch: a block must have a multiple of 32 threads, at most 1024; got (48, 1, 1)"
    )
    assert kernels.run("nothing", grid=0) == (
        "launch: a grid must have 1 to 2147483647 x 65535 x 65535 blocks; got (0, 1, 1)"
    )


@pytest.mark.parametrize(
    ("capability", "kibibytes"), [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (120, 99)]
)
def test_shared_memory_of_the_part(kernels: Kernels, capability: int, kibibytes: int) -> None:
    kernels.set_options(capability=capability)
    assert kernels.run("nothing", smem=1024 * kibibytes) is None
    finding = kernels.run("nothing", smem=1024 * kibibytes + 1)
    assert finding is not None
    assert finding.startswith("launch: a block's shared memory must be at most")


def test_turing_has_no_bf16_product(kernels: Kernels) -> None:
    assert kernels.run("bf16_product") is None
    kernels.set_options(capability=75)
    finding = kernels.run("bf16_product")
    assert finding is not None
    assert finding.startswith("mma: there is no bfloat16 product before compute capability 8.0")


def test_options_that_do_not_exist(kernels: Kernels) -> None:
    assert kernels.set_options(capability=81) == (
        "set_options: compute_capability must be 75, 80, 86, 87, 89, 90, 100 or 120; got 81"
    )
    assert kernels.set_options(threads=0) == "set_options: threads must be at least 1; got 0"


def test_bank_conflicts_are_counted(kernels: Kernels) -> None:
    # Of 8 rows 64 bytes apart, 4 share their banks: 3 more rounds for each of the 4 matrices.
    assert kernels.run("ldmatrix_conflicts", threads=32) is None
    assert kernels.counters()["ldmatrix"] == 1
    assert kernels.counters()["ldmatrix_conflicts"] == 4 * 3
    # All 32 lanes in one bank.
    assert kernels.run("column_conflicts", threads=32) is None
    assert (kernels.counters()["sts"], kernels.counters()["sts_conflicts"]) == (1, 31)
    assert re.fullmatch(r"kernels\.cu:\d+ 31", kernels.worst_conflict_site())
    # All lanes want the same word.
    assert kernels.run("broadcast", threads=32) is None
    assert (kernels.counters()["lds"], kernels.counters()["lds_conflicts"]) == (1, 0)


def test_counters(kernels: Kernels) -> None:
    assert kernels.run("read_after_write, synced") is None
    counts = kernels.counters()
    assert counts["launches"] == counts["blocks"] == 1
    assert (counts["sts"], counts["lds"]) == (4, 2)  # of two warps
    assert counts["sync_threads"] == 4
    assert counts["bytes_stored"] == 64 * 4


def test_a_race_is_found_from_either_side(kernels: Kernels) -> None:
    """Whichever of two accesses the schedule puts first."""
    findings = set()
    both_places = (
        r"race: .* (has read|wrote) at kernels\.cu:\d+, with no barrier .*\n  at kernels\.cu"
    )
    for schedule in ("in-order", "reverse"):
        for name in ("read_after_write", "write_after_read"):
            kernels.set_options(schedule=schedule)
            finding = kernels.run(name)
            assert finding is not None
            assert re.match(both_places, finding)
            findings.add(re.sub(r" byte.*| of warp.*", "", finding, flags=re.DOTALL))
    assert findings == {"race: lds reads", "race: sts writes"}


def test_a_seed_repeats_its_schedule(kernels: Kernels) -> None:
    def finding(seed: int) -> str | None:
        kernels.set_options(seed=seed)
        return kernels.run("between_lanes")

    assert finding(1) == finding(1)
    assert len({finding(seed) for seed in range(8)}) > 1


def test_portable_fibres(portable: Kernels) -> None:
    for _ in range(2):  # what a finding leaves behind does not disturb the next launch
        finding = portable.run("a_lane_leaves")
        assert finding is not None
        assert finding.startswith("divergence: ")
        portable.output[:] = 0
        assert portable.run("read_after_write, synced") is None
        np.testing.assert_array_equal(portable.output[:64], (np.arange(64) + 32) % 64)
