"""Operators under the transforms of ``torch.func``, which ask for more than is registered.

``torch.library.register_autograd`` makes an ``autograd.Function`` that ``torch.func.grad`` refuses.
The same functions make one that it takes, and that ``torch.vmap`` runs as it does the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import _C, Tensor


def transformable(
    op: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Returns an operator as a function that ``torch.func``'s transforms can differentiate.

    Args:
        op: an operator of ``torch.ops``, called with arguments by position.
        backward, setup_context: what was registered with ``torch.library.register_autograd``.
    """
    function: Any = type(
        "Transformable",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(lambda *args: op(*args)),
            "setup_context": staticmethod(setup_context or _nothing_to_save),
            "backward": staticmethod(backward),
            "generate_vmap_rule": True,
        },
    )

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or not is_transforming():
            return op(*args)
        return function.apply(*args)

    return call


def is_transforming() -> bool:
    """Whether a call is inside a transform of ``torch.func``."""
    return _C._functorch.peek_interpreter_stack() is not None


def is_mapped(x: Tensor) -> bool:
    """Whether a tensor is one for each element that ``torch.vmap`` maps over."""
    if not is_transforming():
        return False
    while _C._functorch.is_gradtrackingtensor(x):
        x = _C._functorch.get_unwrapped(x)
    mapped: bool = _C._functorch.is_batchedtensor(x)
    return mapped


def _nothing_to_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass
