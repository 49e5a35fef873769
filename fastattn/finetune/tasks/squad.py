"""The scores of extractive question answering, by the rules of SQuAD's official script.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016), and "Know
What You Don't Know" (2018) for questions without an answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def normalise(answer: str) -> str:
    """Returns an answer in lower case, without punctuation, articles and needless spaces."""
    letters = "".join(letter for letter in answer.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", letters).split())


def exact_match(answer: str, target: str) -> float:
    """Returns 1 if two answers are the same but for case, punctuation and articles, or else 0."""
    return float(normalise(answer) == normalise(target))


def f1(answer: str, target: str) -> float:
    """Returns the harmonic mean of the shares of words that two answers have in common."""
    words, wanted = normalise(answer).split(), normalise(target).split()
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def best(score: Callable[[str, str], float], answer: str, targets: Sequence[str]) -> float:
    """Returns the score against the target that is nearest; without targets, "" is right.

    Targets of which the normalisation leaves nothing are no answers, unless there is no other.
    """
    real = [target for target in targets if normalise(target)] or [""]
    return max(score(answer, target) for target in real)


def scores(answers: Sequence[str], targets: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns the means over questions, from 0 to 1.

    Args:
        answers: "" where the question is said to have none.
        targets: the right answers of each question; none if it has none.
    """
    pairs = list(zip(answers, targets, strict=True))
    return {
        "f1": sum(best(f1, *pair) for pair in pairs) / len(pairs),
        "exact_match": sum(best(exact_match, *pair) for pair in pairs) / len(pairs),
    }
