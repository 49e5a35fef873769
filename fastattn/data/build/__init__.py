"""Builds a checked data set with splits from the files people have: ``fastattn data build``.

    from fastattn.data.build import BuildConfig, build

    report = build(BuildConfig(["reviews.csv"], "data/reviews"))

What happens, in this order (one module each):

    config      what is asked for, checked before anything is read
    ingest      files -> rows of the task in a working table; bad bytes, broken rows, odd characters
    duplicates  the same text twice: once is enough; with two labels: not at all
    near        almost the same text: in one split, or once
    assign      rows -> train, validation, test
    suspects    labels that a simple model finds unlikely
    balance     as many rows of each class, and altered copies, for training alone
    padding     what padding costs the model that trains on it
    report      all of it for people (HTML) and programs (JSON)
    folder      the data set appears whole or not at all

Every row that is read is in a split or in ``rejects.jsonl`` with its reason.
"""

from fastattn.data.build.config import BuildConfig
from fastattn.data.build.run import build

__all__ = ["BuildConfig", "build"]
