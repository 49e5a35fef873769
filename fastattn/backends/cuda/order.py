"""Which of the two backends for GPUs goes first: one table, by architecture."""

from __future__ import annotations

import torch

from fastattn.compiling import constant_for_the_compiler

CUDA, TRITON = "cuda", "triton"

# From this compute capability on, newest first. 2026-11-24: not measured yet. From sm_90 on what
# Triton compiles has instructions (wgmma, tcgen05) that our mma.sync kernels do not use; before
# it both use the same ones, and on sm_75 Triton uses none.
ORDER = (
    ((9, 0), (TRITON, CUDA)),
    ((0, 0), (CUDA, TRITON)),
)


def order_for(capability: tuple[int, int]) -> tuple[str, str]:
    """Returns the backends in the order in which they are tried."""
    return next(order for since, order in ORDER if capability >= since)


@constant_for_the_compiler
def gpu_order() -> tuple[str, str]:
    """Returns the order for the current GPU."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return order_for((0, 0))
    return order_for(torch.cuda.get_device_capability())
