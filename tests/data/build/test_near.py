"""Near-duplicates: that those called so are, and that few are missed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastattn.data.build.near import (
    Clusters,
    bands_and_rows,
    find_near_duplicates,
    grams,
    jaccard,
)
from fastattn.data.build.progress import Progress
from fastattn.data.build.store import Store

pytest.importorskip("rensa")


def store_of(texts: list[str], path: Path) -> Store:
    store = Store(path / "rows.sqlite")
    for i, text in enumerate(texts):
        store.add("a", i, None, {"text": text}, key=i.to_bytes(16, "big"), answer="", stratum="")
    store.index()
    return store


def sentences(number: int) -> list[str]:
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnop", k=6)) for _ in range(500)]
    return [" ".join(chance.choices(words, k=chance.randint(3, 20))) for _ in range(number)]


@pytest.mark.parametrize("similarity", [0.6, 0.8, 0.9])
def test_clusters_are_those_of_all_pairs(tmp_path: Path, similarity: float) -> None:
    chance = random.Random(1)
    texts = sentences(150)
    for text in texts[:80]:
        words = text.split()
        words[chance.randrange(len(words))] = "another"
        texts += [" ".join(words), f"{text}s"]
    texts += ["a", "b", "", "ab", "naïve café 😀", "naïve café 😀!"]
    store = store_of(texts, tmp_path)
    found = find_near_duplicates(
        store, "masked-lm", similarity, len(texts), tmp_path, Progress(False)
    )
    truth = Clusters(len(texts))
    sets = [grams(text) for text in texts]
    pairs = 0
    for a in range(len(texts)):
        for b in range(a):
            if jaccard(sets[a], sets[b]) >= similarity:
                pairs += 1
                if truth.find(a) != truth.find(b):
                    truth.join(a, b)
    ours, theirs = found.clusters.roots(), truth.roots()
    # Nothing is put together that does not belong together; one pair in a hundred may be missed.
    assert all(theirs[place] == theirs[root] for place, root in enumerate(ours))
    assert pairs > 10 and (ours != theirs).sum() <= 0.01 * pairs + 1
    assert not list(tmp_path.glob("band-*"))


@given(st.floats(0.5, 1.0))
def test_bands_find_pairs_at_the_threshold(similarity: float) -> None:
    bands, rows = bands_and_rows(similarity)
    assert bands * rows <= 128
    assert 1 - (1 - similarity**rows) ** bands >= 0.99


def test_a_cluster_is_named_by_its_first_row() -> None:
    clusters = Clusters(5)
    clusters.join(4, 2)
    clusters.join(2, 3)
    assert clusters.roots().tolist() == [0, 1, 2, 2, 2]
