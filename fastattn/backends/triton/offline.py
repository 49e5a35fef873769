"""Compiles what calls launch, for GPUs that are not there, and reports what came out.

    python -m fastattn.backends.triton.offline sm_90 gfx942        # as it is used for BERT
    python -m fastattn.backends.triton.offline --all sm_90         # every configuration

Calls are made with tensors of the meta device, through the same code that launches on a GPU. That
they pass shows too that nothing on the way reads a tensor, hence that nothing waits for a device.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastattn.backends.triton import attention, config, hidden
from fastattn.backends.triton.launch import Launch, recorded
from fastattn.backends.triton.target import Target

TARGETS = {
    "sm_75": Target("cuda", "sm_75"),
    "sm_80": Target("cuda", "sm_80"),
    "sm_86": Target("cuda", "sm_86"),
    "sm_90": Target("cuda", "sm_90"),
    "sm_100": Target("cuda", "sm_100"),
    "gfx942": Target("hip", "gfx942"),
}
HEAD_DIMS = (64, 128, 256)
HIDDEN_SIZES = (768, 4096)
# Which options a call has. All of them at once need the most registers.
VARIANTS = {
    "plain": (),
    "bert": ("packed", "dropout"),
    "padded": ("key_padding_mask", "dropout"),
    "causal packed": ("causal", "packed"),
    "everything": ("key_padding_mask", "dropout", "window", "bias", "slopes", "softcap"),
}
_KINDS = {config.HALF: torch.bfloat16, config.TF32: torch.float32, config.IEEE: torch.float32}
_PRECISIONS = {config.HALF: "highest", config.TF32: "high", config.IEEE: "highest"}
_BATCH, _SEQLEN, _HEADS = 8, 512, 12

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
    case: str
    target: str
    seconds: float
    shared_memory: int  # bytes
    registers: int
    spilled: int  # bytes of stack that registers are spilled to
    matrix_instructions: tuple[str, ...]


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(dtype: torch.dtype, head_dim: int, options: tuple[str, ...]) -> None:
    """A call of attention and its backward pass."""
    packed = "packed" in options
    rows = (_BATCH * _SEQLEN,) if packed else (_BATCH, _SEQLEN)
    q, k, v, out = (_meta(*rows, _HEADS, head_dim, dtype=dtype) for _ in range(4))
    lse_shape = (_HEADS, *rows) if packed else (_BATCH, _HEADS, _SEQLEN)
    lse = _meta(*lse_shape, dtype=torch.float32)
    cu_seqlens = _meta(_BATCH + 1, dtype=torch.int32) if packed else None
    bias = None
    if "bias" in options:
        bias = _meta(1, _HEADS, _SEQLEN, _SEQLEN, dtype=torch.float32)
    masked = "key_padding_mask" in options
    call = (
        cu_seqlens,
        cu_seqlens,
        _meta(_BATCH, _SEQLEN, dtype=torch.bool) if masked else None,
        bias,
        _meta(1, _HEADS, dtype=torch.float32) if "slopes" in options else None,
        _meta(dtype=torch.int64) if "dropout" in options else None,
        None,
        None,
        head_dim**-0.5,
        20.0 if "softcap" in options else 0.0,
        64 if "window" in options else -1,
        64 if "window" in options else 0 if "causal" in options else -1,
        0.1 if "dropout" in options else 0.0,
    )
    attention.attention_fwd(out, lse, q, k, v, *call)
    dbias = None if bias is None else torch.empty_like(bias)
    grads = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dbias)
    attention.attention_bwd(*grads, torch.empty_like(out), None, q, k, v, out, lse, *call)


def _hidden(dtype: torch.dtype, hidden_size: int) -> None:
    """A call of each operator on hidden states and its backward pass."""
    x, residual, out = (_meta(_BATCH, _SEQLEN, hidden_size, dtype=dtype) for _ in range(3))
    dx, dresidual = torch.empty_like(x), torch.empty_like(residual)
    vectors = [_meta(hidden_size, dtype=torch.float32) for _ in range(6)]
    weight, bias, x_bias, dweight, dbias, dx_bias = vectors
    mean, rstd = (_meta(_BATCH * _SEQLEN, dtype=torch.float32) for _ in range(2))
    seed = _meta(dtype=torch.int64)
    hidden.layer_norm_fwd(out, mean, rstd, x, residual, weight, bias, x_bias, seed, 1e-12, 0.1)
    grads = (dx, dresidual, dweight, dbias, dx_bias)
    hidden.layer_norm_bwd(*grads, out, x, residual, weight, x_bias, mean, rstd, seed, 0.1)
    hidden.gelu_fwd(out, x, bias)
    hidden.gelu_bwd(dx, dbias, out, x, bias)
    hidden.hidden_dropout(out, x, seed, 0.1)


def launches(target: Target, everything: bool) -> Iterator[tuple[str, Launch]]:
    """Yields what calls launch on a target, and the names of the calls."""
    table = config.table_of(target)
    kinds = [x for x in _KINDS if x in table] if everything else [config.HALF]
    variants = VARIANTS if everything else ["bert"]
    head_dims = [x for x in HEAD_DIMS if x <= config.max_head_dim(target)]
    head_dims = head_dims if everything else head_dims[:1]
    hidden_sizes = HIDDEN_SIZES if everything else HIDDEN_SIZES[:1]
    for kind in kinds:
        dtype = _KINDS[kind]
        for variant, head_dim in itertools.product(variants, head_dims):
            call = functools.partial(_attention, dtype, head_dim, VARIANTS[variant])
            for launch in _recorded(target, kind, call):
                yield f"{kind}, head_dim {head_dim}, {variant}", launch
        for hidden_size in hidden_sizes:
            for launch in _recorded(target, kind, functools.partial(_hidden, dtype, hidden_size)):
                yield f"{kind}, hidden_size {hidden_size}", launch


def _recorded(target: Target, kind: str, call: Callable[[], None]) -> list[Launch]:
    """Returns what a call launches with products of a kind."""
    found: list[Launch] = []
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_PRECISIONS[kind])
    try:
        with recorded(target, found.append):
            call()
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def compile_launch(case: str, launch: Launch, target: Target) -> Compiled:
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
        case,
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


def main() -> None:
    """Compiles for the targets named on the command line; prints a JSON object for each kernel."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("targets", nargs="+", choices=TARGETS)
    parser.add_argument("--all", action="store_true", help="every configuration")
    arguments = parser.parse_args()
    for name in arguments.targets:
        for case, launch in launches(TARGETS[name], arguments.all):
            compiled = compile_launch(case, launch, TARGETS[name])
            print(json.dumps(compiled._asdict()), flush=True)


if __name__ == "__main__":
    main()
