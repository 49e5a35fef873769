"""Fills the two tables that only a GPU can fill; both are steps of `make gpu`.

    python bench/gpu_tables.py tiles [--all]        sizes of Triton's tiles, into
                                                    fastattn/backends/triton/measured.json
    python bench/gpu_tables.py order RESULT.json    which GPU backend goes first, into
                                                    fastattn/backends/cuda/order.json

A row that was there for the same GPU architecture and shape is replaced; other rows stay. Commit
what came out. `tiles` takes about three minutes on a machine with 16 cores: candidates are compiled
by several processes at once, into Triton's cache, and then timed in turn.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

import fastattn
from fastattn.backends.cuda import order
from fastattn.backends.triton import config, target
from fastattn.bench.timing import ByEvents, by_clock, interleave

TOKENS, WIDTH = 1 << 17, 768  # of a batch; num_heads * head_dim
SEQLENS = (128, 512)  # one of each class of config.SEQLENS
HEAD_DIMS = (64, 128)
KERNELS = ("fwd", "dkdv", "dq")
ROUNDS = 15


class Workload(NamedTuple):
    """Calls that measure the kernels of one shape, on packed sequences of one length."""

    head_dim: int
    seqlen: int
    dropout: bool
    dtype: str = "float16"
    tokens: int = TOKENS
    width: int = WIDTH

    def shape(self, kernel: str) -> config.Shape:
        """Returns the class of shapes that it stands for."""
        kind = config.HALF
        if self.dtype == "float32":
            precision = target.float32_precision(target.of(torch.device(device())))
            kind = config.IEEE if precision == "ieee" else config.TF32
        return config.Shape(kernel, kind, self.head_dim, self.dropout, self.seqlen).classed()

    def passes(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Returns the forward pass, and the backward pass of a forward pass done before."""
        size = (self.tokens, max(1, self.width // self.head_dim), self.head_dim)
        q, k, v, dout = torch.randn(4, *size, device=device()).to(getattr(torch, self.dtype))
        leaves = [x.requires_grad_() for x in (q, k, v)]
        ends = torch.arange(0, self.tokens + 1, self.seqlen, dtype=torch.int32, device=device())

        def attend() -> Tensor:
            out = fastattn.attention(
                *leaves,
                cu_seqlens_q=ends,
                max_seqlen_q=self.seqlen,
                dropout_p=0.1 if self.dropout else 0.0,
                backend="triton",
            )
            assert isinstance(out, Tensor)
            return out

        out = attend()
        with_grad = (out, leaves, dout)
        return (
            torch.no_grad()(attend),
            lambda: torch.autograd.grad(*with_grad, retain_graph=True),
        )


def device() -> str:
    """Where kernels run: a GPU, or the CPU under Triton's interpreter."""
    return "cpu" if target.INTERPRETED else "cuda"


def candidates(kernel: str, head_dim: int) -> list[config.Config]:
    """The sizes worth a try: what a tensor core takes, and what can fit registers."""
    owned = (64, 128)  # rows of queries, or of keys in dkdv, that a program keeps
    streamed = (32, 64, 128)
    stages = (2, 3, 4) if head_dim <= 64 else (1, 2, 3)
    found = []
    for rows, cols, warps, depth in itertools.product(owned, streamed, (4, 8), stages):
        # More warps than rows of 16 would compute the same twice; a thread has registers for so
        # many scores.
        if 16 * warps <= rows and 512 * warps <= rows * cols <= 2048 * warps * 64 // head_dim * 2:
            block = (cols, rows) if kernel == "dkdv" else (rows, cols)
            found.append(config.Config(*block, warps, depth))
    return found


class using:
    """Within it, the kernels of a workload have given sizes."""

    def __init__(self, workload: Workload, sizes: dict[str, config.Config]) -> None:
        where = target.of(torch.device(device())).name
        self.rows = {(where, workload.shape(kernel)): x for kernel, x in sizes.items()}

    def __enter__(self) -> None:
        self.before = dict(config.measured())
        config.measured().update(self.rows)

    def __exit__(self, *error: object) -> None:
        config.measured().clear()
        config.measured().update(self.before)


def compiles(workload: Workload, kernel: str, sizes: config.Config) -> str | None:
    """Compiles a candidate into Triton's cache by calling it; returns why that failed."""
    small = workload._replace(tokens=2 * workload.seqlen, width=workload.head_dim)
    try:
        with using(small, {kernel: sizes}):
            forward, backward = small.passes()
            forward() if kernel == "fwd" else backward()
            if device() == "cuda":
                torch.cuda.synchronize()
    except Exception as error:  # such as too much shared memory: then it is no candidate
        return f"{type(error).__name__}: {error}"
    return None


def fastest(
    workload: Workload, kernel: str, sizes: Sequence[config.Config], rounds: int
) -> tuple[config.Config, float]:
    """Times candidates in turn; returns the fastest and the median of its pass in milliseconds."""
    forward, backward = workload.passes()
    timed = forward if kernel == "fwd" else backward

    def with_sizes(chosen: config.Config) -> Callable[[], None]:
        def run() -> None:
            with using(workload, {kernel: chosen}):
                timed()

        return run

    calls = {str(index): with_sizes(x) for index, x in enumerate(sizes)}
    stopwatch = ByEvents() if device() == "cuda" else by_clock
    times = interleave(calls, rounds, warmup=3, stopwatch=stopwatch)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(medians, key=lambda name: medians[name])
    return sizes[int(best)], medians[best]


def tune(
    workloads: Iterable[Workload],
    kernels: Sequence[str] = KERNELS,
    choose: Callable[[str, int], list[config.Config]] = candidates,
    rounds: int = ROUNDS,
    processes: int = 0,
) -> list[dict[str, Any]]:
    """Measures candidates; returns a row of the table for each workload and kernel.

    Args:
        processes: how many compile at once; 0 compiles here.
    """
    jobs = [(w, kernel, x) for w in workloads for kernel in kernels for x in choose(kernel, w[0])]
    if processes:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
            failures = list(pool.map(compiles, *zip(*jobs, strict=True)))
    else:
        failures = [compiles(*job) for job in jobs]
    rows = []
    for (workload, kernel), group in itertools.groupby(
        zip(jobs, failures, strict=True), key=lambda item: item[0][:2]
    ):
        sizes = [job[2] for job, failure in group if failure is None]
        if sizes:
            chosen, time_ms = fastest(workload, kernel, sizes, rounds)
            shape = workload.shape(kernel)._asdict()
            rows.append({**shape, "config": list(chosen), "time_ms": round(time_ms, 4)})
            print(rows[-1], f"of {len(sizes)}", flush=True)
    where = {"target": target.of(torch.device(device())).name, **_provenance()}
    return [{**where, **row} for row in rows]


def _provenance() -> dict[str, str]:
    name = "interpreter" if device() == "cpu" else torch.cuda.get_device_name()
    return {
        "gpu": name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def order_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the order that a result of the benchmark gives.

    The ratio is the geometric mean over lengths of the time of "cuda" divided by that of "triton",
    forward and backward together.
    """
    ratios: dict[tuple[int, bool], list[float]] = {}
    for case in result["cases"]:
        times = case["forward_backward"]["times"]
        ours = [times.get(f"fastattn-{name}") for name in (order.CUDA, order.TRITON)]
        if None not in ours:
            key = (order.class_of(case["head_dim"]), case["dropout_p"] > 0.0)
            ratios.setdefault(key, []).append(ours[0]["median_ms"] / ours[1]["median_ms"])
    gpu = result["machine"]["gpu"]
    rows = []
    for (head_dim, dropout), found in sorted(ratios.items()):
        ratio = math.exp(statistics.fmean(map(math.log, found)))
        rows.append(
            {
                "target": "sm_" + gpu["compute_capability"].replace(".", ""),
                "head_dim": head_dim,
                "dropout": dropout,
                "first": order.TRITON if ratio > 1.0 else order.CUDA,
                "cuda_over_triton": round(ratio, 3),
                "gpu": gpu["name"],
                "date": result["date"][:10],
            }
        )
    return rows


def merge(path: Path, rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> None:
    """Writes rows into a table, each instead of the one with the same key."""
    new = {key(row) for row in rows}
    kept = [row for row in json.loads(path.read_text("utf-8")) if key(row) not in new]
    lines = ",\n".join(json.dumps(row) for row in kept + rows)
    path.write_text(f"[\n{lines}\n]\n" if lines else "[]\n", encoding="utf-8")
    print(f"{len(rows)} rows written to {path}")


def main() -> int:
    """Runs one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    tiles = commands.add_parser("tiles", help="measure sizes of Triton's tiles")
    tiles.add_argument("--all", action="store_true", help="head_dim 256 and float32 as well")
    commands.add_parser("order", help="take the order from a result").add_argument("result")
    arguments = parser.parse_args()
    if arguments.command == "order":
        result = json.loads(Path(arguments.result).read_text("utf-8"))
        merge(order.MEASURED, order_rows(result), order.row_key)
        return 0
    if not torch.cuda.is_available() and not target.INTERPRETED:
        print("gpu_tables: there must be a GPU that torch can use; got none. See `fastattn info`.")
        return 2
    head_dims = (*HEAD_DIMS, 256) if arguments.all else HEAD_DIMS
    dtypes = ("float16", "float32") if arguments.all else ("float16",)
    sizes = itertools.product(head_dims, SEQLENS, (False, True), dtypes)
    rows = tune([Workload(*numbers) for numbers in sizes], processes=os.cpu_count() or 1)
    merge(config.MEASURED, rows, config.row_key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
