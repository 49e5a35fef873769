"""What nvcc made of the CUDA kernels: it needs no GPU, only the module and cuobjdump."""

from __future__ import annotations

import collections
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fastattn.backends.cuda.gpu import build_info

HOPPER = "90a"  # the architecture of csrc/hopper, beside 90
MAX_INSTANTIATIONS = 36  # of a kernel: what a build compiles for each architecture
STATIC_SHARED_MEMORY = 48 * 1024


def find_cuobjdump() -> str | None:
    """Path of cuobjdump: on PATH, or in the wheel of requirements-cuda.txt."""
    places = [*sys.path, sysconfig.get_path("purelib")]
    wheels = [str(found) for path in places for found in Path(path).glob("nvidia/cu*/bin")]
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join(wheels))


CUOBJDUMP = find_cuobjdump()
pytestmark = [
    pytest.mark.skipif(
        build_info()["skipped"] is not None, reason=f"no CUDA kernels: {build_info()['skipped']}"
    ),
    pytest.mark.skipif(CUOBJDUMP is None, reason="there is no cuobjdump"),
]


HOPPER_KERNELS = tuple(f"hopper_attention_{name}_kernel" for name in ("bwd", "dq", "fwd"))
DISASSEMBLERS = os.pathsep.join(
    [os.environ.get("PATH", ""), *([] if CUOBJDUMP is None else [str(Path(CUOBJDUMP).parent)])]
)


class Compiled(NamedTuple):
    """One kernel for one architecture, such as "80". Bytes, but for the registers."""

    architecture: str
    kernel: str
    registers: int
    stack: int
    shared: int
    symbol: str


def cuobjdump(*options: str) -> str:
    """What cuobjdump says about the native module."""
    spec = importlib.util.find_spec("fastattn._C")
    assert spec is not None and spec.origin is not None and CUOBJDUMP is not None
    command = [CUOBJDUMP, *options, spec.origin]
    environment = {**os.environ, "PATH": DISASSEMBLERS}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    return done.stdout


@pytest.fixture(scope="module")
def disassembly() -> Callable[[str], str]:
    """disassembly(architecture) -> the instructions of its kernels."""
    return lambda architecture: cuobjdump("-arch", f"sm_{architecture}", "-sass")


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    report = cuobjdump("--dump-resource-usage")
    found, architecture = [], ""
    pattern = re.compile(
        r"arch = sm_(\d+a?)|Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    )
    for match in pattern.finditer(report):
        if match[1]:
            architecture = match[1]
            continue
        name = re.search(r"([a-z][a-z_]*_kernel)", match[2])
        assert name is not None, match[2]
        numbers = [int(match[group]) for group in (3, 4, 5, 6)]
        registers, stack, shared, local = numbers
        found.append(Compiled(architecture, name[1], registers, stack + local, shared, match[2]))
    return found


def test_every_architecture_has_every_kernel(compiled):
    kernels = collections.defaultdict(set)
    for one in compiled:
        kernels[one.architecture].add(one.kernel)
    hopper = kernels.pop(HOPPER, set())
    assert hopper == ({*HOPPER_KERNELS} if "90" in kernels else set())
    assert sorted(map(int, kernels)) == build_info()["architectures"]
    assert len({frozenset(names) for names in kernels.values()}) == 1
    assert {"attention_fwd_kernel", "layer_norm_bwd_kernel", "gelu_fwd_kernel"} <= set(
        next(iter(kernels.values()))
    )


def test_no_kernel_uses_local_memory(compiled):
    """Neither for registers that did not fit nor for arrays that were not unrolled."""
    assert [(x.architecture, x.symbol, x.stack) for x in compiled if x.stack] == []


def test_shared_memory_that_is_not_asked_for_at_launch_fits(compiled):
    assert max(x.shared for x in compiled) <= STATIC_SHARED_MEMORY


@pytest.mark.skipif(90 not in build_info()["architectures"], reason="not compiled for sm_90")
@pytest.mark.skipif(shutil.which("nvdisasm", path=DISASSEMBLERS) is None, reason="no nvdisasm")
def test_products_of_warpgroups_run_asynchronously(disassembly):
    """Hopper's own matrix instructions, and a wait for each group of them, not for each of them."""
    # cuobjdump takes sm_90's kernels for sm_90a's too.
    found = re.split(r"\n\s+Function : ", disassembly(HOPPER))[1:]
    kernels = {name: [x for x in found if name in x.split()[0]] for name in HOPPER_KERNELS}
    assert all(kernels.values())
    for text in itertools.chain(*kernels.values()):
        products = len(re.findall(r"\bHGMMA\.", text))
        waits = len(re.findall(r"WARPGROUP\.DEPBAR", text))
        assert products > 2 * waits > 0
        assert re.search(r"\bHMMA\.", text) is None


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_a_build_fails_if_products_would_wait_for_each_other(tmp_path):
    """In a branch that may divide a warpgroup the compiler does so, and only remarks on it."""
    csrc = Path(__file__).resolve().parents[2] / "csrc"
    source = tmp_path / "serialised.cu"
    source.write_text(
        '#include "hopper/tile.cuh"\n'
        "using namespace fastattn::cuda;\n"
        "__global__ void serialised_kernel(float* out) {\n"
        "  float c[8][4];\n"
        "  wgmma_fence(c);\n"
        "  if (threadIdx.x > 7) {\n"
        "    const FactorTile<64, 64> left{smem_base()}, right{smem_base() + 8192u};\n"
        "    issue_by_rows<half_t>(c, left, right);\n"
        "  }\n"
        "  wgmma_commit();\n"
        "  wgmma_wait<0>(c);\n"
        "  out[threadIdx.x] = c[0][1];\n"
        "}\n"
    )
    target = ["-gencode", "arch=compute_90a,code=sm_90a", "-c", str(source)]
    command = ["nvcc", "-std=c++17", "-O3", f"-I{csrc}", *target, "-o", str(tmp_path / "object")]
    script = ["cmake", f"-DCOMMAND={';'.join(command)}", "-P", str(csrc / "hopper/compile.cmake")]
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0
    assert "instructions are serialized" in " ".join(done.stderr.split())


def test_number_of_instantiations(compiled):
    counts = collections.Counter((x.architecture, x.kernel) for x in compiled)
    assert max(counts.values()) <= MAX_INSTANTIATIONS, counts.most_common(3)
