"""Where the tensors of a kernel on the emulator stand."""

from __future__ import annotations

from torch import Tensor

# More than any of the planted mistakes is off, and a multiple of what torch aligns tensors to.
_GAP_BYTES = 1 << 16


def apart(x: Tensor) -> Tensor:
    """Returns a contiguous copy of ``x``, far from every other tensor.

    Else an address past its end may be that of a small tensor which the allocator happened to put
    there: the emulator names that one, or finds nothing wrong.
    """
    gap = _GAP_BYTES // x.element_size()
    return x.new_zeros(gap + x.numel() + gap)[gap : gap + x.numel()].view(x.shape).copy_(x)
