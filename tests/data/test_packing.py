"""Features become one row of tokens, and nothing of them is lost or mixed up."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

import fastattn
from fastattn.data.packing import PackedCollator, PackedMaskedLMCollator

FEATURES = [
    {"input_ids": [2, 7, 3], "token_type_ids": [0, 0, 1], "attention_mask": [1, 1, 1], "label": 1},
    {"input_ids": [2, 3], "token_type_ids": [0, 1], "attention_mask": [1, 1], "label": 0},
]


def _with(index: int, **values: Any) -> list[dict[str, Any]]:
    return [{**x, **values} if i == index else dict(x) for i, x in enumerate(FEATURES)]


def _lists(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: x.tolist() if isinstance(x, torch.Tensor) else x for k, x in batch.items()}


def test_labels_of_sequences():
    batch = PackedCollator()(FEATURES)
    assert _lists(batch) == {
        "labels": [1, 0],
        "input_ids": [[2, 7, 3, 2, 3]],
        "token_type_ids": [[0, 0, 1, 0, 1]],
        "cu_seq_lens_q": [0, 3, 5],
        "cu_seq_lens_k": [0, 3, 5],
        "max_length_q": 3,
        "max_length_k": 3,
    }
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    # Trainer takes the length of the first tensor for the number of sequences.
    assert next(iter(batch)) == "labels"


def test_labels_of_tokens():
    features = [
        {"input_ids": [2, 7, 3], "labels": [-100, 4, -100]},
        {"input_ids": torch.tensor([2, 3]), "labels": torch.tensor([-100, 5])},
    ]
    batch = PackedCollator("token")(features)
    assert batch["labels"].tolist() == [[-100, 4, -100, -100, 5]]


def test_boxes_of_tokens():
    features = [{**x, "bbox": [[i, 1, i + 3, 4] for i in x["input_ids"]]} for x in FEATURES]
    batch = PackedCollator()(features)
    assert batch["bbox"].shape == (1, 5, 4)
    assert batch["bbox"][0, :, 0].tolist() == [2, 7, 3, 2, 3]
    features[1]["bbox"] = features[1]["bbox"][:1]
    with pytest.raises(ValueError, match=r"bbox must have a value for each of the 2 tokens; got"):
        PackedCollator()(features)


def test_spans_and_several_labels():
    features = [
        {"input_ids": [2, 7, 3], "start_positions": 1, "end_positions": 2, "labels": [0.0, 1.0]},
        {"input_ids": [2, 3], "start_positions": 0, "end_positions": 0, "labels": [1.0, 0.5]},
    ]
    batch = PackedCollator()(features)
    assert batch["start_positions"].tolist() == [1, 0]
    assert batch["end_positions"].tolist() == [2, 0]
    assert batch["labels"].tolist() == [[0.0, 1.0], [1.0, 0.5]]


def test_padding_of_the_tokenizer_is_left_out():
    features = _with(1, input_ids=[0, 2, 3], token_type_ids=[0, 0, 1], attention_mask=[0, 1, 1])
    assert _lists(PackedCollator()(features)) == _lists(PackedCollator()(FEATURES))


def test_tokens_of_no_sequence_fill_a_batch():
    features = [
        {**x, "bbox": [[i, 1, i + 3, 4] for i in x["input_ids"]], "position_ids": [2, 3, 4][:n]}
        for x, n in zip(FEATURES, (3, 2), strict=True)
    ]
    plain = PackedCollator()(features)
    batch = PackedCollator(pad_to_multiple_of=8)(features)
    assert list(batch) == list(plain)
    for name in ("input_ids", "token_type_ids", "position_ids", "bbox"):
        assert batch[name].shape[1] == 8 and batch[name].dtype == plain[name].dtype
        assert torch.equal(batch[name][:, :5], plain[name])
        assert all(torch.equal(x, plain[name][0, 0]) for x in batch[name][0, 5:])
    for name in ("labels", "cu_seq_lens_q", "cu_seq_lens_k"):
        assert torch.equal(batch[name], plain[name])
    exact = PackedCollator(pad_to_multiple_of=5)(features)
    assert torch.equal(exact["input_ids"], plain["input_ids"])


@pytest.mark.parametrize("label", [4, 0.5])
def test_tokens_of_no_sequence_have_no_label(label):
    features = [{"input_ids": [2, 7, 3], "labels": [label] * 3}]
    (labels,) = PackedCollator("token", pad_to_multiple_of=4)(features)["labels"]
    assert labels.tolist() == [label, label, label, -100]


@pytest.mark.parametrize(
    ("longest", "multiple", "bound"),
    [(1, 256, 64), (64, 256, 64), (65, 256, 128), (200, 256, 256), (200, 8, 208), (3, 1, 10)],
)
def test_longest_lengths_are_few(longest, multiple, bound):
    """A power of two, 64 at least, and the number of tokens at most."""
    features = [{"input_ids": [5] * longest}, {"input_ids": [5] * 3}, {"input_ids": [5]}]
    features = features if longest != 3 else [*features, features[0]]
    batch = PackedCollator(pad_to_multiple_of=multiple)(features)
    assert batch["max_length_q"] == batch["max_length_k"] == bound


@pytest.mark.parametrize("multiple", [0, -8, 2.0, True, "8"])
def test_multiples_are_counts(multiple, tokenizer):
    message = "pad_to_multiple_of must be an integer of at least 1, or None; got .*Take an eighth"
    with pytest.raises(ValueError, match=f"PackedCollator: {message}"):
        PackedCollator(pad_to_multiple_of=multiple)
    with pytest.raises(ValueError, match=f"PackedMaskedLMCollator: {message}"):
        PackedMaskedLMCollator(tokenizer, pad_to_multiple_of=multiple)


def test_labels_must_be_of_something():
    with pytest.raises(ValueError, match=r"labels must be 'sequence' or 'token'; got 'word'. Say"):
        PackedCollator("word")


@pytest.mark.parametrize(
    "values", [{"input_ids": []}, {"attention_mask": [0, 0]}, {"attention_mask": [1]}]
)
def test_a_feature_without_tokens(values):
    with pytest.raises(ValueError, match=r"input_ids must be a list of at least one .* feature 1"):
        PackedCollator()(_with(1, **values))


def test_labels_of_words_are_refused():
    with pytest.raises(ValueError, match=r"labels must have a value for each of the 3 tokens; got"):
        PackedCollator("token")([{"input_ids": [2, 7, 3], "labels": [4]}])
    with pytest.raises(ValueError, match=r'shape \(\) in feature 0.*need labels="sequence"'):
        PackedCollator("token")(FEATURES)


@pytest.fixture
def tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]))
    return transformers.BertTokenizer(str(words))


@pytest.mark.parametrize("special_known", [False, True])
def test_masked_language_modelling(tokenizer, special_known):
    """What is masked is what its labels say; special tokens never are."""
    texts = ["a b c d e f g", "h i j a", "b"] * 20
    features = tokenizer(texts, return_special_tokens_mask=special_known)
    features = [
        dict(zip(features, row, strict=True)) for row in zip(*features.values(), strict=True)
    ]
    batch = PackedMaskedLMCollator(tokenizer, mlm_probability=0.5, seed=3)(features)
    original = torch.cat([torch.tensor(x["input_ids"]) for x in features])[None]
    labels, ids = batch["labels"], batch["input_ids"]
    assert "special_tokens_mask" not in batch and "attention_mask" not in batch
    scored = labels != -100
    assert 0.3 < scored[original >= 5].double().mean() < 0.7
    assert not scored[original < 5].any()
    assert torch.equal(labels[scored], original[scored])
    assert torch.equal(ids[~scored], original[~scored])
    assert (ids[scored] == tokenizer.mask_token_id).double().mean() > 0.6
    again = PackedMaskedLMCollator(tokenizer, mlm_probability=0.5, seed=3)(features)
    assert torch.equal(again["input_ids"], ids)
    filled = PackedMaskedLMCollator(
        tokenizer, mlm_probability=0.5, seed=3, pad_to_multiple_of=1000
    )(features)
    total = ids.shape[1]
    assert torch.equal(filled["input_ids"][:, :total], ids)
    assert torch.equal(filled["labels"][:, :total], labels)
    assert filled["labels"].shape == (1, 1000) and (filled["labels"][:, total:] == -100).all()
    assert (filled["input_ids"][:, total:] == ids[0, 0]).all()


def test_the_model_must_be_patched(tokenizer):
    transformers = pytest.importorskip("transformers")
    from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

    if not HAS_ATTENTION_INTERFACE:
        pytest.skip("heads of Transformers 4.x take no packed batches")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertForMaskedLM(config)
    for make in (PackedCollator, lambda **kw: PackedMaskedLMCollator(tokenizer, **kw)):
        with pytest.raises(ValueError, match=r"model must be patched.*a BertForMaskedLM that"):
            make(model=model)
        with fastattn.patched(model, unpad=False), pytest.raises(ValueError, match="must be patch"):
            make(model=model)
        with fastattn.patched(model):
            collator = make(model=model)
        assert len(pickle.dumps(collator)) < 10_000  # workers get no copy of the model
