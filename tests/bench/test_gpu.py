"""The measurement of a GPU, on a CPU: tiny cases, and the emulated kernels in the place of ours."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch

from fastattn.backends.cuda import EMULATED
from fastattn.bench import gpu, tables
from fastattn.bench.cases import GPU_CASES, GPU_TARGETS, GpuCase
from fastattn.errors import VerificationError

needs_emulator = pytest.mark.skipif(
    EMULATED.unavailable_reason() is not None, reason=str(EMULATED.unavailable_reason())
)
TINY = GpuCase(2, 1, 20, 16, dropout_p=0.1)


@pytest.fixture
def result() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch explains at length what its backends lack here
        return gpu.run([TINY], rounds=2, device="cpu")


@needs_emulator
def test_a_case_has_times_and_ratios(result: dict[str, Any]) -> None:
    (case,) = result["cases"]
    assert case["name"] == "20-d16-dropout-dense-fp16"
    for name in ("forward", "forward_backward"):
        times = case[name]["times"]
        assert {"fastattn-cuda-emulated", "sdpa-math"} <= set(times)
        best = times[case[name]["best_peer"]]["median_ms"]
        ours = times["fastattn-cuda-emulated"]["median_ms"]
        assert case[name]["ratios"]["fastattn-cuda-emulated"] == pytest.approx(best / ours)
    # What cannot run here is said, not left out.
    assert "FlexAttention has no dropout" in case["refused"]["flex"]
    assert "sdpa-cudnn" in case["refused"]


@needs_emulator
def test_what_is_shown(result: dict[str, Any]) -> None:
    table = tables.gpu_summary(result)
    assert [row[:2] for row in table.rows] == [
        ["20-d16-dropout-dense-fp16", "forward"],
        ["20-d16-dropout-dense-fp16", "forward + backward"],
    ]
    assert any("no flex: NotImplementedError" in note for note in tables.gpu_notes(result))


@needs_emulator
def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = gpu._ours

    def wrong(problem: gpu.Problem, backend: str) -> gpu.Attend:
        attend = ours(problem, backend)
        return lambda q, k, v: attend(q, k, v) * 1.1

    monkeypatch.setattr(gpu, "_ours", wrong)
    problem = gpu.make_problem(dataclasses.replace(TINY, dropout_p=0.0), "cpu")
    with pytest.raises(VerificationError, match="must be as accurate as torch's own; got"):
        gpu.verify(problem, {"fastattn-cuda-emulated": gpu.Implementation(wrong, True)})


def test_cases_have_names_of_their_own_and_targets_belong_to_some() -> None:
    names = [case.name for case in GPU_CASES]
    assert len(set(names)) == len(names) and set(GPU_TARGETS) <= set(names)
    assert {case.seqlen for case in GPU_CASES} >= {64, 512, 16384}
    assert {case.head_dim for case in GPU_CASES} == {32, 64, 128}


def test_packed_and_padded_tensors_hold_the_same_tokens() -> None:
    problem = gpu.make_problem(TINY, "cpu")
    assert torch.equal(problem.packed[0], problem.padded[0].flatten(0, 1))
    assert problem.cu_seqlens.tolist() == [0, 20, 40] and problem.mask is None
