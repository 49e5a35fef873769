"""Labels that a simple model finds unlikely.

A logistic regression predicts each row from a model that has not seen it (five folds), and
cleanlab's confident learning says which labels are likely wrong. Such a model is right about many
of them and wrong about some, so by default they are only flagged.

classification        TF-IDF of words and pairs of words; one class a row
multilabel            the same; for each label, whether a row has it
token-classification  a word, its ends and form, and its neighbours; one tag a word

For the last two this is what cleanlab's own filters for them do: they look at each label, and at
each word, as at a row by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from fastattn.data.build.ingest import SEPARATOR, compared_text
from fastattn.data.build.store import Kept, Store

# More rows teach such a model little, and take its memory and time.
MAX_ROWS = 50_000
_MAX_CELLS = 500_000  # rows times labels, where each row may have several
_MAX_WORDS = 50_000
_FOLDS = 5
_MAX_FEATURES = 2**17
# Why nothing was looked for.
_TOO_FEW = "fewer than two classes of five rows"
_NO_WORDS = "the texts have no words of two letters or more"


class Suspect(NamedTuple):
    """A row with a label that is likely wrong; of several in a row, the unlikeliest."""

    id: int
    probability: float  # that the model gives the label
    given: str  # the label in question
    preferred: str  # what the model takes instead


class _Findings(NamedTuple):
    """What was found in a sample, and how good the model is."""

    rows: int
    accuracy: float  # of all labels
    suspects: list[Suspect]


def find_suspects(store: Store, task: str, drop: bool) -> dict[str, Any]:
    """Flags rows with suspicious labels, or rejects them ("suspicious_label").

    Looks at the first rows in the order of keys, a random sample: 50,000, fewer if they have many
    labels, and of sentences as many as hold 50,000 words. Classes, labels and tags that fewer than
    five rows have are left out.

    Returns:
        Facts for the report: rows checked, suspicious ones, accuracy of the model.
    """
    finder = {
        "classification": _of_classes,
        "multilabel": _of_label_sets,
        "token-classification": _of_tags,
    }[task]
    found = finder(islice(store.kept(), MAX_ROWS))
    if isinstance(found, str):
        return {"checked": 0, "suspicious": 0, "why_not": found}
    if drop:
        store.reject(
            (
                suspect.id,
                "suspicious_label",
                f"a simple model gives {suspect.given} a probability of {suspect.probability:.1%}, "
                f"and prefers {suspect.preferred}",
            )
            for suspect in found.suspects
        )
    else:
        store.suspect(found.suspects)
    return {
        "checked": found.rows,
        "suspicious": len(found.suspects),
        "model_accuracy": round(found.accuracy, 4),
        "action": "rejected" if drop else "flagged",
    }


def _of_classes(rows: Iterator[Kept]) -> _Findings | str:
    ids, texts, labels = [], [], []
    for row in rows:
        ids.append(row.id)
        texts.append(compared_text("classification", row.content()))
        labels.append(row.stratum)
    counts = Counter(labels)
    names = sorted(label for label, count in counts.items() if count >= _FOLDS)
    if len(names) < 2:
        return _TOO_FEW
    kept = [place for place, label in enumerate(labels) if label in names]
    given = [names.index(labels[place]) for place in kept]
    features = _words_of([texts[place] for place in kept])
    if features is None:
        return _NO_WORDS
    probabilities = _out_of_fold(features, given)
    suspects = [
        Suspect(ids[kept[place]], float(probabilities[place, given[place]]), names[given[place]],
                names[int(probabilities[place].argmax())])
        for place in _issues(given, probabilities)
    ]  # fmt: skip
    return _Findings(len(kept), _accuracy(given, probabilities), suspects)


def _of_label_sets(rows: Iterator[Kept]) -> _Findings | str:
    ids, texts, sets = [], [], []
    total, names = 0, set[str]()
    for row in rows:
        labels = {*filter(None, row.stratum.split(SEPARATOR))}
        names |= labels
        total += len(names)
        if total > _MAX_CELLS:
            break
        ids.append(row.id)
        texts.append(compared_text("multilabel", row.content()))
        sets.append(labels)
    features, right, looked_at = None, 0.0, 0
    worst: dict[int, Suspect] = {}
    for name in sorted(names):
        given = [int(name in labels) for labels in sets]
        if not _FOLDS <= sum(given) <= len(given) - _FOLDS:
            continue
        features = _words_of(texts) if features is None else features
        if features is None:
            return _NO_WORDS
        probabilities = _out_of_fold(features, given)
        right += _accuracy(given, probabilities)
        looked_at += 1
        words = (f"without {name}", name)
        _keep_worst(
            worst,
            (
                Suspect(ids[place], float(probabilities[place, given[place]]), words[given[place]],
                        words[1 - given[place]])
                for place in _issues(given, probabilities)
            ),
        )  # fmt: skip
    if not looked_at:
        return _TOO_FEW
    return _Findings(len(ids), right / looked_at, _ordered(worst))


def _of_tags(rows: Iterator[Kept]) -> _Findings | str:
    ids, sentences = [], []
    total = 0
    for row in rows:
        content = row.content()
        total += len(content["tokens"])
        if total > _MAX_WORDS:
            break
        ids.append(row.id)
        sentences.append(content)
    kept, counts = _with_common_tags(sentences)
    names = sorted(counts)
    if len(names) < 2:
        return _TOO_FEW
    # A sentence is in the fold of its words; those of a tag are dealt out to different folds.
    rarest = {place: min(counts[tag] for tag in sentences[place]["tags"]) for place in kept}
    order = sorted(kept, key=lambda place: (rarest[place], place))
    folds = {place: number % _FOLDS for number, place in enumerate(order)}
    words = [(place, word) for place in kept for word in range(len(sentences[place]["tokens"]))]
    given = [names.index(sentences[place]["tags"][word]) for place, word in words]
    probabilities = _out_of_fold(
        _features_of(sentences[place]["tokens"] for place in kept),
        given,
        [folds[place] for place, _ in words],
    )
    worst: dict[int, Suspect] = {}
    for issue in _issues(given, probabilities):
        place, word = words[issue]
        token = sentences[place]["tokens"][word]
        suspect = Suspect(
            ids[place],
            float(probabilities[issue, given[issue]]),
            f"{token}/{names[given[issue]]}",
            names[int(probabilities[issue].argmax())],
        )
        _keep_worst(worst, [suspect])
    return _Findings(len(kept), _accuracy(given, probabilities), _ordered(worst))


def _with_common_tags(sentences: Sequence[dict[str, Any]]) -> tuple[list[int], Counter[str]]:
    """The sentences all of whose tags at least five of them have, and how many have each tag."""
    kept = list(range(len(sentences)))
    while True:
        counts = Counter(tag for place in kept for tag in {*sentences[place]["tags"]})
        rare = {tag for tag, count in counts.items() if count < _FOLDS}
        if not rare:
            return kept, counts
        kept = [place for place in kept if rare.isdisjoint(sentences[place]["tags"])]


def _keep_worst(worst: dict[int, Suspect], suspects: Iterator[Suspect] | list[Suspect]) -> None:
    for suspect in suspects:
        before = worst.setdefault(suspect.id, suspect)
        worst[suspect.id] = min(before, suspect, key=lambda x: x.probability)


def _ordered(worst: dict[int, Suspect]) -> list[Suspect]:
    return sorted(worst.values(), key=lambda suspect: (suspect.probability, suspect.id))


def _words_of(texts: Sequence[str]) -> Any:
    """Weights of the words and pairs of words of each text, None if no text has any."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # The words' weights do not depend on labels, so they are found once and not in each fold.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_MAX_FEATURES)
    tokenize = words.build_tokenizer()
    return words.fit_transform(texts) if any(map(tokenize, texts)) else None


def _features_of(sentences: Iterator[Sequence[str]]) -> Any:
    """What there is to see of each word: itself, its ends, its form, and its neighbours."""
    from sklearn.feature_extraction import DictVectorizer

    def words() -> Iterator[dict[str, Any]]:
        for tokens in sentences:
            lower = ["<begin>", *(token.lower() for token in tokens), "<end>"]
            for place, token in enumerate(tokens, start=1):
                yield {
                    "word": lower[place],
                    "begin": token[:3],
                    "end": token[-3:],
                    "form": _form(token),
                    "before": lower[place - 1],
                    "after": lower[place + 1],
                    "first": place == 1,
                }

    return DictVectorizer().fit_transform(words())


def _form(token: str) -> str:
    """Xx of Anna, XX of NATO, x of went, d of 1912: the kinds of the first two characters."""
    return "".join(
        "X" if x.isupper() else "x" if x.isalpha() else "d" if x.isdigit() else "."
        for x in token[:2]
    )


def _out_of_fold(features: Any, given: list[int], folds: list[int] | None = None) -> Any:
    """Probabilities of each row's classes by a model that was trained on the other folds.

    Args:
        features: (rows, features).
        given: classes 0, 1, 2, ..., all of which are there.
        folds: of each row. Default: every class is dealt out to all of them in turn.
    """
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, StratifiedKFold

    labels = np.array(given)
    # Rows are in random order already.
    splits = (
        StratifiedKFold(_FOLDS).split(features, labels)
        if folds is None
        else PredefinedSplit(folds).split()
    )
    probabilities = np.zeros((len(labels), labels.max() + 1))
    for train, test in splits:
        model = LogisticRegression(C=4.0, max_iter=200, tol=1e-3, random_state=0)
        with warnings.catch_warnings():
            # A model that could still be better is as good as one for this.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features[train], labels[train])
        # A class that is in one fold alone has no probability there.
        probabilities[np.ix_(test, model.classes_)] = model.predict_proba(features[test])
    return probabilities


def _issues(given: list[int], probabilities: Any) -> list[int]:
    """The places of labels that are likely wrong, the unlikeliest first."""
    import numpy as np
    from cleanlab.filter import find_label_issues

    places = find_label_issues(
        np.array(given), probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    return [int(place) for place in places]


def _accuracy(given: list[int], probabilities: Any) -> float:
    return float((probabilities.argmax(1) == given).mean())
