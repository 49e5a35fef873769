"""Two result files beside each other."""

from __future__ import annotations

import json
import shutil
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


@pytest.mark.parametrize(
    "cases",
    [
        [{"name": "dense-fp32", "forward": {"times": {}}}],
        [{"name": "dense-fp32", "forward": {"times": {"fastattn": {"median_ms": 1.0}}}}],
        [{"forward": {}}],
        ["dense-fp32"],
    ],
)
def test_a_result_with_parts_missing_is_refused(tmp_path: Path, cases: list[Any]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(read("attention") | {"cases": cases}))
    with pytest.raises(ValueError, match=r"a result file must be whole; got .*a\.json"):
        comparison.read(tmp_path / "a.json")


def test_results_of_pytest_with_parts_missing_are_refused(tmp_path: Path) -> None:
    content = pytest_json()
    del content["benchmarks"][0]["extra_info"]
    (tmp_path / "quick.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"must be whole; got .*quick\.json.*extra_info"):
        comparison.read(tmp_path / "quick.json")


def pytest_json(median_s: float = 0.002) -> dict[str, Any]:
    """What ``pytest bench`` stores of one pass of one case, of two implementations."""
    stats = {"median": median_s, "q1": median_s * 0.9, "q3": median_s * 1.1, "rounds": 3}
    told = {"kind": "attention", "case": "dense-fp32", "pass": "forward"}
    head = {name: value for name, value in read("attention").items() if name != "cases"}
    return {
        comparison.HEAD: head | {"command": "pytest bench"},
        "benchmarks": [
            {"extra_info": told | {"who": "fastattn"}, "stats": stats},
            {"extra_info": told | {"who": "sdpa-flash"}, "stats": stats | {"median": 0.006}},
        ],
    }


def test_results_of_pytest_are_read_and_compared(tmp_path: Path) -> None:
    (tmp_path / "quick.json").write_text(json.dumps(pytest_json()))
    (result,) = comparison.read(tmp_path / "quick.json").values()
    found = result["cases"][0]["forward"]
    assert found["times"]["fastattn"]["median_ms"] == pytest.approx(2.0)
    assert (found["best_peer"], found["ratio"]) == ("sdpa-flash", pytest.approx(3.0))
    table = comparison.compare_results(read("attention"), result)
    assert [row[:3] for row in table.rows] == [["dense-fp32", "forward", "faster"]]


def test_one_file_is_compared_with_the_last_committed_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quick.json").write_text(json.dumps(pytest_json()))
    folders = {"old": "2026-01-01", "new": "2026-01-09", "some-cpu-2-threads": "2026-01-05"}
    for folder, date in folders.items():
        path = tmp_path / "bench" / "results" / folder / "cpu-attention.json"
        path.parent.mkdir(parents=True)
        machine = {**read("attention")["machine"], "slug": folder}
        path.write_text(json.dumps(read("attention") | {"date": date, "machine": machine}))
    monkeypatch.setattr(comparison.results, "source_tree", lambda: tmp_path)
    arguments = ["bench", "compare", str(tmp_path / "quick.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "2026-01-05" in done.output, done.output
    shutil.rmtree(tmp_path / "bench" / "results" / "some-cpu-2-threads")
    done = CliRunner().invoke(app, arguments)
    assert "2026-01-09" in done.output and "Of two machines" in done.output
    shutil.rmtree(tmp_path / "bench")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "there must be a committed result" in done.output


def test_every_kind_that_has_times_is_compared() -> None:
    for kind, num_rows in (("layers", 6), ("growth", 5), ("install", 3)):
        assert len(comparison.compare_results(read(kind), read(kind)).rows) == num_rows
    with pytest.raises(ValueError, match="results must hold times; got memory"):
        comparison.compare_results(read("memory"), read("memory"))
