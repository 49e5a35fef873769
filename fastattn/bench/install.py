"""``fastattn bench install``: what an installation takes, from the sources at hand.

Builds the wheel with the build tools of this environment, installs it into a fresh environment that
borrows torch and the rest from this one, and takes the time of the first import and the first
result there. Nothing is downloaded.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastattn.bench import results

ROUNDS = 5
QUICK_ROUNDS = 2

# Runs of a program, each in a process of its own; what imports torch alone is the peer.
_PROGRAMS = {
    "import torch": "import torch",
    "import fastattn": "import fastattn",
    "first result": (
        "import torch, fastattn; q = torch.randn(2, 8, 2, 16, requires_grad=True); "
        "fastattn.attention(q, q, q).sum().backward()"
    ),
}
Say = Callable[[str], None]


def run(rounds: int, say: Say = lambda line: None) -> dict[str, Any]:
    """Builds, installs and times.

    Returns:
        Seconds of build and installation, bytes of the wheel and of what it installs, and the
        medians of the programs, as cases of a result file.

    Raises:
        ValueError: fastattn does not run from its source tree.
        RuntimeError: a step failed; the message has its output.
    """
    root = results.source_tree()
    if root is None:
        raise ValueError(
            "bench install: fastattn must run from its source tree; got an installed package. "
            "Clone the repository and run it there."
        )
    with tempfile.TemporaryDirectory() as folder:
        say("building the wheel")
        wheel, build_s = build_wheel(root, Path(folder))
        say("installing it into a fresh environment")
        python, install_s = install_wheel(wheel, Path(folder) / "environment")
        with zipfile.ZipFile(wheel) as archive:
            installed = sum(item.file_size for item in archive.infolist())
        say("first import and first result")
        times_ms = time_programs([str(python)], rounds)
        return {
            "build_s": build_s,
            "install_s": install_s,
            "wheel_bytes": wheel.stat().st_size,
            "installed_bytes": installed,
            "cases": [
                {"name": name, "times_ms": times, "median_ms": statistics.median(times)}
                for name, times in times_ms.items()
            ],
        }


def build_wheel(root: Path, folder: Path) -> tuple[Path, float]:
    """Builds the wheel of a copy of the sources, so that nothing built before is used again.

    Returns:
        The wheel, and the seconds.
    """
    sources = folder / "sources"
    # What is tracked and what git does not ignore, as it is on disk: a source archive's files.
    listed = _run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root)
    for name in filter(None, listed.split("\0")):
        file = root / name
        if file.is_file():
            copy = sources / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    started = time.perf_counter()
    _run([*command, "-w", str(folder), "."], cwd=sources, FASTATTN_CUDA="0", FASTATTN_EMULATOR="0")
    seconds = time.perf_counter() - started
    (wheel,) = folder.glob("*.whl")
    return wheel, seconds


def install_wheel(wheel: Path, folder: Path) -> tuple[Path, float]:
    """Installs a wheel alone into a fresh environment.

    Returns:
        The environment's python, and the seconds of pip.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    own = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    borrowed = Path(own.strip()) / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    started = time.perf_counter()
    _run([*command, "--force-reinstall", "--no-index", str(wheel)])
    return python, time.perf_counter() - started


def time_programs(python: list[str], rounds: int) -> dict[str, list[float]]:
    """Runs each program once untimed, for the caches of files, and ``rounds`` times in turn."""
    times_ms: dict[str, list[float]] = {name: [] for name in _PROGRAMS}
    for index in range(-1, rounds):
        for name, program in _PROGRAMS.items():
            started = time.perf_counter()
            _run([*python, "-c", program], cwd=Path(tempfile.gettempdir()))
            if index >= 0:
                times_ms[name].append((time.perf_counter() - started) * 1e3)
    return times_ms


def _run(command: list[str], cwd: Path | None = None, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"bench install: `{' '.join(command[:6])} ...` must succeed; it ended with "
            f"{done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout
