"""What the backends share: how a tensor is handed to kernels."""

from __future__ import annotations

import torch
from torch import Tensor

# The names of the element types in csrc/common/params.h.
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def view(tensor: Tensor | None) -> tuple[int, torch.Size, tuple[int, ...]] | None:
    """The pointer, sizes and element strides of a tensor, which is all the kernels see."""
    return None if tensor is None else (tensor.data_ptr(), tensor.shape, tensor.stride())


def rows_contiguous(tensor: Tensor) -> Tensor:
    """The kernels read along the last dimension with stride 1."""
    if tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    # To torch, a tensor without elements is contiguous whatever its strides.
    return tensor.contiguous() if tensor.numel() > 0 else tensor.new_empty(tensor.shape)


def as_rows(tensor: Tensor) -> Tensor:
    """(..., columns) -> (rows, columns); a copy only where rows do not lie evenly."""
    return rows_contiguous(tensor.reshape(-1, tensor.shape[-1]))


def require_dtype(dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """Protects memory where an operator is called past the functions that fix the dtypes."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(
                f"fastattn: {name} must be {dtype}; got {tensor.dtype}. "
                "Call the functions of fastattn.ops, which convert it."
            )
