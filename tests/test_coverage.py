"""The coverage table: what it says is so, for every head of every model in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastattn.coverage import speed, table
from fastattn.coverage.cases import CASES, Case
from fastattn.coverage.measure import Row, measure_one
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

PAGE = (Path(__file__).parents[1] / "docs" / "coverage.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="the table is about Transformers 5"
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_row_is_up_to_date_and_exact(case: Case):
    row = measure_one(case)
    assert row.error is None or row.error < table.ROUNDING
    assert row.generates is not False
    if f"with Transformers {table.version()}." in PAGE:  # another may have other heads
        assert table.line(row).rpartition("|")[0].rpartition("|")[0] in PAGE  # all but the speed
        assert table.notes(row) in PAGE


def test_the_page_has_these_rows_alone():
    rows = [line.split(" | ")[0][2:] for line in PAGE.splitlines() if line.startswith("| ")]
    assert rows[1:] == [case.name for case in CASES]


def test_what_is_wrong_is_shown():
    row = Row("M", 1, True, False, (), 3e-5, False, ("because",), 0.84)
    page = table.page([row])
    assert "| M | 1 | yes | no | no | **3e-05** | OTHER TOKENS | 0.8x |\n" in page
    assert page.endswith("## What is left as it was, and why\n\n- M: because.\n")


def test_every_column_has_something_to_say():
    """Each model the table has is served, exact, and timed."""
    rows = [
        [x.strip() for x in line.split("|")[1:-1]]
        for line in PAGE.splitlines()[1:]
        if line.startswith("| ")
    ]
    assert all(
        row[2] == "yes" and row[5].startswith("<") and row[7].endswith("x") for row in rows[1:]
    )
    assert {row[0] for row in rows[1:] if row[3] == "no"} == {
        "ViT",
        "GPT-2",
        "BERT as decoder",
        "OPT",
        "Llama",
        "Qwen2",
    }


def test_the_speed_of_a_step():
    case = next(case for case in CASES if case.name == "DistilBERT")
    assert 0.2 < speed.speedup(case, num_steps=1) < 50.0
