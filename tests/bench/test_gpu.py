"""The measurement of a GPU: on a CPU the emulated kernels in the place of ours, with a GPU its
clocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastattn.backends.cuda import EMULATED
from fastattn.bench import attention, growth, memory, peers, tables, timing
from fastattn.bench.cases import AttentionCase, GrowthCase, MemoryCase
from fastattn.bench.problem import make_problem, problem_of

needs_emulator = pytest.mark.skipif(
    EMULATED.unavailable_reason() is not None, reason=str(EMULATED.unavailable_reason())
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
TINY = AttentionCase("tiny", 2, 1, 20, 16, "float16", dropout_p=0.1)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return {"cases": [attention.run_case(TINY, 2, None, quick=True)], "skipped": {}}


@needs_emulator
def test_a_case_has_times_and_ratios(result: dict[str, Any]) -> None:
    (case,) = result["cases"]
    for name in ("forward", "backward", "forward_backward"):
        times = case[name]["times"]
        assert {"fastattn-cuda-emulated", "sdpa-math"} <= set(times)
        best = times[case[name]["best_peer"]]["median_ms"]
        ours = times["fastattn-cuda-emulated"]["median_ms"]
        assert case[name]["ratio"] == pytest.approx(best / ours)
    assert case["packed"]
    # What cannot run here is said, not left out.
    assert "compiled anew" in case["refused"]["flex"]
    assert "sdpa-cudnn" in case["refused"]


@needs_emulator
def test_what_is_shown(result: dict[str, Any]) -> None:
    table = tables.gpu_summary(result)
    assert [row[:2] for row in table.rows] == [
        ["tiny", "forward"],
        ["tiny", "backward"],
        ["tiny", "both"],
    ]
    assert any(note.startswith("No sdpa-cudnn: it is for GPUs") for note in tables.refusals(result))


def test_backends_and_graphs_have_columns() -> None:
    """One of them is not served on every GPU."""

    def timed(scale: float) -> dict[str, Any]:
        times = {"fastattn-cuda": [2.0 * scale], "fastattn-triton": [4.0], "sdpa-flash": [3.0]}
        return timing.compare(times)

    case = {"name": "x", "target": 1.15, "refused": {}}
    for name in ("forward", "backward", "forward_backward"):
        case[name] = {**timed(1.0), "peak_share": 0.5, "graph": timed(0.5)}
    rows = tables.gpu_summary({"cases": [case]}).rows
    assert case["forward"]["ratios"] == {"fastattn-cuda": 1.5, "fastattn-triton": 0.75}
    timed_alone = ["2.00", "4.00", "", "3.00", "sdpa-flash", "1.50"]
    as_graphs = ["1.00", "4.00", "", "3.00", "3.00"]
    assert rows[0] == ["x", "forward", *timed_alone, *as_graphs, "50%", "1.15"]
    for name in ("forward", "backward", "forward_backward"):
        hopper = {"fastattn-cuda-hopper": [0.5], "fastattn-cuda": [2.0], "sdpa-flash": [3.0]}
        case[name] = {**timing.compare(hopper), "peak_share": 0.5, "graph": None}
    table = tables.gpu_summary({"cases": [case]})
    row = dict(zip(table.header[:8], table.rows[0], strict=False))
    assert (row["cuda-hopper, ms"], row["triton, ms"], row["ratio"]) == ("0.50", "", "6.00")
    assert len(table.rows[0]) == len(table.header)


def test_a_backend_that_does_not_serve_a_gpu_is_named_and_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Growth and memory take what is there, as on a GPU that is not a Hopper."""
    case = GrowthCase("seqlen", (8,), 1, 1, 8, 8)
    problem = growth.make_problem(case, 8)
    (mine,) = peers.ours(problem).values()
    names = ("fastattn-cuda-hopper", "fastattn-triton")
    monkeypatch.setattr(peers, "ours", lambda problem: dict.fromkeys(names, mine))
    why = "the GPU must be an H100 or H200"
    refuses = {"cuda-hopper": [why], "triton": []}
    monkeypatch.setattr(peers.backends, "unsupported_reasons", lambda name, call: refuses[name])
    found = growth.run_case(case, rounds=1)
    assert "fastattn-triton" in found["exponents"] and names[0] not in found["exponents"]
    assert found["refused"][names[0]] == why
    assert set(memory.verify(MemoryCase("m", 1, 1, 8, 8))) == {"fastattn-triton"}
    refuses["triton"] = ["torch sees no GPU"]
    with pytest.raises(peers.Refusal, match=f"fastattn-cuda-hopper: {why}. fastattn-triton: torch"):
        peers.serving(problem)


def test_packed_and_padded_tensors_hold_the_same_tokens() -> None:
    problem = make_problem(TINY)
    assert torch.equal(problem.packed[0], problem.padded[0].flatten(0, 1))
    assert problem.cu_seqlens.tolist() == [0, 20, 40] and problem.mask is None
    ragged = problem_of(TINY, [20, 3], width=24)
    assert ragged.padded[0].shape == (2, 24, 1, 16) and ragged.packed[0].shape == (23, 1, 16)
    assert ragged.mask is not None and ragged.mask.sum() == 23
    assert not ragged.padded[3][1, 3:].any()  # no loss reads padding


@pytest.mark.gpu
@needs_gpu
def test_events_time_the_gpu_and_find_a_cold_cache() -> None:
    x = torch.randn(2**20, device="cuda")
    stopwatch = timing.ByEvents()
    assert stopwatch._buffer.numel() >= 2**20
    times_ms = timing.interleave({"fastattn": lambda: x * 2.0}, rounds=5, stopwatch=stopwatch)
    assert all(0.0 < ms < 1e3 for ms in times_ms["fastattn"])


@pytest.mark.gpu
@needs_gpu
def test_a_graph_repeats_a_call() -> None:
    x = torch.zeros(8, device="cuda")
    replay = timing.captured(lambda: x.add_(1.0))
    before = float(x[0])
    replay()
    assert float(x[0]) == before + 1.0


@pytest.mark.gpu
@needs_gpu
def test_a_case_on_the_gpu() -> None:
    case = AttentionCase("x", 2, 2, 64, 32, "float16", dropout_p=0.1)
    found = attention.run_case(case, 2, 1e5, device="cuda", quick=True)
    assert any(timing.is_ours(name) for name in found["forward"]["times"])
    assert found["forward"]["graph"] is not None
    names = ("fastattn-cuda", "fastattn-triton", "fastattn-cuda-hopper")
    assert set(peers.ours(make_problem(case, "cuda"))) == {*names}
    assert set(found["forward"]["times"]) & {*names} == set(
        peers.serving(make_problem(case, "cuda"))[0]
    )
