"""Forward-mode differentiation, whose tangents torch loses at a Python operator without a word."""

from __future__ import annotations

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
