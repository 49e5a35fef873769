"""Which split each row goes to.

The unit is a row, or rows that must stay together: near-duplicates, rows of one group, questions
about one context, translations of one sentence. Units are ordered by the key of their first row,
which is the number ``sha256(f"{seed}:{text}")`` of :mod:`fastattn.data.splits`. Within each class
the test set takes units from the front until it has its share, then the validation set, and the
training set gets the rest. A share is met as closely as units allow: one is taken if at least half
of its rows are still missing, and what is taken too many or too few is made up for in the next
class. So neither the order of the rows nor of the files matters.

Splits that a source brings stay as they are. Rows of the pool that share a unit with them are
rejected ("leak").
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from fastattn.data.build.config import BuildConfig
from fastattn.data.build.ingest import SEPARATOR
from fastattn.data.build.near import Clusters, Found
from fastattn.data.build.store import Store
from fastattn.data.splits import HELD_OUT_SHARE, MAX_HELD_OUT, largest_remainder
from fastattn.errors import DataError

SPLITS = ("train", "validation", "test")
_TRAIN, _VALIDATION, _TEST = range(3)


class Columns(NamedTuple):
    """What there is to know of each kept row for the split, in the order of keys."""

    ids: np.ndarray[Any, Any]  # int64
    splits: np.ndarray[Any, Any]  # int8: 0 for the pool, or the source's own
    strata: np.ndarray[Any, Any]  # int32: index into names
    names: list[str]
    groups: Clusters  # rows of one group


class Assigned(NamedTuple):
    """The split of each kept row, in the order of keys, and facts for the report."""

    ids: np.ndarray[Any, Any]
    splits: np.ndarray[Any, Any]  # int8: index into SPLITS
    units: np.ndarray[Any, Any]  # int64: the first row of each row's unit
    facts: dict[str, Any]


def read_columns(store: Store, num_rows: int) -> Columns:
    """Reads the columns of the kept rows."""
    ids, splits, strata = array("q"), array("b"), array("i")
    codes: dict[str, int] = {}
    firsts: dict[bytes, int] = {}
    groups = Clusters(num_rows)
    sql = (
        "SELECT id, split, stratum, grp FROM rows INDEXED BY by_key"
        " WHERE reason IS NULL ORDER BY key"
    )
    for place, (number, split, stratum, group) in enumerate(store.query(sql)):
        ids.append(number)
        splits.append(SPLITS.index(split) if split else _TRAIN)
        strata.append(codes.setdefault(stratum, len(codes)))
        if group is not None:
            first = firsts.setdefault(group, place)
            if first != place:
                groups.join(first, place)
    rarest = _rarest(codes, Counter(strata))
    names = sorted(set(rarest))
    index = {name: code for code, name in enumerate(names)}
    to_name = np.array([index[name] for name in rarest] or [0], dtype=np.int32)
    return Columns(
        np.frombuffer(ids, dtype=np.int64).copy(),
        np.frombuffer(splits, dtype=np.int8).copy(),
        to_name[np.frombuffer(strata, dtype=np.int32)],
        names,
        groups,
    )


def _rarest(codes: dict[str, int], rows: Counter[int]) -> list[str]:
    """The rarest label of each combination of labels, in the order of the codes."""
    counts: Counter[str] = Counter()
    for stratum, code in codes.items():
        for label in stratum.split(SEPARATOR):
            counts[label] += rows[code]
    return [
        min(stratum.split(SEPARATOR), key=lambda label: (counts[label], label)) for stratum in codes
    ]


def assign(config: BuildConfig, store: Store, columns: Columns, found: Found | None) -> Assigned:
    """Chooses the split of every kept row, and rejects those that would leak.

    Raises:
        DataError: a split would be empty, or a class would have no row to train on.
    """
    near = found.clusters.roots() if found else np.arange(len(columns.ids))
    keep = np.ones(len(columns.ids), dtype=bool)
    if config.near_duplicates == "drop" and found:
        keep = _drop_near(store, columns, near)
    units = _units(columns.groups, near)
    keep &= _drop_leaks(store, columns, units, near, keep)
    splits = columns.splits.copy()
    sizes = _sizes(config, columns, keep)
    # Rows are in the order of their keys, and a unit is named by its first row.
    pool = np.flatnonzero(keep & (columns.splits == _TRAIN))
    _fill(splits, pool, units, columns.strata, sizes)
    ids, splits, units, strata = (x[keep] for x in (columns.ids, splits, units, columns.strata))
    _check(config, splits, strata, columns.names)
    return Assigned(ids, splits, units, _facts(units, near, found))


def _units(groups: Clusters, near: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    for place in np.flatnonzero(near != np.arange(len(near))).tolist():
        groups.join(int(near[place]), place)
    return groups.roots()


def _drop_near(store: Store, columns: Columns, near: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Keeps one row of each cluster: of test if one is there, of validation, or the first."""
    order = np.lexsort((np.arange(len(near)), -columns.splits.astype(np.int64), near))
    first = np.ones(len(near), dtype=bool)
    first[1:] = near[order][1:] != near[order][:-1]
    keep = np.zeros(len(near), dtype=bool)
    keep[order[first]] = True
    kept_of = np.empty(len(near), dtype=np.int64)
    kept_of[near[order[first]]] = order[first]
    store.reject(
        (int(columns.ids[place]), "near_duplicate", _same(store, columns, kept_of[near[place]]))
        for place in np.flatnonzero(~keep).tolist()
    )
    return keep


def _same(store: Store, columns: Columns, place: int) -> str:
    sql = "SELECT file, row FROM rows WHERE id = ?"
    file, row = next(store.query(sql, int(columns.ids[place])))
    return f"almost the same as row {row} of {file}"


def _drop_leaks(
    store: Store,
    columns: Columns,
    units: np.ndarray[Any, Any],
    near: np.ndarray[Any, Any],
    keep: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Rejects rows whose unit reaches into a split that goes before theirs, test first."""
    highest = np.zeros(len(units), dtype=np.int8)
    np.maximum.at(highest, units[keep], columns.splits[keep])
    leaks = keep & (columns.splits < highest[units])
    held_out = {_VALIDATION: "validation", _TEST: "test"}
    in_cluster = np.bincount(near, minlength=len(near))[near] > 1
    store.reject(
        (
            int(columns.ids[place]),
            "leak",
            f"{'near-duplicate of' if in_cluster[place] else 'same group as'} a row that the "
            f"source has in its {held_out[int(highest[units[place]])]} split",
        )
        for place in np.flatnonzero(leaks).tolist()
    )
    return ~leaks


def _sizes(config: BuildConfig, columns: Columns, keep: np.ndarray[Any, Any]) -> dict[int, int]:
    """How many rows of the pool the validation and the test set take."""
    pool = int((keep & (columns.splits == _TRAIN)).sum())
    sizes = {}
    for code, asked in ((_TEST, config.test_size), (_VALIDATION, config.validation_size)):
        name = SPLITS[code]
        if (columns.splits == code).any():
            if asked is not None:
                raise DataError(
                    f"data build: {name}_size must be left out where the source has a {name} "
                    f"split, which is kept as it is; got {asked}. Leave --{name}-size out."
                )
            sizes[code] = 0
        elif asked is None:
            sizes[code] = min(max(1, round(HELD_OUT_SHARE * pool)), MAX_HELD_OUT)
        else:
            sizes[code] = round(asked * pool) if asked < 1 else int(asked)
    if sum(sizes.values()) >= max(pool, 1):
        raise DataError(
            "data build: validation_size and test_size must leave rows to train on; got "
            f"{sizes[_VALIDATION]:,} and {sizes[_TEST]:,} of {pool:,}. Ask for fewer."
        )
    return sizes


def _fill(
    splits: np.ndarray[Any, Any],
    pool: np.ndarray[Any, Any],
    units: np.ndarray[Any, Any],
    strata: np.ndarray[Any, Any],
    sizes: dict[int, int],
) -> None:
    """Writes the splits of the rows of the pool."""
    rows = np.bincount(units[pool], minlength=len(units))  # of each unit
    firsts = np.unique(units[pool])  # in the order of keys
    of_class: dict[int, list[int]] = {}
    for unit in firsts.tolist():
        of_class.setdefault(int(strata[unit]), []).append(unit)
    totals = {code: int(rows[of_class[code]].sum()) for code in sorted(of_class)}
    shares = {split: largest_remainder(size, totals) for split, size in sizes.items()}
    chosen = np.zeros(len(units), dtype=np.int8)
    left = dict.fromkeys((_TEST, _VALIDATION), 0)
    for code, members in sorted(of_class.items()):
        for split in left:
            left[split] += shares[split][code]
        for unit in members:
            size = int(rows[unit])
            for split in left:
                if left[split] >= size / 2:
                    left[split] -= size
                    chosen[unit] = split
                    break
    splits[pool] = chosen[units[pool]]


def _check(
    config: BuildConfig,
    splits: np.ndarray[Any, Any],
    strata: np.ndarray[Any, Any],
    names: list[str],
) -> None:
    wanted = {_TRAIN: None, _VALIDATION: config.validation_size, _TEST: config.test_size}
    for code, asked in wanted.items():
        if asked != 0 and not (splits == code).any():
            raise DataError(
                f"data build: the {SPLITS[code]} split must hold a row; got none of the "
                f"{len(splits):,} rows that are left. Give more rows, smaller groups, or another "
                f"--{SPLITS[code]}-size{' (0: no such split)' if code else ''}."
            )
    if config.task in ("multilabel", "token-classification") and not any(names):
        option = "--label-column"
        if config.task == "token-classification":
            option = "--tag-column, or --label-column"
        raise DataError(
            f"data build: a row must have a label, for a model to learn it; got none in all "
            f"{len(splits):,} rows. Name the column of labels with {option}."
        )
    if config.task != "classification":
        return
    if len(names) < 2:
        raise DataError(
            f"data build: there must be at least two classes; got only {names[0]!r} in "
            f"{len(splits):,} rows. Name another column with --label-column, or use --task "
            "masked-lm for text without labels."
        )
    missing = set(strata.tolist()) - set(strata[splits == _TRAIN].tolist())
    if missing:
        raise DataError(
            "data build: the training split must hold every class; got none of class "
            f"{names[min(missing)]!r}. Give more rows of it, or make the other splits smaller."
        )


def _facts(
    units: np.ndarray[Any, Any], near: np.ndarray[Any, Any], found: Found | None
) -> dict[str, Any]:
    sizes = np.bincount(near, minlength=1)
    clusters = sizes[sizes > 1]
    of_units = np.bincount(units, minlength=1)
    return {
        "clusters": len(clusters),
        "rows_in_clusters": int(clusters.sum()),
        "largest_cluster": int(clusters.max()) if len(clusters) else 0,
        "largest_unit": int(of_units.max()),
        "pairs_with_different_labels": found.disagreements if found else 0,
    }
