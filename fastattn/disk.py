"""Files written whole, and what a disk refuses: places, and what it has no room for."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_RUST = re.compile(r"\(os error (\d+)\)")  # as safetensors ends its messages
_SQLITE = ("disk is full", "disk I/O error", "readonly")
# torch.save's archive names no cause.
_TORCH = ("PytorchStreamWriter failed", "unexpected pos")


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one move: it is never half there, and an older one stays until then."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def refusal(error: BaseException) -> str | None:
    """Returns why a disk did not take what was written, or None if the error is another one."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _REFUSALS else None
    text = str(error)
    rust = _RUST.search(text)
    if rust and int(rust[1]) in _REFUSALS:
        return os.strerror(int(rust[1]))
    if type(error).__module__ == "sqlite3" and any(words in text for words in _SQLITE):
        return text
    if isinstance(error, RuntimeError) and any(words in text for words in _TORCH):
        return "the file could not be written to its end"
    return None


def why_not_writable(folder: Path) -> str | None:
    """Tries to write where a folder is or would be made; returns why not, and leaves nothing."""
    existing = folder
    try:
        existing = _existing(folder)  # asks for names, which may be too long
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{error.strerror} at {existing}"


def free_bytes(folder: Path) -> int:
    """Returns the room where a folder is or would be made."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
