"""What is measured, not how long it takes: other programs run beside the tests."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fastattn.backends import cpu
from fastattn.bench import overhead
from fastattn.cli.app import app

pytest.importorskip("transformers")


@pytest.mark.skipif(cpu.unavailable_reason() is not None, reason="no native module")
def test_command():
    result = CliRunner().invoke(app, ["bench", "overhead", "--rounds", "2"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].endswith("(target: at most 40 us):")
    for name in ("attention", "scaled_dot_product_attention"):
        for what in ("forward", "forward + backward"):
            assert any(line.startswith(f"  {name}, {what}: ") for line in lines)
    assert lines[-1].startswith("patch of bert-large: ") and "at most 50 ms" in lines[-1]


def test_it_is_a_difference():
    """Of ours and torch's, in microseconds a call."""
    found = overhead.call_overhead_us(rounds=3)
    assert len(found) == 4
    assert all(-100 < us < 100_000 for us in found.values())
