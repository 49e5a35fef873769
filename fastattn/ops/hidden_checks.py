"""Checks, and the choice of a backend, of the operators on hidden states.

Each message has one form: operation, argument, rule, the value got, what to do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastattn import backends
from fastattn.backends import HiddenCall, cpu
from fastattn.ops.checks import DTYPES, wrong_layout


def check_floating(op: str, name: str, value: object) -> None:
    """Checks that an argument is a tensor of a dtype that is served."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor; got {type(value).__name__}.")
    if (problem := wrong_layout(name, value)) is not None:
        raise TypeError(f"{op}: {problem}")
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{op}: {name} must be float32, float64, float16 or bfloat16; got {value.dtype}. "
            f"Convert it with {name}.to(dtype)."
        )


def check_x(op: str, x: Tensor) -> None:
    """Checks hidden states."""
    check_floating(op, "x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"{op}: x must have a last dimension of at least 1; got shape {tuple(x.shape)}."
        )


def check_vector(op: str, name: str, value: Tensor, x: Tensor) -> None:
    """Checks a tensor of one number for each column of ``x``."""
    check_floating(op, name, value)
    if value.shape != x.shape[-1:]:
        raise ValueError(
            f"{op}: {name} must have the shape of x's last dimension, {tuple(x.shape[-1:])}; got "
            f"{tuple(value.shape)}."
        )
    check_device(op, name, value, x)


def check_device(op: str, name: str, value: Tensor, x: Tensor) -> None:
    """Checks that a tensor is where ``x`` is."""
    if value.device != x.device:
        raise ValueError(
            f"{op}: {name} must be on the device of x, {x.device}; got {value.device}. "
            f"Move it with {name}.to(x.device)."
        )


def check_dropout_p(op: str, dropout_p: float) -> None:
    """Checks the probability of dropping an element."""
    if isinstance(dropout_p, bool) or not isinstance(dropout_p, (int, float)):
        raise TypeError(f"{op}: dropout_p must be a number; got {type(dropout_p).__name__}.")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(
            f"{op}: dropout_p must be in [0, 1), the probability of dropping; got {dropout_p}."
        )


def check_eps(op: str, eps: float) -> None:
    """Checks what is added to a variance."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{op}: eps must be a number; got {type(eps).__name__}.")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"{op}: eps must be at least 0 and finite; got {eps}.")


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, without the microsecond that takes where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def choose_backend(op: str, x: Tensor, backend: str | None) -> str:
    """Returns the name of the backend that serves the call.

    Args:
        backend: the one to use, or None for the first that can.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: it cannot serve the call; the message says why.
    """
    return _select(op, x, x.shape[-1], backend)


def is_fused(op: str, x: Tensor, hidden_size: int) -> bool:
    """Whether there are kernels for an operator on tensors like x with so many columns."""
    return _select(op, x, hidden_size) != backends.REFERENCE


def _select(op: str, x: Tensor, hidden_size: int, backend: str | None = None) -> str:
    if backend is None and cpu.serves_hidden(x.device.type):
        return cpu.NAME  # what select comes to, without its 2 us
    return backends.select(HiddenCall(op, x.device.type, x.dtype, hidden_size), backend)
