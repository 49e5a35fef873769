"""Rows with almost the same text.

Texts are near-duplicates if their sets of 5-grams of characters have a Jaccard similarity of at
least ``similarity``, in the form in which texts are compared
(:func:`~fastattn.data.clean.text_key`).
Candidates come from MinHash signatures (rensa, in Rust) cut into bands: texts that agree in a band
are candidates, and their similarity is then computed from the texts themselves. So what is called
a near-duplicate is one; of those at the threshold itself 1 % are missed, of closer ones fewer.
Rows that are linked by a chain of near-duplicates are a cluster.

Bands are sorted one at a time from files, so memory is a few dozen bytes a row. Measured on
200,000 sentences of reviews (2026-11, one core of a busy machine): 15 s and 74 MiB; 11 s and 273
MiB with rensa's own LSH index, 220 s and 676 MiB with datasketch's.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastattn.data.build.ingest import compared_text
from fastattn.data.build.progress import Progress
from fastattn.data.build.store import Kept, Store
from fastattn.data.clean import text_key

_GRAM = 5  # characters
_PERMUTATIONS = 128  # at most
_SEED = 42  # of the permutations; the result is checked against the texts, so any will do
# Texts whose signatures are made at once: at most so many, and with about so many characters, each
# of which takes some 50 bytes for a moment.
_BATCH = 4096
_BATCH_CHARACTERS = 2**20
_RECALL = 0.99  # of pairs at the threshold
_EXAMPLES = 200


class NearDuplicate(NamedTuple):
    """Two rows of a cluster, by their places in the order of keys."""

    first: int
    second: int
    similarity: float
    same_answer: bool


class Clusters:
    """Disjoint sets of rows, by their places in the order of keys."""

    def __init__(self, size: int) -> None:
        self._parent = array("q", range(size))

    def find(self, place: int) -> int:
        """Returns the first row of the cluster."""
        parent = self._parent
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    def join(self, a: int, b: int) -> None:
        """Makes one cluster of two."""
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)

    def roots(self) -> np.ndarray[Any, Any]:
        """Returns the first row of each row's cluster."""
        return np.array([self.find(place) for place in range(len(self._parent))], dtype=np.int64)


class Found(NamedTuple):
    """The clusters, and some of the pairs that made them."""

    clusters: Clusters
    pairs: list[NearDuplicate]
    disagreements: int  # pairs whose labels differ


def bands_and_rows(similarity: float) -> tuple[int, int]:
    """Returns how signatures are cut: the longest bands that still find 99 % at the threshold."""
    for rows in range(32, 1, -1):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= _RECALL:
            return bands, rows
    return _PERMUTATIONS, 1


def find_near_duplicates(
    store: Store, task: str, similarity: float, num_rows: int, folder: Path, progress: Progress
) -> Found:
    """Returns the clusters of near-duplicates among the kept rows.

    Args:
        num_rows: how many rows the store keeps.
        folder: for working files.
    """
    bands, rows = bands_and_rows(similarity)
    files = [folder / f"band-{band}" for band in range(bands)]
    ids = _write_bands(store, task, files, rows, num_rows, progress)
    clusters, disagreements = Clusters(num_rows), 0
    pairs: list[NearDuplicate] = []
    check = _Check(store, task, ids)
    with progress.stage("comparing", bands) as advance:
        for file in files:
            for a, b in _candidates(np.fromfile(file, dtype=np.uint64)):
                if clusters.find(a) == clusters.find(b):
                    continue
                found = check(a, b)
                if found.similarity < similarity:
                    continue
                clusters.join(a, b)
                disagreements += not found.same_answer
                # Those that contradict each other are few, and what a person wants to see.
                if len(pairs) < _EXAMPLES or (not found.same_answer and disagreements <= _EXAMPLES):
                    pairs.append(found)
            file.unlink()
            advance(1)
    return Found(clusters, pairs, disagreements)


def _write_bands(
    store: Store, task: str, files: list[Path], rows: int, num_rows: int, progress: Progress
) -> array[int]:
    """Appends a hash of each band of each text to the band's file; returns the rows' ids."""
    ids = array("q")
    handles = [file.open("wb") for file in files]
    try:
        with progress.stage("signatures", num_rows) as advance:
            for batch in _batches(store.kept()):
                ids.extend(row.id for row in batch)
                texts = [text_key(compared_text(task, row.content())) for row in batch]
                for handle, hashes in zip(handles, _bands(texts, len(files), rows), strict=True):
                    handle.write(hashes.tobytes())
                advance(len(batch))
    finally:
        for handle in handles:
            handle.close()
    return ids


def _batches(rows: Iterator[Kept]) -> Iterator[list[Kept]]:
    batch: list[Kept] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.body)
        if len(batch) == _BATCH or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _bands(texts: list[str], bands: int, rows: int) -> np.ndarray[Any, Any]:
    """Hashes of the bands of the texts' signatures: (bands, texts), uint64."""
    from rensa import RMinHash

    grams, offsets = _gram_hashes(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(grams, offsets, bands * rows, _SEED)
    signatures = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(texts), bands, rows)
    hashes = signatures[:, :, 0].copy()
    for row in range(1, rows):
        hashes = _mix(hashes) + signatures[:, :, row]
    return np.ascontiguousarray(hashes.T)


def _mix(hashes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    hashes = hashes * np.uint64(0x9E3779B97F4A7C15)
    return hashes ^ (hashes >> np.uint64(29))


def _gram_hashes(texts: list[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Hashes of the 5-grams of all texts one after another, and where each text begins.

    A text shorter than that is padded with zeros to one 5-gram.
    """
    padded = [text.ljust(_GRAM, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    characters = codes.astype(np.uint64)
    windows = len(characters) - _GRAM + 1
    hashes = characters[:windows].copy()
    for place in range(1, _GRAM):
        hashes = hashes * np.uint64(1_000_003) + characters[place : windows + place]
    hashes = _mix(hashes)
    lengths = np.array([len(text) for text in padded])
    starts = np.cumsum(lengths) - lengths
    counts = lengths - _GRAM + 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    # Windows that reach into the next text are left out.
    inside = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return hashes[inside], offsets.astype(np.uint64)


def _candidates(hashes: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    """Pairs of texts that agree in a band: each with the one before it and with the first."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    agrees = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    first = -1
    last = -2
    for place in agrees.tolist():
        if place != last + 1:
            first = int(order[place - 1])
        last = place
        before, here = int(order[place - 1]), int(order[place])
        yield before, here
        if first != before:
            yield first, here


class _Check:
    """Compares the texts of two rows."""

    def __init__(self, store: Store, task: str, ids: array[int]) -> None:
        self._store = store
        self._task = task
        self._ids = ids
        # A bucket is compared with its first text again and again.
        self._row = lru_cache(maxsize=256)(self._read)

    def _read(self, place: int) -> tuple[frozenset[str], str]:
        sql = "SELECT body, answer FROM rows WHERE id = ?"
        body, answer = next(self._store.query(sql, self._ids[place]))
        row = json.loads(body)
        return grams(text_key(compared_text(self._task, row))), answer

    def __call__(self, a: int, b: int) -> NearDuplicate:
        first, second = sorted((a, b))
        (x, answer_x), (y, answer_y) = self._row(first), self._row(second)
        return NearDuplicate(first, second, jaccard(x, y), answer_x == answer_y)


def grams(text: str) -> frozenset[str]:
    """Returns the set of 5-grams of characters of a text."""
    text = text.ljust(_GRAM, "\0")
    return frozenset(text[i : i + _GRAM] for i in range(len(text) - _GRAM + 1))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Returns the share of the members of two sets that both have."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def describe(
    store: Store, ids: np.ndarray[Any, Any], found: Found | None, number: int = 10
) -> list[dict[str, Any]]:
    """Returns some pairs for the report: those whose labels differ first, then the closest."""
    if found is None:
        return []
    pairs = sorted(
        found.pairs, key=lambda pair: (pair.same_answer, -pair.similarity, pair.first, pair.second)
    )
    sql = "SELECT file, row, answer, body FROM rows WHERE id = ?"
    return [
        {
            "similarity": round(pair.similarity, 3),
            "rows": [
                dict(
                    zip(
                        ("file", "row", "label", "body"),
                        next(store.query(sql, int(ids[place]))),
                        strict=True,
                    )
                )
                for place in (pair.first, pair.second)
            ],
        }
        for pair in pairs[:number]
    ]
