"""The working table: every row that is read, on disk, so that memory does not grow with them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Rows written at once.
_BATCH = 1_000
_SCHEMA = """
CREATE TABLE rows (
    id INTEGER PRIMARY KEY,   -- in the order of reading
    file TEXT NOT NULL,
    row INTEGER NOT NULL,
    split TEXT,               -- validation or test if the source says so; NULL: the pool
    key BLOB,                 -- digest of the text in its compared form; orders every split
    answer TEXT,              -- label, labels, tags, ... as text, to be compared
    stratum TEXT,             -- class for stratified splits
    grp BLOB,                 -- digest of what must stay together
    body TEXT,                -- the row of the task, or what was there, as JSON
    words INTEGER,
    reason TEXT,              -- why it is rejected; NULL while it is kept
    detail TEXT,
    suspicion REAL,           -- probability that a model gives the label, where it is suspicious
    suspect TEXT              -- the label in question; detail: the one that the model prefers
);
"""


class Kept(NamedTuple):
    """A row that is not rejected."""

    id: int
    file: str
    row: int
    split: str | None
    key: bytes
    answer: str
    stratum: str
    grp: bytes | None
    body: str
    words: int

    def content(self) -> dict[str, Any]:
        """Returns the row of the task."""
        return json.loads(self.body)


class Store:
    """A table of rows in a file of the staging folder."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        # Nobody reads this file after a crash, so nothing waits for the disk.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)
        self._waiting: list[tuple[Any, ...]] = []

    def add(
        self,
        file: str,
        row: int,
        split: str | None,
        body: Any,
        *,
        key: bytes | None = None,
        answer: str | None = None,
        stratum: str | None = None,
        grp: bytes | None = None,
        words: int | None = None,
        reason: str | None = None,
        detail: str | None = None,
    ) -> None:
        """Adds a row, kept unless it comes with a reason."""
        text = json.dumps(body, ensure_ascii=False)
        self._waiting.append(
            (file, row, split, key, answer, stratum, grp, text, words, reason, detail)
        )
        if len(self._waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait."""
        self._connection.executemany(
            "INSERT INTO rows (file, row, split, key, answer, stratum, grp, body, words, reason,"
            " detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self._waiting,
        )
        self._waiting.clear()

    def index(self) -> None:
        """Makes the rows quick to find by their key; to be called after the last is added."""
        self.flush()
        self._connection.execute("CREATE INDEX by_key ON rows (key, split) WHERE reason IS NULL")

    def kept(self) -> Iterator[Kept]:
        """Yields the rows that are kept in the order of their keys."""
        cursor = self._connection.execute(
            f"SELECT {', '.join(Kept._fields)} FROM rows INDEXED BY by_key"
            " WHERE reason IS NULL ORDER BY key"
        )
        return map(Kept._make, cursor)

    def reject(self, rejected: Iterable[tuple[int, str, str]]) -> None:
        """Rejects rows: (id, reason, detail)."""
        self._connection.executemany(
            "UPDATE rows SET reason = ?2, detail = ?3 WHERE id = ?1", list(rejected)
        )

    def suspect(self, suspects: Iterable[tuple[int, float, str, str]]) -> None:
        """Notes what a model thinks of labels: (id, probability, label, the one it prefers)."""
        self._connection.executemany(
            "UPDATE rows SET suspicion = ?2, suspect = ?3, detail = ?4 WHERE id = ?1",
            list(suspects),
        )

    def query(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Yields the result of a query."""
        return iter(self._connection.execute(sql, values))

    def count(self, condition: str = "1", *values: Any) -> int:
        """Returns the number of rows for which a condition holds."""
        return next(self.query(f"SELECT count(*) FROM rows WHERE {condition}", *values))[0]

    def bodies(self, ids: list[int]) -> list[str]:
        """Returns the rows of the task with these ids, as JSON."""
        one = "SELECT body FROM rows WHERE id = ?"
        return [self._connection.execute(one, (number,)).fetchone()[0] for number in ids]

    def execute(self, sql: str, *values: Any) -> int:
        """Runs a statement; returns the number of rows it changed."""
        return self._connection.execute(sql, values).rowcount

    def close(self) -> None:
        """Gives the file up."""
        self._connection.close()
