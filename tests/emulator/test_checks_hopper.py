"""Each check of what only Hopper has: a kernel that breaks the rule, and what the report says."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNELS = Path(__file__).with_name("kernels_hopper.cu")
SCHEDULES = {"random": 0, "in-order": 1, "reverse": 2}


class Kernels:
    """The kernels of kernels_hopper.cu, by name."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.run.restype = ctypes.c_char_p
        rng = np.random.default_rng(0)
        self.factors = rng.standard_normal((2, 64, 64)).astype(np.float16)
        self.output = np.zeros((64, 64), np.float32)

    def run(
        self, name: str, schedule: str = "random", seed: int = 1, capability: int = 90
    ) -> str | None:
        """The finding, or None."""
        finding = self.library.run(
            name.encode(),
            SCHEDULES[schedule],
            ctypes.c_uint64(seed),
            capability,
            self.factors.ctypes.data_as(ctypes.c_void_p),
            self.output.ctypes.data_as(ctypes.c_void_p),
        )
        return None if finding is None else finding.decode()

    def product(self) -> npt.NDArray[np.float64]:
        left, right = self.factors.astype(np.float64)
        result: npt.NDArray[np.float64] = left @ right.T
        return result


@pytest.fixture(scope="module")
def kernels(compile_library: Callable[..., ctypes.CDLL]) -> Kernels:
    return Kernels(compile_library("kernels_hopper", [(CSRC, KERNELS)]))


FINDINGS = {
    "no_fence": "fence: wgmma reads byte .* wrote at .* with no fence_proxy_async by the writer",
    "fence_after_the_barrier": "fence: wgmma reads byte .* before the barrier",
    "fence_before_the_copies": "fence: wgmma reads byte .* with no fence_proxy_async",
    "product_of_nothing": "uninitialised: wgmma reads byte 8192 of shared memory",
    "store_under_a_product": "race: wgmma reads byte .* wrote at kernels_hopper.cu",
    "store_after_ones_own_wait": "race: (sts writes byte .* has read at|wgmma reads byte)",
    "no_wgmma_fence": "wgmma: there must be a wgmma_fence before the first product of a group",
    "exit_with_a_product": "wgmma: the warp exits before this product has ended; wait for it",
    "different_factors": "divergence: the warps of a warpgroup issue products of different",
    "descriptor_without_swizzle": "wgmma: a descriptor must name a swizzle",
    "factor_past_the_end": "out of bounds: wgmma of 16 bytes at byte .* of 16400 in shared memory",
    # It waits for a phase that is over, or for one that never comes.
    "wrong_parity": "(race|uninitialised): (lds|sts)|deadlock: ",
    "arrival_without_sync_warp": "race: lds reads byte .* wrote at .* with no barrier",
    "overwrite_too_early": "race: (lds|sts) |deadlock: ",
    "too_few_arrive": "deadlock: every thread waits\n  warp 0: 32 lanes in mbarrier_wait at",
    "no_barrier_there": "barrier: mbarrier_arrive at byte 16384 .* where no mbarrier_init was",
    "barrier_that_others_do_not_know": "race: mbarrier_|barrier: mbarrier_arrive at byte 16384",
    "barrier_for_nobody": "barrier: an mbarrier must count at least one arrival; got 0",
}


def line_of(name: str) -> int | None:
    """The line that a report about a kernel must name, where it does not depend on the schedule."""
    for number, line in enumerate(KERNELS.read_text().splitlines(), start=1):
        if line.endswith(f"// finding: {name}"):
            return number
    return None


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", FINDINGS)
def test_a_mistake_is_found_in_any_schedule(kernels: Kernels, name: str, schedule: str) -> None:
    finding = kernels.run(name, schedule)
    assert finding is not None
    assert re.search(FINDINGS[name], finding), finding
    if line := line_of(name):
        assert f"kernels_hopper.cu:{line}" in finding


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["product", "product_of_copies"])
def test_products_without_a_mistake(kernels: Kernels, name: str, seed: int) -> None:
    kernels.output[:] = np.nan
    assert kernels.run(name, seed=seed) is None
    np.testing.assert_allclose(kernels.output, kernels.product(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_barriers_without_a_mistake(kernels: Kernels, seed: int) -> None:
    assert kernels.run("hand_over", seed=seed) is None
    np.testing.assert_array_equal(kernels.output.ravel()[96:128], 2)
    assert kernels.run("take_turns", seed=seed) is None
    np.testing.assert_array_equal(kernels.output.ravel()[:128], np.arange(4).repeat(32))


def test_a_result_is_not_there_before_the_wait(kernels: Kernels) -> None:
    assert kernels.run("result_before_the_wait") is None
    assert np.isnan(kernels.output).all()


@pytest.mark.parametrize("capability", [80, 100])
def test_no_other_part_has_products_of_warpgroups(kernels: Kernels, capability: int) -> None:
    finding = kernels.run("product", capability=capability)
    assert finding is not None
    assert finding.startswith("wgmma: only compute capability 9.0 has products of warpgroups")
