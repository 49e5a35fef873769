"""Peak memory of forward + backward, ours and eager attention's, each in a process of its own.

A process resets the kernel's record of its largest size, runs the passes once, and reads the record
again. What it grew by is all that the passes allocated: out, the gradients, and whatever they need
on the way. Linux only.

    python -m fastattn.bench.memory fastattn 1 12 8192 64 2    prints bytes
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastattn
from fastattn.bench.cases import MemoryCase

# Matrices of scores that eager attention holds at once where it holds most: the weights, their
# gradient and that of the scores. Used to see whether it fits, and in its place where it does not.
_EAGER_MATRICES = 3


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float
) -> Tensor:
    """What Transformers calls "eager": products, softmax in float32, dropout.

    Args:
        q, k, v: (batch, seqlen, num_heads, head_dim).
        mask: (batch, 1, 1, seqlen) bool, True = attend, or None.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))
    weights = torch.nn.functional.dropout(weights.to(q.dtype), dropout_p)
    return torch.matmul(weights, v).transpose(1, 2)


def compare(case: MemoryCase) -> dict[str, Any]:
    """Returns the bytes of both, and our share of eager's.

    Where eager attention would not fit, its bytes are those of its score matrices, and
    "eager_is" says "computed" instead of "measured".
    """
    ours = _measure_in_subprocess("fastattn", case)
    matrices = 4 * _EAGER_MATRICES * case.batch_size * case.num_heads * case.seqlen**2
    fits = matrices * 1.25 < _available_bytes()
    eager = _measure_in_subprocess("eager", case) if fits else matrices
    return {
        "peak_extra_bytes": {"fastattn": ours, "eager": eager},
        "eager_is": "measured" if fits else "computed",
        "share": ours / eager,
    }


def _measure_in_subprocess(name: str, case: MemoryCase) -> int:
    sizes = (case.batch_size, case.num_heads, case.seqlen, case.head_dim, torch.get_num_threads())
    command = [sys.executable, "-m", "fastattn.bench.memory", name, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the measurement of {name} ended with {done.returncode}: {done.stderr}")
    return int(done.stdout)


def measure(
    name: str, batch_size: int, num_heads: int, seqlen: int, head_dim: int, num_threads: int
) -> int:
    """Returns by how many bytes this process grew at most while it ran the passes."""
    torch.set_num_threads(num_threads)
    # A small run first: what the libraries allocate once is not the operation's.
    _run(name, *_inputs(1, 1, 64, head_dim))
    inputs = _inputs(batch_size, num_heads, seqlen, head_dim)
    # What was freed before goes back to the system: used again, it would not count as growth.
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # glibc has it
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = _status_bytes("VmRSS")
    _run(name, *inputs)
    return _status_bytes("VmHWM") - before


def _inputs(batch_size: int, num_heads: int, seqlen: int, head_dim: int) -> list[Tensor]:
    size = (batch_size, seqlen, num_heads, head_dim)
    return [torch.randn(size) for _ in range(4)]


def _run(name: str, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = eager_attention(q, k, v, None, 0.0) if name == "eager" else fastattn.attention(q, k, v)
    return torch.autograd.grad(out, leaves, dout)


def _status_bytes(field: str) -> int:
    return _kibibytes(Path("/proc/self/status"), field)


def _available_bytes() -> int:
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable")


def _kibibytes(file: Path, field: str) -> int:
    """A field of a file of /proc that is given in units of 1024 bytes."""
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{file} has no line {field}")


if __name__ == "__main__":
    print(measure(sys.argv[1], *map(int, sys.argv[2:])))
