"""Registers fastattn with Transformers once that is loaded, without loading it.

Users write ``attn_implementation="fastattn"`` after ``import fastattn``, but importing Transformers
takes seconds and is none of our business. So :func:`install` either registers at once, if
``transformers.modeling_utils`` is already there, or leaves a finder that waits for its import:

- it looks at one module name and leaves every other import alone, at the cost of one comparison;
- the usual finders find the module, and once it is loaded this one takes itself off the list;
- the module keeps its own loader: only this one execution of it is followed by the registration;
- a failing registration becomes a warning, never an error in somebody else's import.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TRIGGER = "transformers.modeling_utils"


def install() -> None:
    """Registers now or when Transformers is loaded; again changes nothing."""
    if TRIGGER in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Waits on ``sys.meta_path`` for the import of one module."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != TRIGGER:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader: Any) -> None:
        """Makes the next execution of the loader's module end with the registration."""
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # A loader serves one module: this hides its method from nobody else, and goes at once.
            del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        loader.exec_module = exec_module


def _register() -> None:
    try:
        importlib.import_module("fastattn.integrations.transformers")
        # What a first patch needs. torch looks through all loaded modules for the source of each
        # operator, which takes 100 ms: unnoticed in an import of seconds, and twice what the patch
        # of bert-large may take (2026-11-24).
        for operators in ("gelu", "layer_norm", "linear"):
            importlib.import_module(f"fastattn.ops.{operators}")
    except ImportError as error:
        warnings.warn(
            f'attn_implementation="fastattn" is not available: {error}',
            RuntimeWarning,
            stacklevel=2,
        )
