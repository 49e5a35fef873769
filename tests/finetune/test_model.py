"""Models that are there, and models that are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

import fastattn
from fastattn.finetune import FinetuneConfig
from fastattn.finetune.model import (
    accelerate,
    adapt_config,
    find_model,
    load_config,
    load_model,
    load_tokenizer,
)

CLASSIFIER = AutoModelForSequenceClassification
SHORT = FinetuneConfig(max_length=16)


def test_a_model_gets_the_classes_of_the_data(tiny_bert: Path) -> None:
    model = load_model(
        str(tiny_bert), load_config(str(tiny_bert), SHORT, CLASSIFIER, ["a", "b", "c"]), CLASSIFIER
    )
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.classifier.out_features == 3


def test_dropout_is_set_everywhere_or_left(tiny_bert: Path) -> None:
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    changed = FinetuneConfig(max_length=16, dropout=0.25)
    config = load_config(str(tiny_bert), changed, CLASSIFIER, ["a", "b"])
    assert [getattr(config, name) for name in names] == [0.25] * 3
    config = load_config(str(tiny_bert), SHORT, CLASSIFIER, ["a", "b"])
    assert [getattr(config, name) for name in names] == [0.1, 0.1, None]


def test_the_tokenizer_cuts_on_the_side_asked_for(tiny_bert: Path) -> None:
    text = "one two three four five"
    kept = {}
    for side in ("left", "right"):
        config = FinetuneConfig(max_length=4, truncation_side=side)
        tokenizer = load_tokenizer(str(tiny_bert), config)
        kept[side] = tokenizer.decode(tokenizer(text, truncation=True)["input_ids"])
    assert kept == {"left": "[CLS] four five [SEP]", "right": "[CLS] one two [SEP]"}


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none", "a/b/c"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"model must be a folder that exists or a model of the"):
        find_model(name)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", r"must be a folder with a config.json; got .* without one. Give --model"),
        ("model.safetensors", r"must be a folder with weights .* without them. Give --model"),
    ],
)
def test_a_folder_without_its_files(
    tiny_bert: Path, tmp_path: Path, removed: str, message: str
) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    (folder / removed).unlink()
    with pytest.raises(ValueError, match=message):
        find_model(str(folder))


def test_a_broken_config(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.json of the model must be JSON; got .*Save"):
        find_model(str(folder))


def test_a_config_of_no_known_model(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"model must be one that Transformers loads .* Check"):
        load_config(str(folder), SHORT, CLASSIFIER, ["a", "b"])


def test_texts_longer_than_the_model(tiny_bert: Path) -> None:
    config = FinetuneConfig(max_length=65)
    with pytest.raises(ValueError, match=r"max_length must be at most the 64 positions .* got 65"):
        load_config(str(tiny_bert), config, CLASSIFIER, ["a", "b"])


def test_a_classifier_of_other_classes(tiny_bert: Path, tmp_path: Path) -> None:
    model = load_model(
        str(tiny_bert), load_config(str(tiny_bert), SHORT, CLASSIFIER, ["a", "b", "c"]), CLASSIFIER
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"as many classes as the data, 2; got 3 in"):
        load_config(str(tmp_path), SHORT, CLASSIFIER, ["a", "b"])


def test_a_model_that_cannot_be_accelerated() -> None:
    from transformers import FNetConfig, FNetForSequenceClassification

    config = FNetConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, intermediate_size=16)
    with pytest.raises(fastattn.PatchError, match=r"With --no-patch, stock Transformers trains it"):
        accelerate(FNetForSequenceClassification(config))


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for load in (
        load_tokenizer,
        lambda name, config: load_config(name, config, CLASSIFIER, ["a", "b"]),
    ):
        with pytest.raises(ValueError, match=r"the Hub cannot be reached. .* packaged MiniLM"):
            load("nobody/no-such-model", SHORT)


def test_dropout_is_set_wherever_a_model_has_any() -> None:
    from transformers import PretrainedConfig, T5Config

    config = FinetuneConfig(dropout=0.3)
    assert adapt_config(T5Config(), "t5", config, None, []).dropout_rate == 0.3
    message = r"dropout must be left out for a model without any that is known; got 0.3 for odd"
    with pytest.raises(ValueError, match=message):
        adapt_config(PretrainedConfig(), "odd", config, None, [])
