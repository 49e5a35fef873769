"""All that a GPU is needed for: tables, checks, tests, golden results of instructions, benchmarks.

    make gpu            builds for the GPU at hand first
    python bench/gpu.py [--quick]

Runs every step whatever the others say, and writes what each gave to gpu-steps.json beside the
results of the benchmark, in bench/results/<gpu>/. The sizes of Triton's tiles, and which of the two
GPU backends goes first, are measured too and written into their tables (bench/gpu_tables.py):
commit these with the results. Nothing has been measured on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastattn.bench import kinds, results

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
TABLES = [sys.executable, "bench/gpu_tables.py"]
FASTATTN = [sys.executable, "-c", "from fastattn.cli import main; main()"]
# A few calls of every kernel: the tools make them a hundred times as slow.
SMALL = [*PYTEST, "tests/backends/test_cuda_gpu.py", "-k", "test_options and 64 and contiguous"]


def steps(quick: bool, folder: Path) -> dict[str, list[str]]:
    """The commands, in their order: tables of sizes first, so that all else runs with them."""
    found = {
        "info": [*FASTATTN, "info"],
        "table of tiles": [*TABLES, "tiles"],
        "check": [*FASTATTN, "check"],
        "compiled kernels": [*PYTEST, "tests/backends/test_cuda_build.py"],
        "tests": [*PYTEST, "-m", "gpu", "tests"],
    }
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is not None:
        for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
            found[tool] = [sanitizer, "--tool", tool, "--error-exitcode", "1", *SMALL]
    for kind in kinds.kinds_of("cuda"):
        bench = [*FASTATTN, "bench", kind, "--device", "cuda"]
        found[f"bench {kind}"] = [*bench, "--quick"] if quick else bench
        if kind == "attention":
            result = str(folder / results.FILE_NAMES["gpu-attention"])
            found["table of the order"] = [*TABLES, "order", result]
    return found


def run(command: list[str]) -> dict[str, Any]:
    """Runs a step and returns its outcome."""
    started = time.perf_counter()
    # The results of instructions that tests/emulator replays where there is no GPU.
    environment = os.environ | {"FASTATTN_RECORD_CONFORMANCE": "1"}
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return {"exit_code": code, "seconds": round(time.perf_counter() - started, 1)}


def main() -> int:
    """Returns 0 if every step succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing to publish")
    quick = parser.parse_args().quick
    if not torch.cuda.is_available():
        print("gpu: there must be a GPU that torch can use; got none. See `fastattn info`.")
        return 2
    head = results.provenance("gpu-attention", "python bench/gpu.py", quick=quick, partial=False)
    folder = ROOT / "bench" / "results" / head["machine"]["slug"]
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for name, command in steps(quick, folder).items():
        print(f"\n== {name}", flush=True)
        outcomes[name] = run(command)
    record = {"machine": head["machine"], "versions": head["versions"], "git": head["git"]}
    text = json.dumps({**record, "date": head["date"], "steps": outcomes}, indent=1)
    (folder / "gpu-steps.json").write_text(text + "\n", encoding="utf-8")
    failed = [name for name, outcome in outcomes.items() if outcome["exit_code"] != 0]
    print(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} steps succeeded", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
