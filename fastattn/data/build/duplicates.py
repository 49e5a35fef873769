"""Rows with the same text, and questions with the same id.

Texts are the same if :func:`fastattn.data.clean.text_key` says so: letter case, blanks, HTML line
breaks and how accents are written do not count; in question answering context and question
together, in translation both sides.
"""

from __future__ import annotations

from fastattn.data.build.store import Store
from fastattn.data.readers import row_error
from fastattn.data.tasks import repeated_id
from fastattn.errors import DataError


def check_ids(store: Store, bad_rows: str) -> None:
    """Sees to questions that differ and have the id of another.

    Raises:
        DataError: there is one, and ``bad_rows`` is "stop". Otherwise all but the first of an id
            are rejected ("invalid").
    """
    found = store.query(
        "SELECT id, file, row, name, first_file, first_row FROM ("
        "SELECT id, file, row, body, json_extract(body, '$.id') AS name,"
        " first_value(file) OVER same AS first_file, first_value(row) OVER same AS first_row,"
        " first_value(body) OVER same AS first_body FROM rows WHERE reason IS NULL"
        " WINDOW same AS (PARTITION BY json_extract(body, '$.id') ORDER BY id)"
        ") WHERE body != first_body ORDER BY id"
    )
    rejected = []
    for number, file, row, name, first_file, first_row in found:
        problem, remedy = repeated_id(name, first_file, first_row)
        if bad_rows == "stop":
            error = row_error(file, row, problem, remedy)
            raise DataError(f"{error} Or use --bad-rows reject.")
        rejected.append((number, "invalid", problem))
    store.reject(rejected)


def reject_duplicates(store: Store) -> None:
    """Keeps one row of each text, in one split.

    In the pool and in each split of the source: rows of a text that differ in their labels are
    all rejected ("conflict"), as nobody can say which is right; of rows that agree the text that
    is first in alphabetical order stays ("duplicate"). Then the pool gives up what validation or
    test holds, and validation what test holds ("leak").
    """
    _reject_conflicts(store)
    _reject_copies(store)
    for held_out, giving in (("test", ("validation", None)), ("validation", (None,))):
        for split in giving:
            store.execute(
                "UPDATE rows SET reason = 'leak', detail = 'its text is in the source''s '"
                " || ?1 || ' split, too' WHERE reason IS NULL AND split IS ?2 AND key IN"
                " (SELECT key FROM rows WHERE reason IS NULL AND split IS ?1)",
                held_out,
                split,
            )


def _reject_conflicts(store: Store) -> None:
    # SQL finds no equality between NULLs, so the pool is '' where splits are compared.
    store.execute(
        "CREATE TABLE disputed AS SELECT key, ifnull(split, '') AS split,"
        " count(*) || ' rows of this text have ' || count(DISTINCT answer) || ' different labels'"
        " AS detail FROM rows WHERE reason IS NULL GROUP BY key, ifnull(split, '')"
        " HAVING count(DISTINCT answer) > 1"
    )
    store.execute("CREATE INDEX by_disputed ON disputed (key, split)")
    store.execute(
        "UPDATE rows SET reason = 'conflict', detail = (SELECT detail FROM disputed WHERE"
        " disputed.key = rows.key AND disputed.split = ifnull(rows.split, ''))"
        " WHERE reason IS NULL AND (key, ifnull(split, '')) IN (SELECT key, split FROM disputed)"
    )


def _reject_copies(store: Store) -> None:
    store.execute(
        "CREATE TABLE copies AS SELECT * FROM (SELECT id,"
        " row_number() OVER alike AS place, first_value(file) OVER alike AS file,"
        " first_value(row) OVER alike AS row FROM rows WHERE reason IS NULL AND key IN"
        " (SELECT key FROM rows WHERE reason IS NULL GROUP BY key HAVING count(*) > 1)"
        " WINDOW alike AS (PARTITION BY key, ifnull(split, '') ORDER BY body, file, row, id))"
        " WHERE place > 1"
    )
    store.execute("CREATE INDEX by_copy ON copies (id)")
    store.execute(
        "UPDATE rows SET reason = 'duplicate', detail = (SELECT 'same as row ' || copies.row ||"
        " ' of ' || copies.file FROM copies WHERE copies.id = rows.id)"
        " WHERE id IN (SELECT id FROM copies)"
    )
