"""fastattn: exact, fused attention for fine-tuning encoders, and a drop-in for Hugging Face BERT.

    import fastattn

    out = fastattn.attention(q, k, v, key_padding_mask=mask, dropout_p=0.1)
    report = fastattn.patch(model)        # an existing Transformers model, made faster in place

Importing the package needs torch alone, and registers its operators with it. The names that need
Transformers are loaded on first use, and ``attn_implementation="fastattn"`` is registered when
Transformers itself is loaded. The command line, whose --help must not wait for torch, loads all
names on first use.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from fastattn.errors import BackendError, DataError, FastattnError, PatchError
from fastattn.integrations import autoregister

if TYPE_CHECKING:
    from fastattn.backends import explain
    from fastattn.compat.sdpa import scaled_dot_product_attention
    from fastattn.explanation import explain_model
    from fastattn.ops.attention import attention
    from fastattn.patching import PatchReport, patch, patched, unpatch

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "DataError",
    "FastattnError",
    "PatchError",
    "PatchReport",
    "__version__",
    "attention",
    "explain",
    "explain_model",
    "patch",
    "patched",
    "scaled_dot_product_attention",
    "unpatch",
]

_NEED_TORCH = {
    "explain": "fastattn.backends",
    "scaled_dot_product_attention": "fastattn.compat.sdpa",
    "attention": "fastattn.ops.attention",
}
_NEED_TRANSFORMERS = {
    "explain_model": "fastattn.explanation",
    **dict.fromkeys(("PatchReport", "patch", "patched", "unpatch"), "fastattn.patching"),
}
_MODULES = {**_NEED_TORCH, **_NEED_TRANSFORMERS}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _is_command_line() -> bool:
    """Whether this process is the command ``fastattn``, or ``python -m fastattn``."""
    program = (sys.argv or [""])[0]
    if program == "-m":  # while Python looks for the module that it is to run
        words = sys.orig_argv
        return "-m" in words and words[words.index("-m") + 1 :][:1] == [__name__]
    return os.path.basename(program) == __name__


if not _is_command_line():
    for _name in _NEED_TORCH:
        __getattr__(_name)
autoregister.install()
