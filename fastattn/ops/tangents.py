"""Derivatives that kernels do not have, and refuse: in forward mode, and gradients of gradients.

Tangents torch would lose at a Python operator without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def has_tangents(*tensors: Tensor | None) -> bool:
    """Whether a call is differentiated in forward mode by one of its tensors."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """Raises NotImplementedError if a kernel is about to be differentiated in forward mode."""
    if has_tangents(*tensors):
        raise NotImplementedError(
            f"{op}: forward-mode derivatives must be taken on the reference backend; got a "
            f'tensor with a tangent. Call {op}(..., backend="reference").'
        )


def no_double_backward(op: str) -> Callable[..., None]:
    """Returns the gradient of a kernel's backward pass, which raises NotImplementedError."""

    def refuse(ctx: Any, *grads: Tensor | None) -> None:
        raise NotImplementedError(
            f"{op}: the gradient of a gradient must be taken on the reference backend; got one "
            f'through a fused kernel. Call {op}(..., backend="reference").'
        )

    return refuse
