"""The compiled micro-kernels: their sums stay in registers, whatever compiler built them.

A micro-kernel holds kMicroRows x kMicroVecs sums (csrc/cpu/gemm.h). If the compiler puts some of
them on the stack, results stay right and half of the speed is gone, so the disassembly is read.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

from fastattn.backends import cpu

OBJDUMP = shutil.which("objdump")
pytestmark = [
    pytest.mark.skipif(cpu.unavailable_reason() is not None, reason="needs the native module"),
    pytest.mark.skipif(OBJDUMP is None, reason="needs objdump, of binutils"),
]

# Instruction set -> its multiply-and-add on whole registers, and the sums of its micro-kernel.
KERNELS = {
    "avx2": (re.compile(r"vfmadd\w+p[sd] .*%ymm"), 12),
    "avx512": (re.compile(r"vfmadd\w+p[sd] .*%zmm"), 24),
    "avx512_bf16": (re.compile(r"vdpbf16ps .*%zmm"), 24),
}
_INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t(\S+) *(.*)$")


class Loop(NamedTuple):
    """An innermost loop, one instruction a line."""

    body: list[str]

    def sums(self, multiply_add: re.Pattern[str]) -> set[str]:
        """The registers that products are added to."""
        return {line.rsplit("%", 1)[1] for line in self.body if multiply_add.search(line)}

    def uses_the_stack(self) -> bool:
        vectors = (line for line in self.body if "%ymm" in line or "%zmm" in line)
        return any("(%rsp" in line or "(%rbp" in line for line in vectors)


@pytest.fixture(scope="module")
def loops() -> list[Loop]:
    """Every innermost loop of the native module without a jump inside."""
    assert OBJDUMP is not None
    text = subprocess.run(
        [OBJDUMP, "-d", "--no-show-raw-insn", cpu._C.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: list[Loop] = []
    straight: dict[int, int] = {}  # address -> place in `lines`, since the last jump
    lines: list[str] = []
    for match in map(_INSTRUCTION.match, text.splitlines()):
        if match is None:
            straight.clear()
            continue
        address, name, operands = int(match[1], 16), match[2], match[3]
        lines.append(f"{name} {operands}")
        straight[address] = len(lines) - 1
        if name.startswith("j"):
            target = re.match(r"[0-9a-f]+", operands)
            if target and int(target[0], 16) in straight:
                found.append(Loop(lines[straight[int(target[0], 16)] :]))
            straight.clear()
    return found


@pytest.mark.parametrize("name", KERNELS)
def test_micro_kernels_keep_their_sums_in_registers(loops: list[Loop], name: str) -> None:
    if name not in cpu._C.cpu_instruction_sets():
        pytest.skip(f"{name} is not compiled in, or this CPU lacks it")
    multiply_add, count = KERNELS[name]
    kernels = [loop for loop in loops if len(loop.sums(multiply_add)) == count]
    assert len(kernels) >= 2  # forward and backward; equal ones may share their code
    assert not any(kernel.uses_the_stack() for kernel in kernels)
    # Nor is there a loop with as many products and fewer sums: one whose sums are in memory.
    for loop in loops:
        products = sum(1 for line in loop.body if multiply_add.search(line))
        if products >= count:
            assert not loop.uses_the_stack(), "\n".join(loop.body)
