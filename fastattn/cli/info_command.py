"""``fastattn info``."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from fastattn import environment


def run(as_json: bool) -> None:
    """Prints what this installation and this machine are."""
    found = environment.collect()
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps(found, indent=2), markup=False)
        return
    table = Table.grid(padding=(0, 3))
    for section, lines in (
        ("versions", _fields(found["versions"], missing="not installed")),
        ("system", [found["os"]]),
        ("cpu", _fields(found["cpu"], missing="none")),
        ("gpu", [*_gpu_lines(found["gpus"]), *_cuda_lines(found["cuda_kernels"])]),
        ("backends", _backend_lines(found["backends"])),
    ):
        for index, line in enumerate(lines):
            table.add_row(section if index == 0 else "", str(line))
    console.print(table, markup=False)


def _fields(section: dict[str, Any], missing: str) -> list[str]:
    lines = []
    for name, value in section.items():
        words = " ".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"{name.replace('_', ' ')}: {missing if words in (None, '') else words}")
    return lines


def _gpu_lines(section: dict[str, Any]) -> list[str]:
    if "error" in section:
        return _fields(section, missing="none")
    lines = [
        f"{device['name']}, {device['memory_gib']} GiB, compute capability "
        f"{device['compute_capability']}"
        for device in section["devices"]
    ]
    cuda = section["torch_cuda"]
    lines = lines or ["none that torch can use"]
    lines.append(f"driver: {section['driver'] or 'none'}")
    lines.append(f"torch built for CUDA: {cuda or 'no'}")
    return lines


def _cuda_lines(section: dict[str, Any]) -> list[str]:
    if "error" in section:
        return _fields(section, missing="none")
    if section["skipped"]:
        return [f"CUDA kernels: none: {section['skipped']}"]
    names = " ".join(f"sm_{number}" for number in section["architectures"])
    return [f"CUDA kernels: {names}, compiled by nvcc {section['nvcc']}"]


def _backend_lines(section: dict[str, Any]) -> list[str]:
    if "error" in section:
        return _fields(section, missing="none")
    return [
        f"{name}: {'ready' if state['ready'] else 'not ready: ' + state['reason']}"
        for name, state in section.items()
    ]
