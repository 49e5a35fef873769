"""Arguments of a module's forward, whether they are given by position or by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

# Class -> argument -> place. Not functools.cache, of which a compiler warns.
_PLACES: dict[type[nn.Module], dict[str, int]] = {}


def remember(module: nn.Module) -> None:
    """Reads the signature of a module's forward, which a compiler could not trace into."""
    names = list(inspect.signature(type(module).forward).parameters)
    _PLACES[type(module)] = {name: index for index, name in enumerate(names[1:])}


def place(module: nn.Module, name: str) -> int:
    """Returns the place of an argument of a module's forward."""
    if type(module) not in _PLACES:
        remember(module)
    return _PLACES[type(module)][name]


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
