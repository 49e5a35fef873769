"""The passes of a differentiable function that are timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def passes_of(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], dout: Tensor
) -> dict[str, Callable[[], Any]]:
    """Returns what is timed: forward without autograd, backward alone, and both.

    The backward pass is that of one forward pass, which is made at its first call.

    Args:
        inputs: what the function is called with; all of them get gradients.
        dout: the gradient of what it returns.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    made: list[Tensor] = []

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    def backward() -> tuple[Tensor, ...]:
        if not made:
            made.append(function(*leaves))
        return torch.autograd.grad(made[0], leaves, dout, retain_graph=True)

    def forward_backward() -> tuple[Tensor, ...]:
        out = function(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, dout)

    return {"forward": forward, "backward": backward, "forward_backward": forward_backward}
