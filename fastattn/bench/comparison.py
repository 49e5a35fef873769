"""``fastattn bench compare``: two results of the same kind, case by case.

A result is a file of ``fastattn bench``, or what ``pytest bench`` stores: the JSON of
pytest-benchmark, to which bench/conftest.py adds where and when.

Two runs are two moments of a machine, or two machines. So beside the change of our own times
stands the change of our ratio to the fastest peer, which meets the same moment as we do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastattn.bench import results, tables
from fastattn.bench.tables import Table
from fastattn.bench.timing import is_ours, ratios_of, summary

# What bench/conftest.py adds to pytest-benchmark's JSON.
HEAD = "fastattn"

WITHIN_NOISE = "within noise"
FASTER = "faster"
SLOWER = "slower"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a result file, or one of ``pytest bench``; returns its results by kind.

    Raises:
        ValueError: it is neither, or parts of it are missing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    is_pytests = isinstance(content, dict) and HEAD in content and "benchmarks" in content
    result = {} if is_pytests else results.read(path)
    try:
        found = _of_pytest(content) if is_pytests else {result["kind"]: result}
        for one in found.values():
            _check_whole(one)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"bench compare: a result file must be whole; got {path}, of which parts are missing "
            f"or are something else ({type(error).__name__}: {error}). Measure again."
        ) from error
    return found


def _check_whole(result: dict[str, Any]) -> None:
    """Uses what a comparison uses."""
    tables.provenance(result)
    _ = result["machine"]["slug"], _names(result)
    for times in _passes(result).values():
        _row(times, times)


def _of_pytest(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Arranges pytest-benchmark's list by kind, case, pass and implementation."""
    found: dict[str, dict[str, Any]] = {}
    for benchmark in content["benchmarks"]:
        told, stats = benchmark["extra_info"], benchmark["stats"]
        kind = told["kind"]
        result = found.setdefault(kind, {**content[HEAD], "kind": kind, "cases": {}})
        case = result["cases"].setdefault(told["case"], {"name": told["case"]})
        times = case.setdefault(told["pass"], {"times": {}})["times"]
        times[told["who"]] = {
            **{f"{name}_ms": stats[name] * 1e3 for name in ("median", "q1", "q3")},
            "rounds": stats["rounds"],
        }
    for result in found.values():
        result["cases"] = list(result["cases"].values())
        for case in result["cases"]:
            for one in case.values():
                if isinstance(one, dict):
                    one |= ratios_of(one["times"])
    return found


def compare_results(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Returns our times in both results, one line for each pass of a case that both have.

    A change is outside noise if the ranges between the quartiles of the two runs do not touch.

    Raises:
        ValueError: the results are of different kinds, or have no case in common.
    """
    if before["kind"] != after["kind"]:
        raise ValueError(
            "bench compare: both results must be of the same kind; got "
            f"{before['kind']} and {after['kind']}. Compare results of one command."
        )
    old, new = _passes(before), _passes(after)
    if before["cases"] and not old:
        raise ValueError(
            f"bench compare: results must hold times; got {before['kind']}, which has none. "
            "Compare results of another command."
        )
    shared = [name for name in old if name in new]
    if not shared:
        raise ValueError(
            "bench compare: the results must have a case in common; got "
            f"{', '.join(_names(before))} and {', '.join(_names(after))}. "
            "Run the same cases twice."
        )
    header = ["case", "pass", "verdict", "before, ms", "after, ms", "before / after"]
    header += ["ratio to peer before", "after"]
    return Table(header, [[*name, *_row(old[name], new[name])] for name in shared], num_words=3)


def missing_cases(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns a sentence for each result that lacks cases of the other."""
    names = {"first": set(_names(before)), "second": set(_names(after))}
    lines = []
    for which, other in (("first", "second"), ("second", "first")):
        only = sorted(names[which] - names[other])
        if only:
            lines.append(f"Only in the {which} result: {', '.join(only)}.")
    return lines


def verdict(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Says whether the second of two summaries of times is faster, slower, or neither."""
    if after["q3_ms"] < before["q1_ms"]:
        return FASTER
    return SLOWER if after["q1_ms"] > before["q3_ms"] else WITHIN_NOISE


def _names(result: dict[str, Any]) -> list[str]:
    return [case["name"] for case in result["cases"]]


def _passes(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns what was timed, by case and pass."""
    found = {}
    for case in result["cases"]:
        if "times" in case:
            found[case["name"], case["mode"]] = case
        if "median_ms" in case:
            found[case["name"], "program"] = {"times": {"fastattn": summary(case["times_ms"])}}
        if "epochs_s" in case:
            times_ms = [seconds * 1e3 for seconds in case["epochs_s"]]
            found[case["name"], "epoch"] = {"times": {"fastattn": summary(times_ms)}}
        for point in case.get("points", ()):
            found[case["name"], f"{point['value']:g}"] = point
        for name in ("forward", "backward", "forward_backward"):
            if "times" in case.get(name, {}):
                found[case["name"], name.replace("_", " + ")] = case[name]
    return found


def _ours(found: dict[str, Any]) -> dict[str, Any]:
    """The summary of what is ours, the fastest if a GPU ran several backends."""
    mine: list[dict[str, Any]] = [x for name, x in found["times"].items() if is_ours(name)]
    return min(mine, key=lambda x: x["median_ms"])


def _row(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = _ours(before), _ours(after)
    ratios = [found.get("ratio") for found in (before, after)]
    return [
        verdict(old, new),
        f"{old['median_ms']:.4g}",
        f"{new['median_ms']:.4g}",
        f"{old['median_ms'] / new['median_ms']:.2f}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
    ]
