"""``fastattn bench memory``: peak memory of forward + backward, and of whole training steps.

On a CPU each measurement has a process of its own, which resets the kernel's record of its largest
size, runs the passes once, and reads the record again. What it grew by is all that the passes
allocated: out, the gradients, and whatever they need on the way. Linux only. On a GPU it is what
torch's allocator held at most beyond what it held before.

    python -m fastattn.bench.memory attention '{"name": "512", ...}' fastattn 2    prints bytes
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastattn
from fastattn.bench.cases import (
    BERT_CASES,
    AttentionCase,
    MemoryCase,
    StepMemoryCase,
    choose,
)

# Matrices of scores that eager attention holds at once where it holds most: the weights, their
# gradient and that of the scores. Used to see whether it fits, and in its place where it does not.
_EAGER_MATRICES = 3
_PEERS = ("sdpa-flash", "sdpa-math", "eager")
_GPU_PEERS = ("sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "eager")

Say = Callable[[str], None]


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


def compare(case: MemoryCase, device: str = "cpu") -> dict[str, Any]:
    """Returns the bytes of each implementation, and our share of eager's.

    Where eager attention would not fit, its bytes are those of its score matrices, and
    "eager_is" says "computed" instead of "measured".
    """
    found = {"fastattn": _measured(case, "fastattn", device)}
    refused: dict[str, str] = {}
    scores = case.batch_size * case.num_heads * case.seqlen**2
    matrices = _EAGER_MATRICES * scores * getattr(torch, _dtype(device)).itemsize
    fits = matrices * 1.25 < available_bytes() or device == "cuda"
    for name in _GPU_PEERS if device == "cuda" else _PEERS:
        if name in ("eager", "sdpa-math") and not fits:
            refused[name] = f"its scores take about {matrices / 2**30:.0f} GiB"
            continue
        try:
            found[name] = _measured(case, name, device)
        except RuntimeError as error:  # out of memory, or not for this device
            refused[name] = " ".join(str(error).split())[-200:]
    eager_is = "measured" if "eager" in found else "computed"
    found.setdefault("eager", matrices)
    return {
        "peak_extra_bytes": found,
        "eager_is": eager_is,
        "share": found["fastattn"] / found["eager"],
        "refused": refused,
    }


def compare_steps(case: StepMemoryCase, device: str = "cpu") -> dict[str, Any]:
    """Returns the bytes that a training step takes beside weights, gradients and AdamW's state."""
    found = {name: _measured(case, name, device) for name in ("fastattn", "stock")}
    return {"peak_extra_bytes": found, "share": found["fastattn"] / found["stock"], "refused": {}}


def _measured(case: MemoryCase | StepMemoryCase, name: str, device: str) -> int:
    if device == "cuda":
        return _measure_on_a_gpu(_prepared(case, name, device))
    fields = json.dumps(dataclasses.asdict(case))
    arguments = [type(case).__name__, fields, name, str(torch.get_num_threads())]
    command = [sys.executable, "-m", "fastattn.bench.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the measurement of {name} ended with {done.returncode}: {done.stderr}")
    return int(done.stdout.split()[-1])


def _prepared(case: MemoryCase | StepMemoryCase, name: str, device: str) -> Callable[[], object]:
    """Returns what is measured, after it ran once on something small: what the libraries allocate
    once is not the operation's.
    """
    if isinstance(case, MemoryCase):
        dtype = _dtype(device)
        sizes = (case.num_heads, case.seqlen, case.head_dim)
        _attention(AttentionCase(case.name, 1, 1, 64, case.head_dim, dtype), name, device)()
        return _attention(AttentionCase(case.name, case.batch_size, *sizes, dtype), name, device)
    return _step(case, name, device)


def _attention(case: AttentionCase, name: str, device: str) -> Callable[[], object]:
    from fastattn.bench import peers
    from fastattn.bench.problem import make_problem

    problem = make_problem(case, device)
    if name == "fastattn":
        implementation = next(iter(peers.serving(problem)[0].values()))
    else:
        implementation = peers.make_peer(name, problem)
    return implementation.passes(problem)["forward_backward"]


def _step(case: StepMemoryCase, name: str, device: str) -> Callable[[], object]:
    """A training step on the batch of a case of ``bench bert``, after one on a short batch."""
    from fastattn.bench import bert

    (bert_case,) = choose(BERT_CASES, [case.bert])
    model = bert.load_model(bert_case).to(device)
    if name == "fastattn":
        fastattn.patch(model)
    runner = bert.Runner(model, bert_case)
    (pair,) = bert.draw_batches(bert_case, 1)
    batch = bert.to_device(pair.ours if name == "fastattn" else pair.stock, device)
    short = {key: value[:2, :8] if value.dim() == 2 else value[:2] for key, value in batch.items()}
    runner.step(short)
    return lambda: runner.step(batch)


def measure(case: MemoryCase | StepMemoryCase, name: str) -> int:
    """Returns by how many bytes this process grows at most while it runs the passes."""
    run = _prepared(case, name, "cpu")
    # What was freed before goes back to the system: used again, it would not count as growth.
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # glibc has it
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = _status_bytes("VmRSS")
    kept = run()
    peak = _status_bytes("VmHWM") - before
    del kept
    return peak


def _measure_on_a_gpu(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def run(
    cases: Sequence[MemoryCase | StepMemoryCase],
    say: Say = lambda line: None,
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """Verifies and measures cases; returns what a result file holds beside the machine."""
    results = []
    for case in cases:
        say(case.name)
        if isinstance(case, StepMemoryCase):
            results.append({**dataclasses.asdict(case), **compare_steps(case, device)})
        else:
            verified = verify(case, device)
            described = dataclasses.asdict(case) | {"dtype": _dtype(device), "verified": verified}
            results.append({**described, **compare(case, device)})
    return {"cases": results}


def verify(case: MemoryCase, device: str = "cpu") -> dict[str, Any]:
    """Verifies one head of a case, as :mod:`fastattn.bench.attention` does."""
    from fastattn.bench import attention, peers
    from fastattn.bench.problem import make_problem, samples

    one_head = AttentionCase(case.name, 1, 1, case.seqlen, case.head_dim, _dtype(device))
    problem = make_problem(one_head, device)
    found = list(samples(problem))
    ours, _ = peers.serving(problem)
    return {name: attention.verify(name, x, problem, found) for name, x in ours.items()}


def _dtype(device: str) -> str:
    return "float32" if device == "cpu" else "float16"


def _status_bytes(field: str) -> int:
    return _kibibytes(Path("/proc/self/status"), field)


def available_bytes() -> int:
    """Returns the memory of this machine that programs can still have."""
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable")


def _kibibytes(file: Path, field: str) -> int:
    """A field of a file of /proc that is given in units of 1024 bytes."""
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{file} has no line {field}")


def _main(kind: str, fields: str, name: str, num_threads: str) -> None:
    torch.set_num_threads(int(num_threads))
    kinds = {x.__name__: x for x in (MemoryCase, StepMemoryCase)}
    print(measure(kinds[kind](**json.loads(fields)), name))


if __name__ == "__main__":
    _main(*sys.argv[1:])
