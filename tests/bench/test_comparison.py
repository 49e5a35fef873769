"""Two result files beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastattn.bench import comparison
from fastattn.cli.app import app

FIXTURES = Path(__file__).parent / "fixtures"


def read(kind: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"cpu-{kind}.json").read_text(encoding="utf-8"))


def scaled(summary: dict[str, Any], factor: float) -> dict[str, Any]:
    return summary | {k: summary[k] * factor for k in ("median_ms", "q1_ms", "q3_ms")}


SUMMARY = {"median_ms": 10.0, "q1_ms": 9.5, "q3_ms": 10.5, "rounds": 5}


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "within noise"), (1.05, "within noise"), (1.2, "slower")]
)
def test_a_verdict_needs_ranges_that_do_not_touch(factor: float, verdict: str) -> None:
    assert comparison.verdict(SUMMARY, scaled(SUMMARY, factor)) == verdict
    back = {"slower": "faster"}.get(verdict, verdict)
    assert comparison.verdict(scaled(SUMMARY, factor), SUMMARY) == back


def test_every_pass_of_a_shared_case_has_a_line() -> None:
    before, after = read("attention"), read("attention")
    timed = [case for case in before["cases"] if "forward" in case]
    changed = next(case for case in after["cases"] if "forward" in case)
    times = changed["forward"]["times"]
    times["fastattn"] = scaled(times["fastattn"], 2.0)
    changed["forward"]["ratio"] /= 2
    table = comparison.compare_results(before, after)
    assert len(table.rows) == 2 * len(timed)
    first = dict(zip(table.header, table.rows[0], strict=True))
    assert (first["case"], first["pass"]) == (changed["name"], "forward")
    assert (first["verdict"], first["before / after"]) == ("slower", "0.50")
    assert float(first["ratio to peer before"]) == pytest.approx(
        2 * float(first["after"]), abs=0.02
    )
    assert {row[2] for row in table.rows[1:]} == {"within noise"}


def test_models_are_compared_too() -> None:
    result = read("bert")
    table = comparison.compare_results(result, result)
    assert [row[0] for row in table.rows] == [case["name"] for case in result["cases"]]


def test_cases_of_one_result_are_named(tmp_path: Path) -> None:
    before, after = read("attention"), read("attention")
    gone = after["cases"].pop()["name"]
    assert comparison.missing_cases(before, after) == [f"Only in the first result: {gone}."]
    files = []
    for name, result in (("a.json", before), ("b.json", after)):
        (tmp_path / name).write_text(json.dumps(result))
        files.append(str(tmp_path / name))
    done = CliRunner().invoke(app, ["bench", "compare", *files])
    assert done.exit_code == 0, done.output
    assert "within noise" in done.output and f"Only in the first result: {gone}." in done.output
    assert done.output.count("fastattn bench attention") == 2


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be of the same kind; got attention and bert"):
        comparison.compare_results(read("attention"), read("bert"))
    other = read("attention") | {"cases": []}
    with pytest.raises(ValueError, match=r"must have a case in common; got .* and "):
        comparison.compare_results(read("attention"), other)
    done = CliRunner().invoke(app, ["bench", "compare", str(tmp_path / "no.json"), "also-no.json"])
    assert done.exit_code == 2 and "a result file must be JSON" in done.output
