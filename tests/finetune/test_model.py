"""Models that are there, and models that are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none", "a/b/c", "x" * 300])
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
    for broken in ("{", "[]"):
        (folder / "config.json").write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match=r"config.json of the model must be JSON; got .*Save"):
            find_model(str(folder))


def test_a_config_of_no_known_model(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"model must be one that Transformers loads .* Check"):
        load_config(str(folder), SHORT, CLASSIFIER, ["a", "b"])


def edit_config(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changed}), encoding="utf-8")


def load_classifier(folder: Path) -> Any:
    names = ["a", "b"]
    return load_model(str(folder), load_config(str(folder), SHORT, CLASSIFIER, names), CLASSIFIER)


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_weights_that_are_cut_off(tiny_bert: Path, tmp_path: Path, kept: float) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    size = int(kept * len(content)) if kept < 1 else int(kept)
    (folder / "model.safetensors").write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"model must be one that Transformers .*Error: .* Check"):
        load_classifier(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": 64}, r"got other sizes for .*embeddings.* and \d+ more in .*Use the two"),
        ({"num_hidden_layers": 3}, r"got no weights for .*layer.2.* and 15 more in"),
        ({"num_hidden_layers": 1}, r"got weights without a place for .*layer.1.* and 15 more in"),
        ({"model_type": "distilbert"}, r"got no weights for distilbert.transformer.layer.0"),
        ({"hidden_size": "wide"}, r"(?s)must be one that Transformers loads .* Check its files"),
    ],
)
def test_weights_of_another_model(
    tiny_bert: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """Transformers would draw the weights that are missing, and leave out those that are more."""
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    edit_config(folder, **changed)
    with pytest.raises(ValueError, match=message):
        load_classifier(folder)


def test_a_head_of_another_task_is_replaced(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    config = load_config(str(tiny_bert), SHORT, AutoModelForTokenClassification, [*"abcde"])
    tagger = load_model(str(tiny_bert), config, AutoModelForTokenClassification)
    tagger.save_pretrained(tmp_path)
    model = load_classifier(tmp_path)
    assert model.classifier.out_features == 2
    name = "bert.encoder.layer.1.output.dense.weight"
    assert model.state_dict()[name].equal(tagger.state_dict()[name])


def test_a_folder_without_a_tokenizer(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"model must be one that Transformers loads .* Check its"):
        load_tokenizer(str(folder), SHORT)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"finetune: model must "):
        load_tokenizer(str(folder), SHORT)


def test_a_tokenizer_without_a_padding_token(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, pad_token=None)
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(tiny_bert / "config.json", tmp_path)
    with pytest.raises(
        ValueError, match=r"a tokenizer with a padding token.* without one. Set its"
    ):
        load_tokenizer(str(tmp_path), SHORT, pad_token=None)


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
