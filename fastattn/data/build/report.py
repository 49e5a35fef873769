"""What was found and what was done about it: for people one page, for programs JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastattn.data.build.assign import SPLITS, Assigned
from fastattn.data.build.config import BuildConfig
from fastattn.data.build.ingest import Ingested
from fastattn.data.build.output import Written
from fastattn.data.build.store import Store
from fastattn.data.built import REPORT_FILE, REPORT_PAGE
from fastattn.data.labels import alike_labels, joined_labels
from fastattn.data.readers.record import shorten
from fastattn.data.sources import not_read

_EXAMPLES = 10
_SUSPECTS = 25
_TEXT = 280  # characters of an example
_BINS = 24
# Classes of which the largest has more than so many times the rows of the smallest are imbalanced.
IMBALANCED = 3.0

# What each reason means, and what was done.
REASONS = {
    "unreadable": "could not be read: broken quotes or JSON, wrong number of cells, bad bytes",
    "invalid": "is not what the task needs: labels, tags, answers or fields are wrong",
    "empty": "has no text",
    "no_label": "has no label",
    "too_short": "has fewer words than --min-words",
    "too_long": "has more words than --max-words",
    "duplicate": "has the text and label of another row, which is kept",
    "conflict": "has the text of another row with a different label; all of them go",
    "leak": "would put a text of a held-out split into another split",
    "near_duplicate": "is almost the same as another row, which is kept",
    "suspicious_label": "has a label that a simple model finds unlikely",
    "balanced_away": "belongs to a class with more training rows than the smallest",
}


def make_report(
    config: BuildConfig,
    store: Store,
    assigned: Assigned,
    read: Ingested,
    written: Written,
    suspects: dict[str, Any] | None,
    padding: dict[str, Any],
    near_pairs: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns the report as plain values."""
    rejected = dict(
        store.query("SELECT reason, count(*) FROM rows WHERE reason IS NOT NULL GROUP BY reason")
    )
    total = store.count()
    splits = {split: written.rows[split] for split in SPLITS if written.rows[split]}
    labels = {split: dict(sorted(written.labels[split].items())) for split in splits}
    report: dict[str, Any] = {
        "name": Path(config.output).expanduser().absolute().name,
        "task": config.task,
        "rows_read": total,
        "rows_kept": total - sum(rejected.values()),
        "rows_rejected": sum(rejected.values()),
        "copies": written.copies,
        "augmented": written.augmented,
        "splits": splits,
        "labels": labels,
        "balance": _balance(config, labels.get("train", {})),
        "rejected": {reason: rejected[reason] for reason in REASONS if reason in rejected},
        "meaning": {reason: REASONS[reason] for reason in REASONS if reason in rejected},
        "examples": {reason: _examples(store, reason) for reason in REASONS if reason in rejected},
        "sources": read.sources,
        "repairs": read.repairs,
        "repair_examples": read.examples,
        "near_duplicates": {
            "action": config.near_duplicates,
            "similarity": config.similarity,
            **assigned.facts,
            "pairs": [_pair(pair) for pair in near_pairs],
        },
        "suspects": None if suspects is None else {**suspects, "rows": _suspects(store)},
        "words": _words(store, assigned),
        "extremes": _extremes(store),
        "padding": padding,
        "settings": config.as_dict(),
    }
    report["warnings"] = _warnings(report, read)
    return report


def _balance(config: BuildConfig, labels: dict[str, int]) -> dict[str, Any]:
    ratio = max(labels.values()) / min(labels.values()) if labels else 1.0
    return {
        "action": config.balance,
        "largest_to_smallest": round(ratio, 2),
        "imbalanced": ratio > IMBALANCED,
        "alike_labels": alike_labels(labels),
    }


def _examples(store: Store, reason: str) -> list[dict[str, Any]]:
    order = {"too_long": "words DESC, id", "too_short": "words, id"}.get(reason, "id")
    sql = f"SELECT file, row, detail, body FROM rows WHERE reason = ? ORDER BY {order} LIMIT ?"
    return [
        {"file": file, "row": row, "detail": detail, "content": _shown(body)}
        for file, row, detail, body in store.query(sql, reason, _EXAMPLES)
    ]


def _shown(body: str) -> str:
    """The part of a row that fits on the page."""
    content = json.loads(body)
    if isinstance(content, dict):
        if isinstance(content.get("tokens"), list):
            tags = content.get("tags")
            pairs = zip(content["tokens"], tags, strict=False) if isinstance(tags, list) else ()
            text = " ".join(f"{token}/{tag}" for token, tag in pairs)
        else:
            text = " | ".join(
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                for value in content.values()
                if value is not None
            )
    else:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return text if len(text) <= _TEXT else f"{text[:_TEXT]} … ({len(text):,} characters)"


def _pair(pair: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {**row, "label": row["label"][:60], "body": _shown(row["body"])} for row in pair["rows"]
    ]
    return {
        "similarity": pair["similarity"],
        "rows": [{("content" if k == "body" else k): v for k, v in row.items()} for row in rows],
    }


def _suspects(store: Store) -> list[dict[str, Any]]:
    sql = (
        "SELECT file, row, suspect, detail, suspicion, body FROM rows"
        " WHERE suspicion IS NOT NULL ORDER BY suspicion, file, row LIMIT ?"
    )
    return [
        {
            "file": file,
            "row": row,
            "label": label,
            "model_prefers": detail,
            "probability": round(probability, 4),
            "content": _shown(body),
        }
        for file, row, label, detail, probability, body in store.query(sql, _SUSPECTS)
    ]


def _words(store: Store, assigned: Assigned) -> dict[str, Any]:
    """Histogram of the words of a row, up to its 99.5th percentile."""
    import numpy as np

    words = np.zeros(len(assigned.ids), dtype=np.int64)
    sql = "SELECT words FROM rows INDEXED BY by_key WHERE reason IS NULL ORDER BY key"
    place = 0
    for place, (number,) in enumerate(store.query(sql)):
        words[place] = number
    words = words[: place + 1]
    top = max(1, int(np.percentile(words, 99.5)))
    width = -(-(top + 1) // _BINS)  # of every bar, in whole words
    edges = np.arange(0, top + width + 1, width)
    counts, _ = np.histogram(np.minimum(words, top), bins=edges)
    middle = {f"p{p}": int(np.percentile(words, p)) for p in (5, 50, 95, 99)}
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean": round(float(words.mean()), 1),
        "shortest": int(words.min()),
        "longest": int(words.max()),
        **middle,
    }


def _extremes(store: Store) -> dict[str, list[dict[str, Any]]]:
    """The shortest and the longest of the rows that are kept."""
    sql = (
        "SELECT file, row, words, body FROM rows WHERE reason IS NULL"
        " ORDER BY words {}, file, row LIMIT 5"
    )
    return {
        name: [
            {"file": file, "row": row, "words": words, "content": _shown(body)}
            for file, row, words, body in store.query(sql.format(order))
        ]
        for name, order in (("shortest", ""), ("longest", "DESC"))
    }


def _warnings(report: dict[str, Any], read: Ingested) -> list[str]:
    """What a person should look at first, worst first."""
    warnings = []
    rejected, total = report["rejected"], report["rows_read"]
    lost = sum(rejected.get(reason, 0) for reason in ("unreadable", "invalid", "no_label"))
    if lost > 0.05 * total:
        warnings.append(f"{lost / total:.0%} of the rows could not be used. Is the layout right?")
    if rejected.get("conflict"):
        warnings.append(
            f"{rejected['conflict']:,} rows contradict each other: the same text, another label. "
            "Whoever labelled them did not agree; other labels may be as unsure."
        )
    near = report["near_duplicates"]
    if near["pairs_with_different_labels"]:
        warnings.append(
            f"{near['pairs_with_different_labels']:,} pairs of near-duplicates have different "
            "labels."
        )
    if near["largest_unit"] > max(1, 0.1 * report["rows_kept"]):
        warnings.append(
            f"{near['largest_unit']:,} rows hang together by groups or near-duplicates and had to "
            "go into one split."
        )
    balance = report["balance"]
    if balance["imbalanced"] and report["task"] == "classification":
        warnings.append(
            f"The largest class has {balance['largest_to_smallest']:g} times the rows of the "
            "smallest: judge by macro F1, and consider --balance."
        )
    for names in balance["alike_labels"]:
        warnings.append(f"Labels that differ by letter case alone: {', '.join(names)}.")
    names, separator = [*report["labels"].get("train", {})], report["settings"]["label_separator"]
    joined = joined_labels(names, separator) if report["task"] == "multilabel" else None
    if joined is not None:
        warnings.append(
            f"The label {joined!r} seems to be several; --label-separator says what is between."
        )
    if read.unread:
        note = not_read(read.unread)
        warnings.append(f"{note[0].upper()}{note[1:]}.")
    if read.unused_labels:
        warnings.append(
            f"No row has a label that --label-map names: {', '.join(read.unused_labels)}."
        )
    if report["padding"]["rows_cut"]:
        share = report["padding"]["rows_cut"] / report["padding"]["rows_measured"]
        warnings.append(
            f"{share:.1%} of the training rows have more than {report['padding']['max_length']} "
            "tokens and will be cut."
        )
    if report["repairs"]:
        done = ", ".join(f"{rows:,} × {kind}" for kind, rows in report["repairs"].items())  # noqa: RUF001
        warnings.append(f"Rows were put right: {done}.")
    return warnings


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Writes ``report.json`` and ``report.html``."""
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    (folder / REPORT_PAGE).write_text(render(report), encoding="utf-8")


def render(report: dict[str, Any]) -> str:
    """Returns the page. It needs nothing from outside itself."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastattn.data.build", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["words"] = lambda reason: reason.replace("_", " ")
    environment.filters["quoted"] = shorten
    return environment.get_template("report.html.j2").render(
        report=report, splits=SPLITS, bars=_bars(report["words"])
    )


def _bars(words: dict[str, Any]) -> list[dict[str, Any]]:
    """The histogram's bars: height in percent of the highest, and what to say about each."""
    highest = max(words["counts"]) or 1
    spans: Sequence[tuple[int, int]] = list(
        zip(words["edges"][:-1], words["edges"][1:], strict=True)
    )
    return [
        {
            "from": low,
            "to": high - 1,
            "rows": rows,
            "height": round(100 * rows / highest, 1),
        }
        for (low, high), rows in zip(spans, words["counts"], strict=True)
    ]
