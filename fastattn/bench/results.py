"""Result files: what was measured, by which command, on which machine, at which commit.

Schema version 1. Every file holds

    schema, schema_version    "fastattn-bench", 1
    kind                      one of FILE_NAMES
    command, date             as typed; UTC, ISO 8601
    quick, partial            fewer rounds than usual; not all cases
    machine                   model, slug, cores, threads, instruction_set; gpu with its driver,
                              if it is one's
    versions                  python, torch, transformers, fastattn
    git                       commit and dirty (uncommitted changes), or null
    seconds                   how long the run took
    cases                     one dictionary a case; times in milliseconds

and what the function ``run`` of the kind's module returns beside the cases. A ratio is the fastest
peer's time divided by ours: less than 1 is slower. "refused" of a case holds the peers that were
not timed, and why; "skipped" of a result the cases that were not run, and why.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import fastattn
from fastattn import disk, environment

SCHEMA = "fastattn-bench"
SCHEMA_VERSION = 1

KINDS = ("attention", "layers", "memory", "growth", "bert", "epochs", "install")
FILE_NAMES = {
    **{kind: f"cpu-{kind}.json" for kind in KINDS},
    **{f"gpu-{kind}": f"gpu-{kind}.json" for kind in KINDS if kind != "install"},
}

_VERSIONS = ("python", "torch", "transformers", "fastattn")
_TYPES = {
    **dict.fromkeys(("kind", "command", "date"), str),
    **dict.fromkeys(("quick", "partial"), bool),
    **dict.fromkeys(("machine", "versions"), dict),
    "cases": list,
}


def machine(kind: str) -> dict[str, Any]:
    """Returns the CPU and what of it is used; for a kind of result "gpu-..." the GPU beside it."""
    cpu = environment.cpu()
    found = {
        "slug": slug(cpu["model"], cpu["threads"], cpu["instruction_set"]),
        "model": cpu["model"],
        "cores": cpu["usable_cores"],
        "threads": cpu["threads"],
        "instruction_set": cpu["instruction_set"],
    }
    if kind.startswith("gpu-"):
        gpus = environment.gpus()
        gpu = {**gpus["devices"][0], "driver": gpus["driver"], "torch_cuda": gpus["torch_cuda"]}
        found |= {"gpu": gpu, "slug": re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")}
        found["cuda_kernels"] = environment.cuda_kernels()
    return found


def slug(model: str, threads: int, instruction_set: str | None = None) -> str:
    """Returns the name of a machine's folder, such as "amd-epyc-9b45-avx512-bf16-2-threads".

    One CPU has a folder for each instruction set that was chosen on it.
    """
    model = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*|\d+-core", " ", model.lower())
    model = f"{model or 'unknown'} {instruction_set or ''}"
    words = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{words or 'unknown'}-{threads}-thread{'s' if threads > 1 else ''}"


def provenance(kind: str, command: str, *, quick: bool, partial: bool) -> dict[str, Any]:
    """Returns the head of a result file. Called before a run: the sources may change during it.

    Args:
        partial: not all of the kind's cases are run.
    """
    versions = environment.versions()
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "partial": partial,
        "machine": machine(kind),
        "versions": {name: versions[name] for name in _VERSIONS},
        "git": git_state(),
    }


def git_state() -> dict[str, Any] | None:
    """Returns the commit of the source tree and whether it has changes; None outside of git.

    Result files do not count as changes: a run of the second command would not be clean
    because of the first.
    """
    root = source_tree()
    if root is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", ".", ":!bench/results")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def source_tree() -> Path | None:
    """Returns the folder of the sources that this package runs from, or None if installed."""
    root = Path(fastattn.__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "bench").is_dir() else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def choose_path(kind: str, output: str | None) -> Path:
    """Returns where results go: ``output``, a file or folder, or the default.

    The default is ``bench/results/<machine>/`` of the source tree for whoever is in it, else the
    current folder.

    Raises:
        ValueError: there is something else in that place, or nothing can be written there.
    """
    if output is not None:
        path = Path(output).expanduser()
        if path.suffix != ".json" or path.is_dir():
            path = path / FILE_NAMES[kind]
    else:
        root, here = source_tree(), Path.cwd().resolve()
        inside = root is not None and here.is_relative_to(root)
        folder = root / "bench" / "results" / machine(kind)["slug"] if root and inside else here
        path = folder / FILE_NAMES[kind]
    if path.exists():
        _check_replaceable(path, kind)
    why_not = disk.why_not_writable(path.parent)  # before a run, which may take an hour
    if why_not:
        raise ValueError(
            f"bench: output must be a place that can be written to; got {path} ({why_not}). Give "
            "another with --output."
        )
    return path


def _check_replaceable(path: Path, kind: str) -> None:
    try:
        old = read(path)
    except ValueError as error:
        raise ValueError(
            f"bench: output must be a new file or an older result of this command; got {path}, "
            "which is something else. Give another place with --output."
        ) from error
    if old["kind"] != kind:
        raise ValueError(
            f"bench: output must be a new file or an older result of `bench {kind}`; got {path}, "
            f"a result of `bench {old['kind']}`. Give another place with --output."
        )


def last_committed(result: dict[str, Any]) -> Path:
    """Returns the file of the newest committed result of the same kind and machine.

    Where there is none of the machine, it is the newest of another one.

    Raises:
        ValueError: there is none at all, or no source tree.
    """
    root = source_tree()
    name = FILE_NAMES[result["kind"]]
    found = [] if root is None else list((root / "bench" / "results").glob(f"*/{name}"))
    if not found:
        raise ValueError(
            f"bench compare: there must be a committed result of `bench {result['kind']}`; got "
            "none in bench/results/. Give two files."
        )
    slug_here = result["machine"]["slug"]
    return max(found, key=lambda path: (path.parent.name == slug_here, read(path)["date"]))


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result file, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(result), indent=1, ensure_ascii=False)
    disk.write_whole(path, text + "\n")


def read(path: Path) -> dict[str, Any]:
    """Reads a result file.

    Raises:
        ValueError: it is not one, of another schema version, or parts of it are missing.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"bench: a result file must be JSON; got {path}: {error}. Remove it or measure again."
        ) from error
    version = result.get("schema_version") if isinstance(result, dict) else None
    if version != SCHEMA_VERSION or result.get("schema") != SCHEMA:
        raise ValueError(
            f"bench: a result file must have schema {SCHEMA!r}, version {SCHEMA_VERSION}; got "
            f"{path} without it. Measure again with this version of fastattn."
        )
    wrong = [name for name, kind in _TYPES.items() if not isinstance(result.get(name), kind)]
    if result.get("kind") not in FILE_NAMES:
        wrong.insert(0, "kind")
    if wrong:
        raise ValueError(
            f"bench: a result file must be whole; got {path}, whose {wrong[0]!r} is missing or is "
            f"{result.get(wrong[0])!r:.60}. Remove it or measure again."
        )
    return result


def _rounded(value: Any) -> Any:
    """Numbers with five digits: more are noise, and make differences hard to read."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
