"""Classes made of one of our mixins and a model's own class, for any family that fits the mixin.

A family's encoder, layer and attention differ from BERT's in their names, so each of our parts is
written once, as a mixin over the attributes they share, and combined with the stock class of the
module that becomes one. The result is a subclass of the stock class without new state, so a module
changes into it, and back, by ``__class__`` (:mod:`fastattn.patching.changes` says why that way).

Such a class has no name in any file, so it is pickled as the two classes it is made of.
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any, ClassVar

from torch import nn


class Mixin(nn.Module):
    """What is put before a stock class. Subclasses hold methods and no state."""

    word: ClassVar[str]  # begins the name of the combined class
    activation_name: ClassVar[str | None] = None  # the attribute that must be GELU, if there is one
    stock: ClassVar[type[nn.Module]]  # the class of no mixin at the bottom
    mixin: ClassVar[type[Mixin]]
    combination: ClassVar[type[Mixin] | None] = None  # the combined class itself, not a subclass


class _Combined(type):
    """The type of the combined classes, by which they can be told when they are pickled."""


def combined(mixin: type[Mixin], stock: type[nn.Module]) -> Any:
    """Returns the class made of both: the same one each time.

    The second may be a combined class itself.
    """
    made: Any = _combine  # a type is hashable, whatever its instances are
    return made(mixin, stock)


@functools.cache
def _combine(mixin: Any, stock: Any) -> type:
    is_combination = getattr(stock, "combination", None) is stock
    names = {
        "stock": stock.stock if is_combination else stock,
        "mixin": mixin,
        "__module__": mixin.__module__,
        "__doc__": None,
    }
    name = stock.__name__ if is_combination else mixin.word + stock.__name__
    made: Any = _Combined(name, (mixin, stock), names)
    made.combination = made
    return made


def is_a(module: nn.Module, mixin: type[Mixin]) -> bool:
    """Whether the module became one of a mixin's, and has not become anything else since."""
    return isinstance(module, mixin) and stock_of(module) is not type(module)


def stock_of(module: nn.Module) -> type[nn.Module]:
    """Returns the module's class, or the stock class that it is combined of."""
    cls: Any = type(module)
    is_combination: bool = getattr(cls, "combination", None) is cls
    return cls.stock if is_combination else cls


def _reduce(cls: Any) -> Any:
    """Returns how to make the class again; for a subclass of somebody else's, where it is."""
    if cls is cls.combination:
        return combined, cls.__bases__
    return cls.__qualname__


copyreg.pickle(_Combined, _reduce)
