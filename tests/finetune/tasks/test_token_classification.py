"""Tags of words: alignment with pieces, what is cut off, spans, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from hypothesis import HealthCheck, given
from hypothesis import settings as rules
from hypothesis import strategies as st
from transformers import EvalPrediction

from fastattn.data import sources
from fastattn.errors import DataError
from fastattn.finetune import FinetuneConfig
from fastattn.finetune.tasks import get_task
from fastattn.finetune.tasks.base import Encoded, TaskData

NONE = Encoded([], [])  # these baselines are of rows, not of features

ROW = {
    "tokens": ["Ingeborg", "Zimmerman", "unquestionably", "left", "Halifax"],
    "tags": ["B-PER", "I-PER", "O", "O", "B-LOC"],
}
NAMES = ["O", "B-LOC", "B-PER", "I-PER"]


def task_of(names: list[str], plain_tags: bool = False) -> Any:
    task = get_task("token-classification")
    task._names, task._plain_tags = names, plain_tags
    return task


def perfect(encoded: Any) -> EvalPrediction:
    """Predictions with the right tag wherever there is a label, padded as the Trainer does."""
    longest = max(len(feature["labels"]) for feature in encoded.features)
    labels = np.full((len(encoded.features), longest), -100)
    for row, feature in zip(labels, encoded.features, strict=True):
        row[: len(feature["labels"])] = feature["labels"]
    return EvalPrediction(np.where(labels == -100, 1, labels), labels)


def load(config: FinetuneConfig) -> TaskData:
    return get_task("token-classification").load_data(config)


def test_the_first_piece_of_each_word_has_its_tag(tiny_tokenizer: Any) -> None:
    task = task_of(NAMES)
    config = FinetuneConfig(task=task.name, max_length=64)
    encoded = task.encode([ROW], tiny_tokenizer, config)
    pieces = tiny_tokenizer.convert_ids_to_tokens(encoded.features[0]["input_ids"])
    labels = encoded.features[0]["labels"]
    assert len(pieces) > len(ROW["tokens"]) + 2  # some words have several
    tagged = [(p, NAMES[x]) for p, x in zip(pieces, labels, strict=True) if x != -100]
    assert [tag for _, tag in tagged] == ROW["tags"]
    assert not any(piece.startswith("##") for piece, _ in tagged)
    assert labels[0] == labels[-1] == -100
    assert encoded.notes == []
    scores = task.scorer(encoded, tiny_tokenizer)(perfect(encoded))
    assert scores == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "word_accuracy": 1.0}


@rules(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "Wolverhampton", "it's", "\u200b", "naïve"]), min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.integers(4, 20),
    st.sampled_from(["left", "right"]),
)
def test_every_word_is_scored_and_what_is_not_read_counts_as_outside(
    tiny_tokenizer: Any, sentences: list[list[str]], max_length: int, side: str
) -> None:
    task = task_of(["O", "B-X"])
    rows = [{"tokens": words, "tags": ["B-X"] * len(words)} for words in sentences]
    config = FinetuneConfig(task=task.name, max_length=max_length, truncation_side=side)
    tiny_tokenizer.truncation_side = side
    encoded = task.encode(rows, tiny_tokenizer, config)
    read = sum(map(len, encoded.words))
    total = sum(map(len, sentences))
    scores = task.scorer(encoded, tiny_tokenizer)(perfect(encoded))
    assert scores["recall"] == scores["word_accuracy"] == pytest.approx(read / total)
    assert scores["precision"] == (read > 0)
    lost = f"{total - read:,} of {total:,} words are not read"
    assert [note.startswith(lost) for note in encoded.notes] == [True] * (read < total)


def test_a_cut_sentence_is_reported(tiny_tokenizer: Any) -> None:
    task = task_of(NAMES)
    tiny_tokenizer.truncation_side = "right"
    config = FinetuneConfig(task=task.name, max_length=8)
    encoded = task.encode([ROW, {"tokens": ["left"], "tags": ["O"]}], tiny_tokenizer, config)
    assert 0 < len(encoded.words[0]) < 5
    lost = 5 - len(encoded.words[0])
    assert encoded.notes[0].startswith(f"{lost} of 6 words are not read, in 1 sentences")
    # Halifax is beyond the end: one span of two is found.
    scores = task.scorer(encoded, tiny_tokenizer)(perfect(encoded))
    assert (scores["recall"], scores["precision"]) == (0.5, 1.0)


def test_scores_are_of_whole_spans() -> None:
    task = task_of(NAMES)
    answers = [["B-PER", "O", "O", "O", "B-LOC"]]  # half of a name is no name
    scores = task._scores([ROW["tags"]], answers)
    assert scores["f1"] == 0.5
    assert scores["word_accuracy"] == 0.8


def test_plain_tags_are_scored_one_by_one() -> None:
    task = task_of(["DET", "NOUN", "VERB"], plain_tags=True)
    scores = task._scores([["DET", "NOUN", "VERB", "NOUN"]], [["DET", "NOUN", "NOUN", "NOUN"]])
    assert scores["f1"] == scores["word_accuracy"] == 0.75


def test_the_baseline_looks_words_up_and_guesses_new_ones() -> None:
    other = {
        "tokens": ["Halifax", "left", "Ada", "Falk", "unseen", "Bergen"],
        "tags": ["B-LOC", "O", "B-PER", "I-PER", "O", "B-LOC"],
    }
    baseline = task_of(NAMES).baseline(TaskData([ROW, ROW], [], [other], NAMES, {}), NONE)
    # Zimmerman and Halifax have capital letters; L goes before P in the alphabet.
    assert baseline.score == pytest.approx(2 / 3)
    more = {"tokens": ["He", "saw", "Per", "Holm"], "tags": ["O", "O", "B-PER", "I-PER"]}
    baseline = task_of(NAMES).baseline(TaskData([ROW, more], [], [other], NAMES, {}), NONE)
    assert baseline.score == pytest.approx(2 / 3)


def test_conll_files_and_iob1(
    write: Callable[..., str], settings: Callable[..., FinetuneConfig]
) -> None:
    sentences = "".join(
        f"Name{i} NNP I-PER\nwon VBD O\nin IN O\nParis NNP I-LOC\n. . O\n\n" for i in range(12)
    )
    path = write("mine.conll", f"-DOCSTART- -X- O\n\n{sentences}{sentences}")
    data = load(settings("token-classification", data=path))
    sets = (data.train, data.validation, data.test)
    # A tenth of the different sentences each; what is there twice is in one set, twice.
    assert [len(rows) for rows in sets] == [20, 2, 2]
    assert data.train[0]["tags"] == ["B-PER", "O", "O", "B-LOC", "O"]
    assert data.label_names == ["O", "B-LOC", "B-PER"]
    assert data.report["notes"] == ["24 rows: tags rewritten as IOB2"]


@pytest.mark.parametrize("column", ["tags", "ner_tags"])
def test_a_data_set_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, settings: Callable[..., FinetuneConfig], column: str
) -> None:
    """As conll2003 has it: numbers with names, in a column of another name."""
    tags = Sequence(ClassLabel(names=["O", "B-PER", "I-PER"]))
    features = Features({"tokens": Sequence(Value("string")), column: tags})
    rows = {"tokens": [[f"Ada{i}", "Falk", "won"] for i in range(12)], column: [[1, 2, 0]] * 12}
    sets = DatasetDict(train=Dataset.from_dict(rows, features))
    hidden = {"tokens": [["x"]], column: [[-1]]}
    sets["test"] = Dataset.from_dict(hidden, features)
    monkeypatch.setattr(sources, "download", lambda name, config: sets)
    data = load(settings("token-classification", data="conll2003"))
    assert data.train[0]["tags"] == ["B-PER", "I-PER", "O"]
    assert data.label_names == ["O", "B-PER", "I-PER"]
    assert data.report["notes"] == ["the test set has no labels and is not used"]
    assert data.report["sizes"] == {"train": 10, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ada B-PER\nwon\n", r"mine\.conll, row 2: a line must have 2 columns"),
        ("Ada PER\nwon O\n", r"row 1: a tag must be O, B-TYPE or I-TYPE; got 'PER'.*--plain-tags"),
        ("", r"must have at least one row; got none"),
        ("a O\n\nb O\n\nc O\n\nd O\n", r"tags must differ; got O alone in 2 training sentences"),
    ],
)
def test_bad_files(
    write: Callable[..., str],
    settings: Callable[..., FinetuneConfig],
    content: str,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        load(settings("token-classification", data=write("mine.conll", content)))


def test_more_tags_than_words(
    write: Callable[..., str], settings: Callable[..., FinetuneConfig]
) -> None:
    path = write("mine.jsonl", [{"tokens": ["a"], "tags": ["O", "O"]}])
    with pytest.raises(DataError, match=r"mine\.jsonl, row 1: .*got 1 tokens and 2 tags"):
        load(settings("token-classification", data=path))
