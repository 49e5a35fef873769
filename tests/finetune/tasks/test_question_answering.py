"""Answers as spans: windows, the best of all of them, official scores, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from transformers import EvalPrediction

from fastattn.data import sources
from fastattn.errors import DataError
from fastattn.finetune import FinetuneConfig
from fastattn.finetune.tasks import get_task, squad
from fastattn.finetune.tasks.base import Encoded, TaskData
from fastattn.finetune.tasks.question_answering import best_span, guess

NONE = Encoded([], [])  # these baselines are of rows, not of features

FILLER = "Nothing much is said here about the man, his work or his town. "


def row(context: str, question: str, *answers: str) -> dict[str, Any]:
    starts = [context.index(answer) for answer in answers]
    return {
        "id": question,
        "context": context,
        "question": question,
        "answers": {"text": list(answers), "answer_start": starts},
    }


def task_of(may_have_none: bool = True, max_answer_length: int = 10) -> Any:
    task = get_task("question-answering")
    task._may_have_none, task._max_answer_length = may_have_none, max_answer_length
    return task


def predictions(encoded: Any, height: float = 5.0) -> EvalPrediction:
    """Scores that are high at the labels alone, padded as the Trainer does."""
    longest = max(len(feature["input_ids"]) for feature in encoded.features)
    starts, ends = np.zeros((2, len(encoded.features), longest))
    for number, feature in enumerate(encoded.features):
        starts[number, feature["start_positions"]] = height
        ends[number, feature["end_positions"]] = height
        starts[number, len(feature["input_ids"]) :] = -100
        ends[number, len(feature["input_ids"]) :] = -100
    return EvalPrediction((starts, ends), (None, None))


def load(config: FinetuneConfig) -> TaskData:
    return get_task("question-answering").load_data(config)


def test_long_passages_are_read_in_windows(tiny_tokenizer: Any) -> None:
    task = task_of()
    config = FinetuneConfig(task=task.name, max_length=40, stride=12)
    long = row(f"{FILLER * 3}He lived in Halifax. {FILLER * 2}", "Where did he live?", "Halifax")
    silent = row(FILLER * 3, "When was he born?")
    encoded = task.encode([long, silent], tiny_tokenizer, config)
    assert all(len(feature["input_ids"]) <= 40 for feature in encoded.features)
    assert [window.example for window in encoded.windows].count(0) >= 3
    marked = [
        tiny_tokenizer.decode(f["input_ids"][f["start_positions"] : f["end_positions"] + 1])
        for f in encoded.features
    ]
    assert {"halifax", "[CLS]"} == set(marked) and marked.count("halifax") in (1, 2)
    assert encoded.notes == [
        "2 of 2 questions have passages of more than 40 tokens, which are read in windows that "
        "share 12"
    ]
    # One window in many has the answer, the others say that there is none.
    scores = task.scorer(encoded, tiny_tokenizer)(predictions(encoded))
    assert scores == {"f1": 1.0, "exact_match": 1.0, "answerable_accuracy": 1.0}


@given(st.integers(16, 64), st.integers(0, 7), st.data())
def test_every_token_of_a_passage_is_in_a_window(
    tokenizer_once: Any, max_length: int, stride: int, data: Any
) -> None:
    words = data.draw(st.lists(st.sampled_from(["a", "Wolverhampton", "naïve", "x."]), min_size=1))
    context, question = " ".join(words), "who " * data.draw(st.integers(1, 40))
    task = task_of()
    config = FinetuneConfig(task=task.name, max_length=max_length, stride=min(stride, 3))
    answer = data.draw(st.sampled_from(words))
    encoded = task.encode([row(context, question, answer)], tokenizer_once, config)
    seen = {offset for window in encoded.windows for offset in window.offsets}
    whole = tokenizer_once(context, add_special_tokens=False, return_offsets_mapping=True)
    assert seen == set(map(tuple, whole["offset_mapping"]))
    assert all(len(feature["input_ids"]) <= max_length for feature in encoded.features)
    cut = len(tokenizer_once(question, add_special_tokens=False)["input_ids"]) > max_length // 2
    assert any("are cut to them" in note for note in encoded.notes) == cut


@pytest.fixture(scope="module")
def tokenizer_once(tiny_bert: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def test_an_answer_that_no_window_holds_is_reported(tiny_tokenizer: Any) -> None:
    config = FinetuneConfig(task="question-answering", max_length=16, stride=2)
    answer = FILLER.strip()
    encoded = task_of().encode([row(FILLER * 3, "What?", answer)], tiny_tokenizer, config)
    assert "1 questions have an answer that no window holds whole" in encoded.notes[-1]


def test_no_answer_is_never_given_where_training_has_none(tiny_tokenizer: Any) -> None:
    config = FinetuneConfig(task="question-answering", max_length=64)
    encoded = task_of().encode([row("Ada won.", "Who lost?")], tiny_tokenizer, config)
    for may_have_none, exact in ((True, 1.0), (False, 0.0)):
        task = task_of(may_have_none)
        scores = task.scorer(encoded, tiny_tokenizer)(predictions(encoded))
        assert scores["exact_match"] == exact
        assert ("answerable_accuracy" in scores) == may_have_none


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1), st.integers(1, 6))
def test_the_best_span_is_the_best_of_all(scores: list[tuple[int, int]], longest: int) -> None:
    starts, ends = np.array(scores, dtype=float).T
    score, first, last = best_span(starts, ends, longest)
    every = [
        starts[i] + ends[j]
        for i in range(len(starts))
        for j in range(i, min(len(starts), i + longest))
    ]
    assert score == starts[first] + ends[last] == max(every)
    assert 0 <= last - first < longest


@pytest.mark.parametrize(
    ("answer", "targets", "f1", "exact"),
    [
        ("The  Eiffel-Tower!", ["eiffeltower"], 1.0, 1.0),
        ("in 1912", ["1912"], 2 / 3, 0.0),
        ("the cat sat", ["cat", "a cat sat down"], 0.8, 0.0),
        ("", [], 1.0, 1.0),
        ("Ada", [], 0.0, 0.0),
        ("", ["Ada"], 0.0, 0.0),
        ("cat cat", ["cat"], 2 / 3, 0.0),
        ("the", ["a"], 1.0, 1.0),
    ],
)
def test_scores_are_the_official_ones(
    answer: str, targets: list[str], f1: float, exact: float
) -> None:
    scores = squad.scores([answer], [targets])
    assert scores == {"f1": pytest.approx(f1), "exact_match": exact}


def test_the_baseline_guesses_or_is_silent() -> None:
    context = "It rained. The town hall was built by Ada Falk in 1912. Nobody saw it."
    assert guess(context, "Who built the town hall?") == "Ada Falk"
    assert guess(context, "What did Ada Falk do with the town hall?") == "1912"
    rows = [
        row(context, "Who built the town hall?", "Ada Falk"),
        row(context, "Where is the hall?"),
    ]
    task = task_of()
    baseline = task.baseline(TaskData([], [], rows[:1], [], {}), NONE)
    assert baseline == (1.0, "the first name or number of the sentence most like the question")
    silent = task.baseline(TaskData([], [], rows[1:], [], {}), NONE)
    assert silent == (1.0, "never an answer")


def squad_json(answers: list[dict[str, Any]], count: int = 12) -> str:
    paragraphs = [
        {
            "context": f"Person {i} was born in Lund.",
            "qas": [
                {"id": f"{i}a", "question": "Where?", "answers": answers},
                {"id": f"{i}b", "question": "Why?", "answers": [], "is_impossible": True},
            ],
        }
        for i in range(10, 10 + count)
    ]
    return json.dumps({"version": "v2.0", "data": [{"title": "x", "paragraphs": paragraphs}]})


def test_squad_files(write: Callable[..., str], settings: Callable[..., FinetuneConfig]) -> None:
    path = write("mine.json", squad_json([{"text": "Lund", "answer_start": 22}]))
    data = load(settings("question-answering", data=path))
    # A tenth of the passages each, with all their questions.
    assert data.report["sizes"] == {"train": 20, "validation": 2, "test": 2}
    held_out = [row["context"] for row in [*data.validation, *data.test]]
    assert not {row["context"] for row in data.train} & set(held_out)
    assert sorted(len(row["answers"]["text"]) for row in data.test) == [0, 1]


def test_a_data_set_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, settings: Callable[..., FinetuneConfig]
) -> None:
    """As squad has it: a validation set, and none to test on."""
    rows = [
        {**row(f"Person {i} was born in Lund.", "Where?", "Lund"), "id": str(i)} for i in range(12)
    ]
    sets = DatasetDict(
        train=Dataset.from_list([{**x, "title": "t"} for x in rows[:10]]),
        validation=Dataset.from_list([{**x, "title": "t"} for x in rows[10:]]),
    )
    monkeypatch.setattr(sources, "download", lambda name, config: sets)
    data = load(settings("question-answering", data="squad"))
    assert data.report["sizes"] == {"train": 9, "validation": 2, "test": 1}
    assert data.train[0]["answers"]["text"] == ["Lund"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (squad_json([{"text": "Lund", "answer_start": 3}]).replace("Lund.", "Lund or Lund."),
         r"mine\.json, row 1: an answer must be in the context at its answer_start"),
        (squad_json([]), r"the training set must hold questions with answers; got none in"),
        ('{"rows": []}', r"mine\.json must be an array of objects, or SQuAD's"),
    ],
)  # fmt: skip
def test_bad_files(
    write: Callable[..., str],
    settings: Callable[..., FinetuneConfig],
    content: str,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        load(settings("question-answering", data=write("mine.json", content)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_length": 12}, "max_length must be at least 16 for a question"),
        ({"max_length": 64, "stride": 28}, "stride must be below 28, the least part of a passage"),
        ({"stride": -1}, "stride must be a whole number of at least 0"),
        ({"max_answer_length": 0}, "max_answer_length must be a whole number of at least 1"),
    ],
)
def test_lengths(
    settings: Callable[..., FinetuneConfig], changed: dict[str, int], message: str
) -> None:
    config = settings("question-answering", **changed)
    with pytest.raises(ValueError, match=message):
        config.check()
        get_task("question-answering").check(config)
