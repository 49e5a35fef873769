"""Compiles what calls would launch on GPUs that are not there, and reports what came out.

with recorded(Target("cuda", "sm_90"), launches.append):
    fastattn.ops.attention.attention_op(q, k, v, options, seed, "triton")  # meta tensors
print(compile_launch(launches[0], Target("cuda", "sm_90")))
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastattn.backends.triton.launch import Launch
from fastattn.backends.triton.target import Target

# Bytes of shared memory that one program may use.
SHARED_MEMORY = {
    "sm_75": 64 * 1024,
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
_MATRIX_INSTRUCTIONS = {
    "ptx": r"\b(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)",
    "amdgcn": r"\bv_s?mfma_\w+",
}
_DIVISIBLE = [["tt.divisibility", 16]]


class Compiled(NamedTuple):
    """What a compiler made of a launch."""

    kernel: str
    target: str
    seconds: float
    shared_memory: int  # bytes
    registers: int
    spilled: int  # bytes of stack that registers are spilled to
    matrix_instructions: tuple[str, ...]


def compile_launch(launch: Launch, target: Target) -> Compiled:
    """Compiles the kernel of a recorded launch for a target."""
    arch: Any = target.name
    if target.kind == "cuda":
        arch = int(target.name.removeprefix("sm_"))
    signature, constants, attributes = _specialization(launch)
    started = time.perf_counter()
    compiled = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget(target.kind, arch, 64 if target.kind == "hip" else 32),
        options={
            "num_warps": launch.num_warps,
            "num_stages": launch.num_stages,
            "enable_fp_fusion": True,
        },
    )
    seconds = time.perf_counter() - started
    kind = "ptx" if target.kind == "cuda" else "amdgcn"
    found = re.findall(_MATRIX_INSTRUCTIONS[kind], compiled.asm[kind])
    registers, spilled = _resources(compiled, target)
    return Compiled(
        launch.kernel.__name__,
        target.name,
        seconds,
        compiled.metadata.shared,
        registers,
        spilled,
        tuple(sorted(set(found))),
    )


def _specialization(launch: Launch) -> tuple[dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """Returns the types, constants and alignments that Triton would find in a launch."""
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}

    def add(path: tuple[int, ...], value: Any, specialize: bool) -> Any:
        if isinstance(value, tuple):
            fields = [add((*path, i), x, True) for i, x in enumerate(value)]
            return type(value)(*fields)
        if isinstance(value, Tensor):
            attributes[path] = _DIVISIBLE  # torch's allocations are
            return "*" + _TYPES[value.dtype]
        if isinstance(value, float):
            return "fp32"
        if value is None or isinstance(value, (bool, str)) or (specialize and value == 1):
            constants[path] = value
            return "constexpr"
        if specialize and value % 16 == 0:
            attributes[path] = _DIVISIBLE
        return "i32" if value < 2**31 else "i64"

    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            constants[(index,)] = value
            signature[parameter.name] = "constexpr"
        else:
            specialize = not parameter.do_not_specialize
            signature[parameter.name] = add((index,), value, specialize)
    return signature, constants, attributes


def _resources(compiled: Any, target: Target) -> tuple[int, int]:
    """Returns the registers of a thread and the bytes that are spilled."""
    if target.kind == "hip":
        text = compiled.asm["amdgcn"]
        numbers = [
            int(x)
            for name in ("vgpr_count", "private_segment_fixed_size")
            for x in re.findall(rf"\.{name}:\s*(\d+)", text)[:1]
        ]
        return numbers[0], numbers[1]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [_cuobjdump(), "--dump-resource-usage", str(cubin)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    fields = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return int(fields["REG"]), int(fields["STACK"]) + int(fields["LOCAL"])


def _cuobjdump() -> str:
    """Returns the path of the tool that comes with triton."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
