"""Train, validation and test sets that share no text, the same on every machine.

The rule. Each different text (:func:`fastattn.data.clean.text_key`) gets the number
``sha256(f"{split_seed}:{key}")``. Within each class texts are ordered by that number. The test set
takes the first of each class, the validation set the next, the training set the last, each in
proportion to the sizes of the classes. So the order of the rows does not matter, the test set
does not change when more is trained on, and a text is in one place of one order: in one set only.

A test or validation set that the source brings is kept; what it holds is removed from the
training set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from fastattn.errors import DataError

# A number of rows, or all that there are.
Size = int | Literal["all"]

# Share of the rows for a set that the source does not bring, and the most it gets.
HELD_OUT_SHARE = 0.1
MAX_HELD_OUT = 5_000


class Keyed(Protocol):
    """A row of a kind of its own, which tells what it is compared by and its class."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> int: ...  # 0 for all, where rows have no classes


RowT = TypeVar("RowT", bound=Keyed)


class Texts(NamedTuple):
    """One set: texts and their classes."""

    texts: list[str]
    labels: list[int]


class Sizes(NamedTuple):
    """How many rows each set shall have; None: the default of its kind."""

    train: Size | None = None
    validation: Size | None = None
    test: Size | None = None


def check_sizes(sizes: Sizes) -> None:
    """Raises a DataError unless each size is None, "all" or a number that makes sense."""
    smallest = {"train": 2, "validation": 0, "test": 1}
    for name, size in zip(Sizes._fields, sizes, strict=True):
        if size is None or size == "all":
            continue
        if not isinstance(size, int) or size < smallest[name]:
            raise DataError(
                f'data: {name}_size must be "all" or a whole number of at least {smallest[name]}; '
                f"got {size!r}. Use --{name}-size."
            )


def remove_shared(sets: dict[str, list[RowT]]) -> dict[str, int]:
    """Takes out of train what validation or test holds, and out of validation what test holds.

    Returns:
        How many rows each of the sets lost.
    """
    held_out: set[str] = set()
    removed: dict[str, int] = {}
    for name in ("test", "validation", "train"):
        if name not in sets:
            continue
        before = len(sets[name])
        sets[name] = [row for row in sets[name] if row.key not in held_out]
        removed[name] = before - len(sets[name])
        held_out.update(row.key for row in sets[name])
    return removed


def largest_remainder(size: int, totals: Mapping[int, int]) -> dict[int, int]:
    """Splits a size over classes in proportion to their totals."""
    every = max(1, sum(totals.values()))
    exact = {label: size * total / every for label, total in totals.items()}
    shares = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (shares[label] - exact[label], label))
    for label in by_remainder[: size - sum(shares.values())]:
        shares[label] += 1
    return shares


def make_splits(
    train: Sequence[RowT],
    validation: Sequence[RowT] | None,
    test: Sequence[RowT] | None,
    sizes: Sizes,
    split_seed: int,
    label_names: Sequence[str] = (),
) -> tuple[list[RowT], list[RowT], list[RowT]]:
    """Returns the training, validation and test rows by the rule above.

    Args:
        train: different texts to train on, and to take the sets from that are None.
        validation: the source's own validation set, without texts of test.
        test: the source's own test set.
        label_names: of the classes, for messages.

    Raises:
        DataError: more rows are asked for than there are, there are none to train or test on, or a
            class has none to train on.
    """
    pool = _Pool(train, split_seed)
    num_train = len(train)
    if test is None:
        test_rows = pool.take_first(_size("test", sizes.test, num_train, None))
    else:
        own = _Pool(test, split_seed)
        test_rows = own.take_first(_size("test", sizes.test, len(test), len(test)))
    if validation is None:
        size = _size("validation", sizes.validation, pool.num_rows, None, num_train)
        validation_rows = pool.take_first(size)
    else:
        own = _Pool(validation, split_seed)
        size = _size("validation", sizes.validation, len(validation), len(validation))
        validation_rows = own.take_first(size)
    size = _size("train", sizes.train, pool.num_rows, pool.num_rows)
    train_rows = pool.take_last(size)
    _check_sets(train_rows, validation_rows, test_rows, label_names)
    return train_rows, validation_rows, test_rows


def _size(
    name: str,
    asked: Size | None,
    available: int,
    default: int | None,
    num_rows: int | None = None,
) -> int:
    """The number of rows of a set. Without a default it is a share of num_rows."""
    if asked is None:
        share = round(HELD_OUT_SHARE * (available if num_rows is None else num_rows))
        return min(max(1, share), MAX_HELD_OUT) if default is None else default
    if asked == "all":
        return available
    if asked > available:
        raise DataError(
            f"data: {name}_size must be at most the {available:,} different texts that are left "
            f"for it; got {asked:,}. Ask for fewer with --{name}-size, or make the other sets "
            "smaller."
        )
    return asked


def _check_sets(
    train: Sequence[Keyed],
    validation: Sequence[Keyed],
    test: Sequence[Keyed],
    label_names: Sequence[str],
) -> None:
    every = [*train, *validation, *test]
    for name, rows in (("training", train), ("test", test)):
        if not rows:
            raise DataError(
                f"data: the {name} set must hold a row; got none, of {len(every):,} different "
                "texts. Give more rows, or make the other sets smaller."
            )
    missing = {row.label for row in every} - {row.label for row in train}
    if missing:
        names = [repr(label_names[x]) if label_names else str(x) for x in sorted(missing)]
        raise DataError(
            "data: the training set must hold every class; got no row of class "
            f"{', '.join(names[:8])}. Give the training set rows of it or remove it from the "
            "others, ask for more training rows with --train-size, or for fewer of the others with "
            "--test-size and --validation-size."
        )


def _digest(numbered: tuple[str, Keyed]) -> str:
    return numbered[0]


class _Pool(Generic[RowT]):
    """Rows in the order of the rule, of which sets are taken from both ends."""

    def __init__(self, rows: Sequence[RowT], split_seed: int) -> None:
        self._classes: dict[int, list[tuple[str, RowT]]] = {}
        for row in rows:
            digest = hashlib.sha256(f"{split_seed}:{row.key}".encode()).hexdigest()
            self._classes.setdefault(row.label, []).append((digest, row))
        self._classes = {
            label: sorted(rows, key=_digest) for label, rows in sorted(self._classes.items())
        }

    @property
    def num_rows(self) -> int:
        return sum(map(len, self._classes.values()))

    def take_first(self, size: int) -> list[RowT]:
        taken: list[tuple[str, RowT]] = []
        for label, share in self._shares(size).items():
            taken += self._classes[label][:share]
            del self._classes[label][:share]
        return [row for _, row in sorted(taken, key=_digest)]

    def take_last(self, size: int) -> list[RowT]:
        taken: list[tuple[str, RowT]] = []
        for label, share in self._shares(size).items():
            start = len(self._classes[label]) - share
            taken += self._classes[label][start:]
            del self._classes[label][start:]
        return [row for _, row in sorted(taken, key=_digest)]

    def _shares(self, size: int) -> dict[int, int]:
        return largest_remainder(size, {label: len(x) for label, x in self._classes.items()})
