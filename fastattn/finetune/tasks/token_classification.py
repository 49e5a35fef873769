"""A tag for each word: named entities and other spans (IOB2), or parts of speech."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
)

from fastattn.data.packing import IGNORED_LABEL
from fastattn.errors import DataError
from fastattn.finetune import model as models
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.demos import news
from fastattn.finetune.tasks.base import (
    Baseline,
    Encoded,
    Example,
    Scorer,
    Task,
    TaskData,
    features_of,
)
from fastattn.finetune.tasks.rows import read_data, split_rows

_OUTSIDE = "O"


class EncodedWords(Encoded):
    """Sentences as pieces of words, and which words the model reads."""

    def __init__(
        self,
        examples: Sequence[Example],
        features: list[dict[str, Any]],
        words: list[list[int]],
        notes: Sequence[str],
    ) -> None:
        super().__init__(examples, features, notes)
        self.words = words  # of each feature, the words whose first pieces have labels, in order


class TokenClassification(Task):
    """Rows are {"tokens": [words], "tags": [tags]}, in IOB2 unless ``plain_tags`` is set."""

    name = "token-classification"
    examples = "sentences"
    own_file = ("mine.conll", "a CoNLL file")
    columns = "a word and its tag in each line, and a blank line after each sentence"
    metric = "f1"
    can_smooth_labels = True
    further_metrics = ("precision", "recall", "word_accuracy")
    auto_model = AutoModelForTokenClassification

    def load_data(self, config: FinetuneConfig) -> TaskData:
        self._plain_tags = config.plain_tags
        found = read_data(config, news)
        # Short sentences occur again in any text, and in the test sets that others report on.
        data = split_rows(found, config, lambda row: " ".join(row["tokens"]), keep_repeated=True)
        self._names = _tag_names(tag for row in data.train for tag in row["tags"])
        _check_tags(self._names, len(data.train))
        for set_name, rows in (("validation", data.validation), ("test", data.test)):
            tags = {tag for row in rows for tag in row["tags"]}
            unknown = sorted(tags - set(self._names))
            if unknown:
                data.report["notes"].append(
                    f"the {set_name} set has tags that the training set lacks and no model can "
                    f"learn: {', '.join(unknown[:8])}; they count as mistakes"
                )
        return data._replace(label_names=self._names)

    def load_tokenizer(self, source: str, data: TaskData, config: FinetuneConfig) -> Any:
        tokenizer = super().load_tokenizer(source, data, config)
        models.require_fast(tokenizer, source, "which says which word a piece is of")
        if getattr(tokenizer, "add_prefix_space", None) is False:
            # Byte-level tokenizers (RoBERTa's) take no lists of words otherwise.
            tokenizer = models.load_tokenizer(source, config, add_prefix_space=True)
        return tokenizer

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, config: FinetuneConfig
    ) -> EncodedWords:
        encoded = tokenizer(
            [row["tokens"] for row in examples],
            is_split_into_words=True,
            truncation=True,
            max_length=config.max_length,
        )
        index = {name: number for number, name in enumerate(self._names)}
        words: list[list[int]] = []
        labels: list[list[int]] = []
        for number, row in enumerate(examples):
            of_pieces = encoded.word_ids(number)
            firsts = _first_pieces(of_pieces)
            # Special tokens, and all pieces of a word but its first, have no label.
            of_row = [IGNORED_LABEL] * len(of_pieces)
            for word, piece in firsts.items():
                # A tag that nobody can learn has no loss, and is a mistake in the score.
                of_row[piece] = index.get(row["tags"][word], 0)
            labels.append(of_row)
            words.append(list(firsts))
        features = features_of({**encoded, "labels": labels})
        return EncodedWords(examples, features, words, _lost_words(examples, words, config))

    def collator(self, tokenizer: Any, model: Any) -> Any:
        return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED_LABEL)

    def logits_to_predictions(self) -> Callable[[Any, Any], Any]:
        return _likeliest_tags

    def scorer(self, encoded: Encoded, tokenizer: Any) -> Scorer:
        assert isinstance(encoded, EncodedWords)
        targets = [list(row["tags"]) for row in encoded.examples]

        def score(prediction: EvalPrediction) -> dict[str, float]:
            answers = []
            for number, tags in enumerate(targets):
                # A word that the model has not read is outside of all spans.
                answer = [_OUTSIDE] * len(tags)
                read = prediction.label_ids[number] != IGNORED_LABEL
                found = prediction.predictions[number][read]
                for word, tag in zip(encoded.words[number], found, strict=True):
                    answer[word] = self._names[tag]
                answers.append(answer)
            return self._scores(targets, answers)

        return score

    def baseline(self, data: TaskData, test: Encoded) -> Baseline:
        """Looks words up, and guesses from the first letter where they are new."""
        lookup = _Lookup(data.train, self._plain_tags)
        answers = [lookup.tags(row["tokens"]) for row in data.test]
        score = self._scores([list(row["tags"]) for row in data.test], answers)["f1"]
        return Baseline(score, "each word's commonest tag in training, or its first letter's")

    def usage(self, folder: Path) -> str:
        return f"""from transformers import pipeline
tag = pipeline('token-classification', {str(folder)!r}, aggregation_strategy='first')
for span in tag('Ingrid Marsh , a lawyer from Halifax , has left Zenith Motors .'):
    print(span['entity_group'], span['word'], round(float(span['score']), 3))"""

    def _scores(self, targets: list[list[str]], answers: list[list[str]]) -> dict[str, float]:
        """Precision, recall and F1 of whole spans as conlleval counts them, and of single words."""
        from seqeval.metrics import f1_score, precision_score, recall_score

        pairs = [
            (target, answer)
            for row in zip(targets, answers, strict=True)
            for target, answer in zip(*row, strict=True)
        ]
        if self._plain_tags:
            targets = [_single_words(row) for row in targets]
            answers = [_single_words(row) for row in answers]
        return {
            "f1": float(f1_score(targets, answers, zero_division=0)),
            "precision": float(precision_score(targets, answers, zero_division=0)),
            "recall": float(recall_score(targets, answers, zero_division=0)),
            "word_accuracy": float(np.mean([target == answer for target, answer in pairs])),
        }


def _check_tags(names: list[str], sentences: int) -> None:
    """Raises a DataError if all words have one tag, from which nothing can be learned."""
    if len(names) < 2:
        raise DataError(
            f"data: tags must differ; got {', '.join(names)} alone in {sentences:,} training "
            "sentences. In CoNLL files they are in the last column, or in that which `fastattn "
            "data build --tag-column` names; in others --label-column names them."
        )


class _Lookup:
    """Knows which tag each word has most often, and each kind of first character.

    Neighbouring new words of one type are one span.
    """

    def __init__(self, rows: Sequence[Example], plain_tags: bool) -> None:
        self._plain_tags = plain_tags
        of_words: defaultdict[str, Counter[str]] = defaultdict(Counter)
        of_shapes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for place, (word, tag) in enumerate(zip(row["tokens"], row["tags"], strict=True)):
                of_words[word][tag] += 1
                kind = tag if plain_tags or tag == _OUTSIDE else tag[2:]
                of_shapes[_shape(word, place)][kind] += 1
        self._of_words = {word: _commonest(tags) for word, tags in of_words.items()}
        self._of_shapes = {shape: _commonest(kinds) for shape, kinds in of_shapes.items()}

    def tags(self, words: Sequence[str]) -> list[str]:
        found: list[str] = []
        before = _OUTSIDE  # type of the new word before
        for place, word in enumerate(words):
            kind = _OUTSIDE
            if word in self._of_words:
                found.append(self._of_words[word])
            else:
                kind = self._of_shapes.get(_shape(word, place), _OUTSIDE)
                spanned = not self._plain_tags and kind != _OUTSIDE
                found.append(f"{'I' if kind == before else 'B'}-{kind}" if spanned else kind)
            before = kind
        return found


def _shape(word: str, place: int) -> str:
    """What the first character of a word is; any sentence begins with a capital letter."""
    if word[:1].isupper():
        return "capital" if place else "first capital"
    return "letter" if word[:1].isalpha() else "other"


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda name: (-counts[name], name))


def _tag_names(tags: Iterable[str]) -> list[str]:
    """O first, then B-X and I-X of each type X."""
    return sorted(set(tags), key=lambda tag: (tag != _OUTSIDE, tag[2:], tag))


def _first_pieces(of_pieces: Sequence[int | None]) -> dict[int, int]:
    """The first piece of each word that has one, by the word of each piece."""
    firsts: dict[int, int] = {}
    for piece, word in enumerate(of_pieces):
        if word is not None:
            firsts.setdefault(word, piece)
    return firsts


def _lost_words(
    examples: Sequence[Example], words: list[list[int]], config: FinetuneConfig
) -> list[str]:
    total = sum(len(row["tokens"]) for row in examples)
    lost = total - sum(map(len, words))
    if not lost:
        return []
    sentences = sum(
        len(row["tokens"]) > len(read) for row, read in zip(examples, words, strict=True)
    )
    return [
        f"{lost:,} of {total:,} words are not read, in {sentences:,} sentences: they lie beyond "
        f"{config.max_length} tokens, or the tokenizer has no piece for them; nothing is learned "
        f"from them, and they are scored as {_OUTSIDE}"
    ]


def _likeliest_tags(logits: Any, labels: Tensor) -> Tensor:
    """Reduces (batch, seqlen, tags) logits to the likeliest tags."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.argmax(-1)


def _single_words(tags: Sequence[str]) -> list[str]:
    """Tags of single words, as seqeval counts spans of one."""
    return [tag if tag == _OUTSIDE else f"B-{tag}" for tag in tags]
