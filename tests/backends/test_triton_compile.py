"""What the compilers make of the Triton kernels, for GPUs that are not there.

No register of a kernel of 16-bit elements is spilled, shared memory is enough, and products run on
the matrix units. Float32 kernels may spill a little, as ``config.py`` says. By default for the
configuration that BERT trains with; FASTATTN_TEST_ALL_TRITON=1 takes every one, which is some
minutes for each target.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from fastattn.backends import triton as backend
from fastattn.backends.triton import config

# Its own compiler, for NVIDIA and AMD GPUs alike.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
ALL = os.environ.get("FASTATTN_TEST_ALL_TRITON", "0") not in ("", "0")
TARGETS = ("sm_75", "sm_80", "sm_90", "sm_100", "gfx942", *(["sm_86"] if ALL else []))
MAX_SECONDS = 20.0  # for one kernel; far above what a free core needs
# Bytes of a thread, of float32 kernels; and of one that keeps whole rows of 256 there.
MAX_SPILLED_FLOAT32 = 24
MAX_SPILLED = {("dkdv_kernel", "ieee, head_dim 256"): 32}
# What has no product, or whose products are float32 without tensor cores.
NO_PRODUCTS = ("delta", "key_ends", "layer_norm", "gelu", "hidden")


@pytest.fixture(scope="module")
def compiler_cache(request: pytest.FixtureRequest) -> str:
    """Compiled kernels stay with pytest's own cache, so a second run takes no time."""
    assert request.config.cache is not None
    return str(request.config.cache.mkdir("triton"))


def compiled_for(target: str, cache: str) -> list[dict[str, Any]]:
    """Compiles in a process of its own, in which Triton does not interpret."""
    command = [sys.executable, "-m", "fastattn.backends.triton.offline", target]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
    result = subprocess.run(
        [*command, "--all"] if ALL else command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600 if ALL else 300,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def may_spill(kernel: dict[str, Any]) -> int:
    if kernel["case"].startswith("half") or kernel["target"] == "gfx942":
        return 0
    case = kernel["case"].rpartition(",")[0]
    return MAX_SPILLED.get((kernel["kernel"], case), MAX_SPILLED_FLOAT32)


def lacks_linker(target: str) -> bool:
    """Whether a target's code cannot be linked: Triton 3.4 wants AMD's own linker in the system."""
    return target.startswith("gfx") and (backend._installed_version() or "").startswith("3.4.")


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_spills_and_with_matrix_instructions(target, compiler_cache):
    if lacks_linker(target):
        pytest.skip("Triton 3.4 has no linker for AMD GPUs")
    kernels = compiled_for(target, compiler_cache)
    names = {kernel["kernel"] for kernel in kernels}
    assert {"attention_fwd_kernel", "dkdv_kernel", "dq_kernel", "layer_norm_bwd_kernel"} <= names
    faults = []
    for kernel in kernels:
        if kernel["spilled"] > may_spill(kernel):
            faults.append(("spills", kernel))
        if kernel["shared_memory"] > config.SHARED_MEMORY_KIB[target] * 1024:
            faults.append(("shared memory", kernel))
        has_products = not kernel["kernel"].startswith(NO_PRODUCTS)
        by_tensor_cores = target == "gfx942" or not (
            kernel["case"].startswith("ieee") or target == "sm_75"
        )
        if has_products and by_tensor_cores and not kernel["matrix_instructions"]:
            faults.append(("matrix instructions", kernel))
        if kernel["seconds"] > MAX_SECONDS:
            faults.append(("time", kernel))
    assert not faults, "\n".join(f"{what}: {kernel}" for what, kernel in faults)


def test_the_hopper_kernels_use_its_own_instructions(compiler_cache):
    """wgmma, which older GPUs lack, and not the products of their time."""
    kernels = compiled_for("sm_90", compiler_cache)
    products = [
        kernel
        for kernel in kernels
        if kernel["case"].startswith("half, head_dim 64") and kernel["matrix_instructions"]
    ]
    assert products
    assert {tuple(k["matrix_instructions"]) for k in products} == {("wgmma.mma_async",)}


def test_processes_share_one_cache(tmp_path):
    """As ranks of a training do: they compile at once, and the next process compiles nothing."""
    command = [sys.executable, "-m", "fastattn.backends.triton.offline", "sm_80"]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def compiled(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return [{**json.loads(line), "seconds": 0} for line in output.splitlines()]

    ranks = [start(), start()]
    first, second = map(compiled, ranks)
    assert first == second and first
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert compiled(start()) == first
    assert written == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()
    }


# A batch of padded texts, as pairs of numbers that change between two steps of a training.
LAUNCHES = """
import functools, json, torch
from fastattn.backends.triton import offline
from fastattn.backends.triton.launch import recorded

def launches(batch, seqlen, options):
    offline._BATCH, offline._SEQLEN = batch, seqlen
    call = functools.partial(offline._attention, torch.bfloat16, 64, options)
    hidden = functools.partial(offline._hidden, torch.bfloat16, 768)
    target = offline.TARGETS["sm_90"]
    return [x for made in (call, hidden) for x in offline._recorded(target, "half", made)]

for options in (("packed", "dropout"), ("key_padding_mask", "dropout"), ("causal",)):
    first = launches(16, 512, options)
    second = launches(7, 117, options)
    for one, other in zip(first, second, strict=True):
        assert one.kernel is other.kernel
        kinds = [offline._specialization(x) for x in (one, other)]
        if kinds[0] != kinds[1] or one[3:] != other[3:]:
            print(one.kernel.__name__, options)
for options in (("bias",), ("key_padding_mask",)):
    for launch in launches(70_000, 1, options) + launches(1, 2**20, options):
        if any(size > 65535 for size in launch.grid[1:]):
            print(launch.kernel.__name__, launch.grid)
"""


def test_batches_of_any_size_need_no_other_kernel():
    """No step waits for a compiler because its batch differs; no grid is beyond a GPU's limits.

    Calls are made with tensors that have no contents, so nothing on the way reads one.
    """
    result = subprocess.run(
        [sys.executable, "-c", LAUNCHES],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_tests_do_not_leave_a_target_set():
    target = pytest.importorskip("fastattn.backends.triton.target")
    assert target._offline is None and torch.get_float32_matmul_precision() == "highest"
