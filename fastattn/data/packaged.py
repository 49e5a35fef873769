"""Files of packages from PyPI that bring data or a model, found without importing the packages."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def packaged_file(package: str, name: str, folder: str | None = None) -> Path | None:
    """Returns a file of an installed package; None if the package or the file is not there.

    Args:
        folder: name of the folder that the file lies in. Default: any.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == name and folder in (None, file.parent.name):
            return Path(str(file.locate()))
    return None
