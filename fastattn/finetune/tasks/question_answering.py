"""The answer to a question, as a span of a passage, or none if the passage has none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, EvalPrediction

from fastattn.errors import DataError
from fastattn.finetune import model as models
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.defaults import FRESH_MODELS
from fastattn.finetune.demos import passages
from fastattn.finetune.tasks import squad
from fastattn.finetune.tasks.base import Baseline, Encoded, Example, Scorer, Task, TaskData
from fastattn.finetune.tasks.rows import drop_unlabelled, read_data, split_rows

_SHORTEST = 16  # tokens: a question, a window of some words, and special tokens

Offsets = Sequence[tuple[int, int]]


class Window(NamedTuple):
    """A part of a passage, with its question, as the model reads it."""

    example: int
    first: int  # index of its first token of the passage
    offsets: Offsets  # first and last character of each of its tokens of the passage


class EncodedWindows(Encoded):
    """Questions with windows of their passages."""

    def __init__(
        self,
        examples: Sequence[Example],
        features: list[dict[str, Any]],
        windows: list[Window],
        notes: Sequence[str],
    ) -> None:
        super().__init__(examples, features, notes)
        self.windows = windows


class QuestionAnswering(Task):
    """Rows are those of SQuAD: {"id", "context", "question", "answers": {"text", "answer_start"}}.

    A passage that is longer than ``max_length`` becomes several windows that overlap by ``stride``
    tokens; the answer is the best span of all of them, or none if no span is better than that.
    """

    name = "question-answering"
    examples = "questions"
    own_file = ("mine.json", "a JSON file")
    columns = "passages, questions and answers as SQuAD has them"
    metric = "f1"
    further_metrics = ("exact_match", "answerable_accuracy")
    auto_model = AutoModelForQuestionAnswering

    def check(self, config: FinetuneConfig) -> None:
        super().check(config)
        _check_lengths(config)

    def load_data(self, config: FinetuneConfig) -> TaskData:
        self._max_answer_length = config.max_answer_length
        found = drop_unlabelled(read_data(config, passages), _targets)
        # Questions about one passage are all in one set.
        data = split_rows(found, config, lambda row: row["context"])
        self._may_have_none = not all(_targets(row) for row in data.train)
        if not any(_targets(row) for row in data.train):
            raise DataError(
                "data: the training set must hold questions with answers; got none in "
                f"{len(data.train):,} rows. Check that it is the right source."
            )
        return data

    def load_tokenizer(self, source: str, data: TaskData, config: FinetuneConfig) -> Any:
        tokenizer = super().load_tokenizer(source, data, config)
        models.require_fast(tokenizer, source, "which says where a token is in the passage")
        return tokenizer

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, config: FinetuneConfig
    ) -> EncodedWindows:
        questions, cut = _short_questions(examples, tokenizer, config.max_length // 2)
        encoded = tokenizer(
            questions,
            [row["context"] for row in examples],
            truncation="only_second",
            max_length=config.max_length,
            stride=_stride(config),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        of_examples = encoded.pop("overflow_to_sample_mapping")
        all_offsets = encoded.pop("offset_mapping")
        features, windows = [], []
        for number, example in enumerate(of_examples):
            window = _window(example, encoded.sequence_ids(number), all_offsets[number])
            if window is None:
                continue
            feature = {name: encoded[name][number] for name in encoded}
            no_answer = _no_answer_token(feature["input_ids"], tokenizer)
            span = _find_span(window, _spans(examples[example])) or (no_answer, no_answer)
            feature["start_positions"], feature["end_positions"] = span
            features.append(feature)
            windows.append(window)
        notes = _notes(examples, features, windows, cut, config)
        return EncodedWindows(examples, features, windows, notes)

    def collator(self, tokenizer: Any, model: Any) -> Any:
        return DataCollatorWithPadding(tokenizer)

    def load_model(
        self, source: str, tokenizer: Any, data: TaskData, config: FinetuneConfig
    ) -> Any:
        if source in FRESH_MODELS:
            return super().load_model(source, tokenizer, data, config)
        model_config = models.load_config(source, config, self.auto_model, [])
        model_config.num_labels = 2  # a start and an end, whatever classes it had before
        return models.load_model(source, model_config, self.auto_model)

    def scorer(self, encoded: Encoded, tokenizer: Any) -> Scorer:
        assert isinstance(encoded, EncodedWindows)
        targets = [_targets(row) for row in encoded.examples]
        no_answers = [
            _no_answer_token(feature["input_ids"], tokenizer) for feature in encoded.features
        ]

        def score(prediction: EvalPrediction) -> dict[str, float]:
            starts, ends = prediction.predictions[:2]
            answers = self._answers(encoded, starts, ends, no_answers)
            result = squad.scores(answers, targets)
            if self._may_have_none:
                right = map(_both_or_none, answers, targets)
                result["answerable_accuracy"] = sum(right) / len(targets)
            return result

        return score

    def _answers(
        self, encoded: EncodedWindows, starts: Any, ends: Any, no_answers: list[int]
    ) -> list[str]:
        """The best span of all windows of each example, "" where none is better."""
        count = len(encoded.examples)
        best = [(-np.inf, 0, 0)] * count
        none = [np.inf] * count
        for number, window in enumerate(encoded.windows):
            score, first, last = best_span(
                starts[number, window.first : window.first + len(window.offsets)],
                ends[number, window.first : window.first + len(window.offsets)],
                self._max_answer_length,
            )
            span = (window.offsets[first][0], window.offsets[last][1])
            best[window.example] = max(best[window.example], (score, *span))
            place = no_answers[number]
            no_score = float(starts[number, place] + ends[number, place])
            # The window that is least sure that there is none may have seen the answer.
            none[window.example] = min(none[window.example], no_score)
        return [
            "" if self._may_have_none and no_score > score else row["context"][first:last]
            for row, no_score, (score, first, last) in zip(
                encoded.examples, none, best, strict=True
            )
        ]

    def baseline(self, data: TaskData, test: Encoded) -> Baseline:
        targets = [_targets(row) for row in data.test]
        guesses = [guess(row["context"], row["question"]) for row in data.test]
        guessed = squad.scores(guesses, targets)["f1"]
        silent = squad.scores([""] * len(targets), targets)["f1"]
        if silent > guessed:
            return Baseline(silent, "never an answer")
        return Baseline(guessed, "the first name or number of the sentence most like the question")

    def usage(self, folder: Path) -> str:
        return f"""import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
model = AutoModelForQuestionAnswering.from_pretrained({str(folder)!r}).eval()
passage = 'Ada Falk was born in Lund in 1912. She built clocks.'
batch = tokenizer('Where was Ada Falk born?', passage, return_tensors='pt')
with torch.no_grad():
    scores = model(**batch)
start, end = scores.start_logits.argmax(), scores.end_logits.argmax()
print(tokenizer.decode(batch['input_ids'][0, start : end + 1]))"""


def best_span(starts: Any, ends: Any, max_length: int) -> tuple[float, int, int]:
    """Returns the highest sum of a start and an end score, and the tokens it belongs to.

    Args:
        starts, ends: scores of the tokens, of shape (seqlen,).
        max_length: of the span, in tokens.
    """
    best = (-np.inf, 0, 0)
    for length in range(1, min(max_length, len(starts)) + 1):
        sums = starts[: len(starts) - length + 1] + ends[length - 1 :]
        first = int(np.argmax(sums))
        if sums[first] > best[0]:
            best = (float(sums[first]), first, first + length - 1)
    return best


def _targets(row: Example) -> list[str]:
    return row["answers"]["text"]


def _spans(row: Example) -> list[tuple[int, int]]:
    """First character of each answer, and the one after its last, without spaces around it."""
    spans = []
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        first = start + len(text) - len(text.lstrip())
        spans.append((first, first + len(text.strip())))
    return spans


def _both_or_none(answer: str, targets: Sequence[str]) -> bool:
    return bool(answer) == bool(targets)


def _stride(config: FinetuneConfig) -> int:
    return config.max_length // 4 if config.stride is None else config.stride


def _check_lengths(config: FinetuneConfig) -> None:
    if config.max_length < _SHORTEST:
        raise ValueError(
            f"finetune: max_length must be at least {_SHORTEST} for a question and a part of its "
            f"passage; got {config.max_length}. Set it with --max-length."
        )
    # A question takes up to half of a window; up to four tokens are special.
    room = config.max_length - config.max_length // 2 - 4
    if _stride(config) >= room:
        raise ValueError(
            f"finetune: stride must be below {room}, the least part of a passage that a window of "
            f"{config.max_length} tokens holds; got {_stride(config)}. Set it with --stride, or a "
            "larger --max-length."
        )


def _short_questions(
    examples: Sequence[Example], tokenizer: Any, most: int
) -> tuple[list[str], int]:
    """Questions of at most so many tokens, and how many of them were cut."""
    questions = [row["question"].strip() for row in examples]
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)
    cut = 0
    for number, offsets in enumerate(encoded["offset_mapping"]):
        if len(offsets) > most:
            questions[number] = questions[number][: offsets[most - 1][1]]
            cut += 1
    return questions, cut


def _window(example: int, sequence_ids: Sequence[int | None], offsets: Offsets) -> Window | None:
    """The window, or None of a passage of which the tokenizer makes no token."""
    passage = [token for token, sequence in enumerate(sequence_ids) if sequence == 1]
    if not passage:
        return None
    spans = [(offsets[token][0], offsets[token][1]) for token in passage]
    return Window(example, passage[0], spans)


def _no_answer_token(input_ids: list[int], tokenizer: Any) -> int:
    """Where "no answer" is: at [CLS], as in BERT's own recipe."""
    return input_ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in input_ids else 0


def _find_span(window: Window, spans: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The tokens of the first answer that the window holds whole."""
    for start, end in spans:
        if window.offsets[0][0] <= start and end <= window.offsets[-1][1]:
            first = max(i for i, (begin, _) in enumerate(window.offsets) if begin <= start)
            last = min(i for i, (_, stop) in enumerate(window.offsets) if stop >= end)
            return window.first + first, window.first + last
    return None


def _notes(
    examples: Sequence[Example],
    features: list[dict[str, Any]],
    windows: list[Window],
    cut: int,
    config: FinetuneConfig,
) -> list[str]:
    notes = []
    of_each = Counter(window.example for window in windows)
    long = sum(count > 1 for count in of_each.values())
    if long:
        notes.append(
            f"{long:,} of {len(examples):,} questions have passages of more than "
            f"{config.max_length} tokens, which are read in windows that share {_stride(config)}"
        )
    if cut:
        notes.append(
            f"{cut:,} questions of more than {config.max_length // 2} tokens are cut to them"
        )
    whole = {
        window.example
        for window, feature in zip(windows, features, strict=True)
        if feature["start_positions"] >= window.first
    }
    lost = sum(bool(_targets(row)) and number not in whole for number, row in enumerate(examples))
    if lost:
        notes.append(
            f"{lost:,} questions have an answer that no window holds whole and are learned from as "
            "if they had none"
        )
    return notes


_SENTENCE = re.compile(r"[^.!?]+[.!?]?")
_WORD = re.compile(r"\w+")
# A number, or words that begin with a capital letter.
_NAME = re.compile(r"\d[\d,.]*\d|\d|[^\W\d_a-z]\w*(?: [^\W\d_a-z]\w*)*")


def guess(context: str, question: str) -> str:
    """Answers without having learned anything.

    It takes the sentence that shares most words with the question, and in it the first name or
    number that is not in the question.
    """
    asked = set(_WORD.findall(question.lower()))
    sentences = _SENTENCE.findall(context)
    shared = [len(asked & set(_WORD.findall(sentence.lower()))) for sentence in sentences]
    sentence = sentences[int(np.argmax(shared))] if sentences else context
    for match in _NAME.finditer(sentence.strip()):
        words = _WORD.findall(match[0].lower())
        begins = match.start() == 0 and len(words) == 1  # as any sentence does
        if not begins and not asked.intersection(words):
            return match[0]
    return ""
