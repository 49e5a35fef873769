"""What nvcc made of the CUDA kernels: it needs no GPU, only the module and cuobjdump."""

from __future__ import annotations

import collections
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

from fastattn.backends.cuda.gpu import build_info

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


class Compiled(NamedTuple):
    """One kernel for one architecture. Bytes, but for the registers."""

    architecture: int
    kernel: str
    registers: int
    stack: int
    shared: int
    symbol: str


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    spec = importlib.util.find_spec("fastattn._C")
    assert spec is not None and spec.origin is not None and CUOBJDUMP is not None
    report = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", spec.origin],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    found, architecture = [], 0
    pattern = re.compile(
        r"arch = sm_(\d+)|Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    )
    for match in pattern.finditer(report):
        if match[1]:
            architecture = int(match[1])
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
    assert sorted(kernels) == build_info()["architectures"]
    assert len({frozenset(names) for names in kernels.values()}) == 1
    assert {"attention_fwd_kernel", "layer_norm_bwd_kernel", "gelu_fwd_kernel"} <= set(
        next(iter(kernels.values()))
    )


def test_no_kernel_uses_local_memory(compiled):
    """Neither for registers that did not fit nor for arrays that were not unrolled."""
    assert [(x.architecture, x.symbol, x.stack) for x in compiled if x.stack] == []


def test_shared_memory_that_is_not_asked_for_at_launch_fits(compiled):
    assert max(x.shared for x in compiled) <= STATIC_SHARED_MEMORY


def test_number_of_instantiations(compiled):
    counts = collections.Counter((x.architecture, x.kernel) for x in compiled)
    assert max(counts.values()) <= MAX_INSTANTIATIONS, counts.most_common(3)
