"""fastattn: exact, fused attention for fine-tuning encoders, and a drop-in for Hugging Face BERT.

    import fastattn

    out = fastattn.attention(q, k, v, key_padding_mask=mask, dropout_p=0.1)
    report = fastattn.patch(model)        # an existing Transformers model, made faster in place

Importing the package needs torch alone. The names that need Transformers are loaded on first use,
and ``attn_implementation="fastattn"`` is registered when Transformers itself is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastattn.backends import explain
from fastattn.compat.sdpa import scaled_dot_product_attention
from fastattn.errors import BackendError, DataError, FastattnError, PatchError
from fastattn.integrations import autoregister
from fastattn.ops.attention import attention

if TYPE_CHECKING:
    from fastattn.explanation import explain_model
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

_LAZY = {
    "explain_model": "fastattn.explanation",
    **dict.fromkeys(("PatchReport", "patch", "patched", "unpatch"), "fastattn.patching"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


autoregister.install()
