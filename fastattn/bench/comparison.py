"""``fastattn bench compare``: two result files of the same kind, case by case.

Two runs are two moments of a machine, or two machines. So beside the change of our own times
stands the change of our ratio to the fastest peer, which meets the same moment as we do.
"""

from __future__ import annotations

from typing import Any

from fastattn.bench.tables import Table

Times = dict[str, dict[str, Any]]

WITHIN_NOISE = "within noise"
FASTER = "faster"
SLOWER = "slower"


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
        for name in ("forward", "forward_backward"):
            if name in case:
                found[case["name"], name.replace("_", " + ")] = case[name]
    return found


def _row(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = (found["times"]["fastattn"] for found in (before, after))
    return [
        verdict(old, new),
        f"{old['median_ms']:.4g}",
        f"{new['median_ms']:.4g}",
        f"{old['median_ms'] / new['median_ms']:.2f}",
        f"{before['ratio']:.2f}",
        f"{after['ratio']:.2f}",
    ]
