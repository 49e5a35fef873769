"""``fastattn bench render``: committed result files into README.md and bench/README.md.

Text between ``<!-- bench:attention -->`` and ``<!-- /bench:attention -->``, and the same for bert,
is replaced by tables of what lies in bench/results/*/, one part for each machine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastattn.bench import plot, results, tables

_PICTURE = "cpu-bert.svg"
_KINDS = ("attention", "bert")  # those of a GPU have no committed results yet


def render(root: Path) -> list[Path]:
    """Rewrites the marked blocks of both READMEs and draws the pictures.

    Returns:
        The files that changed, and the pictures.

    Raises:
        ValueError: a file lacks its markers, or a result file is not one, or not a full run.
        ImportError: matplotlib is missing and there is something to draw.
    """
    drawn = []
    for path, result in _results(root, "bert"):
        drawn += plot.draw(result, path.with_name(_PICTURE))
    changed = []
    for file, text in rendered(root).items():
        if file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            changed.append(file)
    return changed + drawn


def rendered(root: Path) -> dict[Path, str]:
    """Returns what README.md and bench/README.md of a source tree must be."""
    texts = {}
    for name, in_detail in (("README.md", False), ("bench/README.md", True)):
        text = (root / name).read_text(encoding="utf-8")
        for kind in _KINDS:
            text = replace_block(text, kind, _block(root, kind, in_detail), name)
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
    found = []
    for path in sorted((root / "bench" / "results").glob(f"*/{results.FILE_NAMES[kind]}")):
        result = results.read(path)
        if result["quick"] or result["partial"]:
            raise ValueError(
                f"bench render: results to publish must be of a full run; got {path}, of "
                f"`{result['command']}`. Run `fastattn bench {kind}`."
            )
        found.append((path, result))
    return found


def _block(root: Path, kind: str, in_detail: bool) -> str:
    make = {"attention": _attention, "bert": _bert}[kind]
    parts = [make(path, result, root, in_detail) for path, result in _results(root, kind)]
    return "\n\n".join(parts) or f"No results yet: `fastattn bench {kind}` measures them."


def _attention(path: Path, result: dict[str, Any], root: Path, in_detail: bool) -> str:
    parts = [tables.attention_summary(result).markdown()]
    if in_detail:
        parts.append(tables.attention_targets(result).markdown())
    parts.append("\n".join(f"- {note}" for note in tables.attention_notes(result, in_detail)))
    return "\n\n".join([*filter(None, parts), tables.provenance(result)])


def _bert(path: Path, result: dict[str, Any], root: Path, in_detail: bool) -> str:
    parts = []
    if not in_detail:
        picture = path.with_name(_PICTURE).relative_to(root).as_posix()
        parts.append(f"![Speed of training steps and inference beside stock BERT]({picture})")
    parts.append(tables.bert_summary(result, in_detail).markdown())
    if in_detail:
        parts.append(tables.bert_profile(result).markdown())
    return "\n\n".join([*parts, tables.provenance(result)])
