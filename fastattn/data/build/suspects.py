"""Labels that a simple model finds unlikely.

A logistic regression on TF-IDF of words and pairs of words predicts each row from a model that has
not seen it (five folds), and cleanlab's confident learning says which labels are likely wrong.
Such a model is right about many of them and wrong about some, so by default they are only flagged.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from fastattn.data.build.ingest import compared_text
from fastattn.data.build.store import Store

# More rows teach such a model little, and take its memory and time.
MAX_ROWS = 50_000
_FOLDS = 5
_MAX_FEATURES = 2**17


class _Sample(NamedTuple):
    ids: list[int]
    texts: list[str]
    labels: list[str]


def find_suspects(store: Store, task: str, drop: bool) -> dict[str, Any]:
    """Flags rows with suspicious labels, or rejects them ("suspicious_label").

    Looks at the first 50,000 rows in the order of keys, a random sample; classes with fewer
    than five rows there are left out.

    Returns:
        Facts for the report: rows checked, suspicious ones, accuracy of the model.
    """
    sample = _sample(store, task)
    names = sorted(set(sample.labels))
    if len(names) < 2:
        return {"checked": 0, "suspicious": 0, "why_not": "fewer than two classes of five rows"}
    probabilities = _out_of_fold(sample, names)
    import numpy as np
    from cleanlab.filter import find_label_issues

    given = np.array([names.index(label) for label in sample.labels])
    places = find_label_issues(
        given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    best = probabilities.argmax(1)
    found = [
        (sample.ids[place], float(probabilities[place, given[place]]), names[best[place]])
        for place in places.tolist()
    ]
    if drop:
        store.reject(
            (number, "suspicious_label", f"a simple model gives its label {p:.1%}, prefers {other}")
            for number, p, other in found
        )
    else:
        store.suspect(found)
    return {
        "checked": len(sample.ids),
        "suspicious": len(found),
        "model_accuracy": round(float((best == given).mean()), 4),
        "action": "rejected" if drop else "flagged",
    }


def _sample(store: Store, task: str) -> _Sample:
    sample = _Sample([], [], [])
    for row in store.kept():
        sample.ids.append(row.id)
        sample.texts.append(compared_text(task, row.content()))
        sample.labels.append(row.stratum)
        if len(sample.ids) == MAX_ROWS:
            break
    counts = Counter(sample.labels)
    large = [i for i, label in enumerate(sample.labels) if counts[label] >= _FOLDS]
    return _Sample(
        [sample.ids[i] for i in large],
        [sample.texts[i] for i in large],
        [sample.labels[i] for i in large],
    )


def _out_of_fold(sample: _Sample, names: list[str]) -> Any:
    """Probabilities of each row's classes by a model that was trained on the other folds."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    # The words' weights do not depend on labels, so they are found once and not in each fold.
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_MAX_FEATURES)
    given = [names.index(label) for label in sample.labels]
    return cross_val_predict(
        LogisticRegression(C=4.0, max_iter=200, tol=1e-3, random_state=0),
        words.fit_transform(sample.texts),
        given,
        cv=StratifiedKFold(_FOLDS),  # rows are in random order already
        method="predict_proba",
    )
