"""What the compilers make of the Triton kernels, for GPUs that are not there.

No register is spilled, shared memory is enough, and products run on the matrix units. By default
for the configuration that BERT trains with; FASTATTN_TEST_ALL_TRITON=1 takes every one, which is
some minutes for each target.
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

# Its own compiler, for NVIDIA and AMD GPUs alike.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
ALL = os.environ.get("FASTATTN_TEST_ALL_TRITON", "0") not in ("", "0")
MAX_SECONDS = 20.0  # for one kernel; far above what a free core needs
SHARED_MEMORY = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}  # KiB of one program
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


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_spills_and_with_matrix_instructions(target, compiler_cache):
    kernels = compiled_for(target, compiler_cache)
    names = {kernel["kernel"] for kernel in kernels}
    assert {"attention_fwd_kernel", "dkdv_kernel", "dq_kernel", "layer_norm_bwd_kernel"} <= names
    faults = []
    for kernel in kernels:
        if kernel["spilled"]:
            faults.append(("spills", kernel))
        if kernel["shared_memory"] > SHARED_MEMORY[target] * 1024:
            faults.append(("shared memory", kernel))
        has_products = not kernel["kernel"].startswith(NO_PRODUCTS)
        by_tensor_cores = target == "gfx942" or not kernel["case"].startswith("ieee")
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


def test_tests_do_not_leave_a_target_set():
    target = pytest.importorskip("fastattn.backends.triton.target")
    assert target._offline is None and torch.get_float32_matmul_precision() == "highest"
