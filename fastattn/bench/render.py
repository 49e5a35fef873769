"""``fastattn bench render``: committed result files into README.md and bench/README.md.

Text between ``<!-- bench:attention -->`` and ``<!-- /bench:attention -->``, and the same for the
other blocks, is replaced by tables of what lies in bench/results/*/, one part for each machine; in
README.md by those of the machine that was measured last. The block "support" is asked of the
backends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastattn.bench import plot, results, support, tables

# README.md: the first picture and table; the operation alone; its memory; what is served.
BLOCKS = {
    "README.md": ("bert", "attention", "memory", "support"),
    "bench/README.md": (*results.KINDS, "gpu"),
}
_ALT = {
    "bert": "Time of a training step beside stock Transformers, as a share",
    "attention": "GFLOP/s of attention by length, beside torch's",
    "growth": "Time over length, sequences, threads and padding",
}

# The tables of README.md that are shorter than those of bench/README.md.
_SUMMARIES: dict[str, Callable[[dict[str, Any]], tables.Table]] = {
    "attention": lambda result: tables.attention_summary(result, named_only=True),
    "bert": lambda result: tables.bert_summary(result, with_targets=False),
}


def render(root: Path) -> list[Path]:
    """Rewrites the marked blocks of both READMEs and draws the pictures.

    Returns:
        The files that changed, and the pictures.

    Raises:
        ValueError: a file lacks its markers, or a result file is not one, or not a full run.
        ImportError: matplotlib is missing and there is something to draw.
    """
    drawn = []
    for kind in plot.PICTURES:
        for path, result in _results(root, kind):
            drawn += plot.draw(result, path.with_suffix(""))
    changed = []
    for file, text in rendered(root).items():
        if file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            changed.append(file)
    return changed + drawn


def rendered(root: Path) -> dict[Path, str]:
    """Returns what README.md and bench/README.md of a source tree must be."""
    texts = {}
    for name, kinds in BLOCKS.items():
        text = (root / name).read_text(encoding="utf-8")
        for kind in kinds:
            text = replace_block(text, kind, _block(root, kind, name), name)
        texts[root / name] = text
    return texts


def replace_block(text: str, kind: str, block: str, file_name: str) -> str:
    """Returns ``text`` with another block between the markers of a kind.

    Raises:
        ValueError: the markers are not there, once each.
    """
    begin, end = f"<!-- bench:{kind} -->", f"<!-- /bench:{kind} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(
            f"bench render: {file_name} must hold {begin} and {end}, once each; got "
            f"{text.count(begin)} and {text.count(end)}. Put them where the tables belong."
        )
    return pattern.sub(lambda _: f"{begin}\n{block}\n{end}", text)


def _results(root: Path, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    """The committed results of a kind, the newest first."""
    found = []
    for path in sorted((root / "bench" / "results").glob(f"*/{results.FILE_NAMES[kind]}")):
        result = results.read(path)
        if result["quick"] or result["partial"]:
            raise ValueError(
                f"bench render: results to publish must be of a full run; got {path}, of "
                f"`{result['command']}`. Run `fastattn bench {kind}`."
            )
        found.append((path, result))
    return sorted(found, key=lambda pair: str(pair[1]["date"]), reverse=True)


def _block(root: Path, kind: str, file_name: str) -> str:
    if kind == "support":
        return _support()
    if kind == "gpu":
        return _gpu(root)
    found = _results(root, kind)
    if not found:
        return f"No results yet: `fastattn bench {kind}` measures them."
    is_short = file_name == "README.md"
    make = _summary if is_short and kind in _SUMMARIES else _in_detail
    folder = (root / file_name).parent
    shown = found[:1] if is_short else found
    return "\n\n".join(make(path, result, folder) for path, result in shown)


def _picture(kind: str, path: Path, relative_to: Path) -> list[str]:
    if kind not in plot.PICTURES or not path.with_suffix(".svg").exists():
        return []
    file = path.with_suffix(".svg").relative_to(relative_to).as_posix()
    return [f"![{_ALT[kind]}]({file})"]


def _summary(path: Path, result: dict[str, Any], folder: Path) -> str:
    kind = result["kind"]
    picture = _picture(kind, path, folder) if kind == "bert" else []
    table = _SUMMARIES[kind](result).markdown()
    if kind == "bert":  # the picture is enough for the first screen
        table = f"<details><summary>The same as a table</summary>\n\n{table}\n\n</details>"
    notes = tables.attention_notes(result, with_targets=False) if kind == "attention" else []
    return "\n\n".join([*picture, table, *_list(notes), tables.provenance(result)])


def _in_detail(path: Path, result: dict[str, Any], folder: Path) -> str:
    kind = result["kind"]
    shown, notes = tables.shown(result)
    parts = [*_picture(kind, path, folder), *(table.markdown() for table in shown)]
    return "\n\n".join([*parts, *_list(notes), tables.provenance(result)])


def _list(notes: list[str]) -> list[str]:
    return ["\n".join(f"- {note}" for note in notes)] if notes else []


def _support() -> str:
    features = ", ".join([*support.FEATURES.values(), support.PACKED])
    return (
        f"{support.table().markdown()}\n\n"
        "Numbers are the largest head_dim by element type. Features: "
        f"{features}; forward and backward alike. Fused layers: dropout + residual + LayerNorm, "
        "bias + GELU, dropout of hidden states."
    )


def _gpu(root: Path) -> str:
    found = [
        pair
        for kind in results.KINDS
        if kind != "install"
        for pair in _results(root, f"gpu-{kind}")
    ]
    if not found:
        return "**Nothing has been measured on a GPU yet.** `make gpu` does."
    return "\n\n".join(_in_detail(path, result, root / "bench") for path, result in found)
