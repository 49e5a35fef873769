"""Arguments of a module's forward, whether they are given by position or by name."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn


def place(module: nn.Module, name: str) -> int:
    """Returns the place of an argument of a module's forward."""
    module_class: Any = type(module)  # a type is hashable, whatever its instances are
    return _places(module_class)[name]


@functools.cache
def _places(module_class: Any) -> dict[str, int]:
    names = list(inspect.signature(module_class.forward).parameters)
    return {name: index for index, name in enumerate(names[1:])}


def argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """Returns an argument of a call, or None."""
    position = place(module, name)
    return args[position] if position < len(args) else kwargs.get(name)


def with_argument(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of a call with one of them changed."""
    position = place(module, name)
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}
