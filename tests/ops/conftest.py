"""What the tests of operators share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode


class _Watcher(TorchDispatchMode):
    """Somebody who watches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watched_operators() -> Callable[[], contextlib.AbstractContextManager[list[str]]]:
    """Within its context calls are not plain: they go through the dispatcher, which is listed."""

    @contextlib.contextmanager
    def watch() -> Iterator[list[str]]:
        with _Watcher() as watcher:
            yield watcher.names

    return watch
