"""Several labels a text: what is read, what is scored, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from transformers import EvalPrediction

from fastattn.data import sources
from fastattn.errors import DataError
from fastattn.finetune import FinetuneConfig
from fastattn.finetune.tasks import get_task
from fastattn.finetune.tasks.base import Encoded, TaskData

NONE = Encoded([], [])  # these baselines are of rows, not of features

WORDS = [f"Message {number}." for number in range(12)]


def load(config: FinetuneConfig) -> TaskData:
    return get_task("multilabel").load_data(config)


def labels_by_text(data: TaskData) -> dict[str, list[str]]:
    return {row["text"]: row["labels"] for row in [*data.train, *data.validation, *data.test]}


def test_a_list_a_separator_and_columns_say_the_same(
    write: Callable[..., str], settings: Callable[..., FinetuneConfig]
) -> None:
    labels = [["loud", "rude"], ["rude"], [], ["loud"]] * 3
    rows = [{"text": t, "labels": names} for t, names in zip(WORDS, labels, strict=True)]
    listed = write("listed.jsonl", rows)
    joined = "".join(f"{row['text']},{';'.join(row['labels'])}\n" for row in rows)
    separated = write("separated.csv", f"text,labels\n{joined}")
    cells = "".join(
        f"{row['text']},{int('loud' in row['labels'])},{int('rude' in row['labels'])}\n"
        for row in rows
    )
    columns = write("columns.csv", f"text,loud,rude\n{cells}")
    found = [
        load(settings("multilabel", data=listed)),
        load(settings("multilabel", data=separated, label_separator=";")),
        load(settings("multilabel", data=columns, label_columns="loud, rude")),
    ]
    assert labels_by_text(found[0]) == dict(zip(WORDS, labels, strict=True))
    assert all(labels_by_text(data) == labels_by_text(found[0]) for data in found)
    assert all(data.label_names == ["loud", "rude"] for data in found)


def test_a_data_set_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, settings: Callable[..., FinetuneConfig]
) -> None:
    """As go_emotions has it: numbers with names, and a test set without labels."""
    features = Features({"text": Value("string"), "labels": Sequence(ClassLabel(names=["b", "a"]))})
    train = {"text": WORDS, "labels": [[0, 1], [1], []] * 4}
    sets = DatasetDict(
        train=Dataset.from_dict(train, features),
        test=Dataset.from_dict({"text": ["x", "y"], "labels": [[], []]}, features),
    )
    monkeypatch.setattr(sources, "download", lambda name, config: sets)
    data = load(settings("multilabel", data="owner/emotions"))
    assert labels_by_text(data) == dict(zip(WORDS, [["a", "b"], ["a"], []] * 4, strict=True))
    assert data.report["notes"] == ["the test set has no labels and is not used"]


def test_scores_are_those_of_scikit_learn_at_the_threshold(
    settings: Callable[..., FinetuneConfig], tiny_tokenizer: object
) -> None:
    from sklearn.metrics import f1_score

    config = settings("multilabel", threshold=0.7)
    task = get_task("multilabel")
    data = task.load_data(config)
    encoded = task.encode(data.train, tiny_tokenizer, config)
    targets = np.array([feature["labels"] for feature in encoded.features])
    assert [int(x) for x in targets.sum(1)] == [len(row["labels"]) for row in data.train]
    logits = np.random.default_rng(0).normal(size=targets.shape)
    scores = task.scorer(encoded, tiny_tokenizer)(EvalPrediction(logits, targets))
    answers = 1 / (1 + np.exp(-logits)) > 0.7
    for name in ("micro", "macro"):
        assert scores[f"{name}_f1"] == pytest.approx(
            f1_score(targets, answers, average=name, zero_division=0)
        )
    assert scores["exact_match"] == np.mean((answers == targets).all(1))


def test_the_baseline_is_the_best_constant_answer() -> None:
    rows = [{"text": str(i), "labels": names} for i, names in enumerate([["a"], ["a", "b"], ["a"]])]
    task = get_task("multilabel")
    task._names = ["a", "b"]
    baseline = task.baseline(TaskData([], [], rows, ["a", "b"], {}), NONE)
    # Always a: 3 right, 1 missed. Always a and b: 4 right, 2 too many, 0.8.
    assert baseline == (pytest.approx(6 / 7), "always the commonest class")


def test_a_label_that_is_never_trained_is_named(
    write: Callable[..., str], settings: Callable[..., FinetuneConfig], tmp_path: object
) -> None:
    rows = [{"text": word, "labels": ["a"] if n else []} for n, word in enumerate(WORDS)]
    write("sets/train.jsonl", rows)
    write("sets/test.jsonl", [{"text": "z", "labels": ["a", "odd"]}])
    data = load(settings("multilabel", data=f"{tmp_path}/sets"))
    assert data.label_names == ["a"]
    assert any("1 labels that the training set lacks" in note for note in data.report["notes"])
    assert any("(odd)" in note for note in data.report["notes"])


@pytest.mark.parametrize(
    ("content", "changed", "message"),
    [
        ("text,labels\na,x\n,y\n", {}, r"mine\.csv, row 3: text must hold a text; got none"),
        ("text,x\na,1\nb,2\n", {"label_columns": "x"}, r"row 3: x must be 0 or 1; got '2'"),
        ("text,x\na,1\n", {}, r"must have a column 'labels'; got none"),
        ("text,labels\na,\nb,\nc,\nd,\n", {}, r"must have labels to train on; got none in"),
        ("text,labels\na,x\nb,x\nc,x\nd,x\n", {}, r"some texts have them .*; got x for all 2"),
    ],
)
def test_bad_rows(
    write: Callable[..., str],
    settings: Callable[..., FinetuneConfig],
    content: str,
    changed: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        load(settings("multilabel", data=write("mine.csv", content), **changed))


def test_a_separator_that_is_not_the_one_is_told_of(
    write: Callable[..., str], settings: Callable[..., FinetuneConfig]
) -> None:
    rows = "".join(f"{word},{'rude;loud' if n % 3 else 'rude'}\n" for n, word in enumerate(WORDS))
    data = load(settings("multilabel", data=write("mine.csv", f"text,labels\n{rows}")))
    assert any("'rude;loud' seems to be several; --label-sep" in x for x in data.report["notes"])


@pytest.mark.parametrize("threshold", [0, 1, -0.5, float("nan")])
def test_threshold(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be a probability above 0 and below 1"):
        FinetuneConfig(task="multilabel", threshold=threshold).check()
