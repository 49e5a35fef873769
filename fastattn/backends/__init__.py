"""Which code runs a call: one module per backend, and the choice between them.

A backend module has ``NAME``, ``unavailable_reason()``, ``unsupported_reasons(call)``,
``attention_fwd`` and ``attention_bwd``, and ``hidden_reasons`` and the operators on hidden states.
The first one that can serve a call is chosen; the reference, plain torch, can serve every call and
is last. What serves tests, Triton's interpreter and the emulated CUDA kernels, is never chosen
unasked, nor is what has not been measured yet, the kernels for Hopper.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastattn.backends import cpu, triton
from fastattn.backends.cuda import CUDA, EMULATED, EMULATED_HOPPER, HOPPER
from fastattn.backends.cuda.order import gpu_order
from fastattn.errors import BackendError

if TYPE_CHECKING:
    from fastattn.ops.attention import Options

_FUSED: dict[str, Any] = {
    backend.NAME: backend for backend in (cpu, CUDA, triton, HOPPER, EMULATED, EMULATED_HOPPER)
}
REFERENCE = "reference"
NAMES = (*_FUSED, REFERENCE)


class Call(NamedTuple):
    """What a backend needs to know of a call to say whether it can serve it."""

    device_type: str
    dtype: torch.dtype
    head_dim: int
    packed: bool
    options: tuple[str, ...]  # names of the options in use


class HiddenCall(NamedTuple):
    """The same of a call of an operator on hidden states."""

    op: str
    device_type: str
    dtype: torch.dtype
    hidden_size: int


class Explanation(NamedTuple):
    """The choice of a backend, and why the ones before it were passed over."""

    backend: str
    call: Call
    reasons: dict[str, list[str]]

    def __str__(self) -> str:
        options = ", ".join(self.call.options) or "none"
        layout = "packed" if self.call.packed else "batch"
        lines = [
            f"backend: {self.backend}",
            f"call: {self.call.dtype} on {self.call.device_type}, {layout} layout, "
            f"head_dim {self.call.head_dim}, options: {options}",
        ]
        for name, reasons in self.reasons.items():
            lines += [f"not {name}: {reason}" for reason in reasons]
        return "\n".join(lines)


def get(name: str) -> Any:
    """Returns a fused backend."""
    return _FUSED[name]


def fused_order(call: Call | HiddenCall) -> tuple[str, ...]:
    """Returns the fused backends that may be chosen unasked, in the order they are tried in."""
    first, second = CUDA.NAME, triton.NAME
    if call.device_type == "cuda" and isinstance(call, Call):
        first, second = gpu_order(int(call.head_dim), "dropout_p" in call.options)
    elif call.device_type == "cuda":
        first, second = gpu_order()
    return cpu.NAME, first, second


def describe(q: Tensor, k: Tensor, options: Options, *, heads_dim: int = -2) -> Call:
    """Returns the description of a call with checked arguments."""
    used = []
    if options.key_padding_mask is not None:
        used.append("key_padding_mask")
    if options.bias is not None:
        used.append("bias")
    if options.window != (-1, -1):
        used.append("window")
    if options.softcap > 0.0:
        used.append("softcap")
    if options.alibi_slopes is not None:
        used.append("alibi_slopes")
    if options.dropout_p > 0.0:
        used.append("dropout_p")
    shape = q.shape
    if shape[heads_dim] != k.shape[heads_dim]:
        used.append("grouped heads")
    packed = options.cu_seqlens_q is not None
    return Call(q.device.type, q.dtype, shape[-1], packed, tuple(used))


def choose(
    q: Tensor, k: Tensor, options: Options, backend: str | None = None, *, heads_dim: int = -2
) -> str:
    """Returns the name of the backend that serves a call with checked arguments.

    It is the one that :func:`select` returns for what :func:`describe` says of the call, without
    the 2 us that both take where the first backend of all serves it.
    """
    if backend is None and cpu.serves(q.device.type, q.shape[-1]):
        return cpu.NAME
    return select(describe(q, k, options, heads_dim=heads_dim), backend)


def unsupported_reasons(name: str, call: Call | HiddenCall) -> list[str]:
    """Returns why a backend cannot serve the call; nothing if it can."""
    if name == REFERENCE:
        return []
    backend = _FUSED[name]
    if unavailable := backend.unavailable_reason():
        return [unavailable]
    of_attention = isinstance(call, Call)
    return backend.unsupported_reasons(call) if of_attention else backend.hidden_reasons(call)


def reasons_not_to_choose(name: str, call: Call | HiddenCall) -> list[str]:
    """Returns why a backend does not serve the call unless it is asked for."""
    reasons = unsupported_reasons(name, call)
    if name == triton.NAME and triton.INTERPRETED and not reasons:
        reasons.append(f'triton\'s interpreter is slow; ask for it with backend="{name}"')
    return reasons


def select(call: Call | HiddenCall, backend: str | None = None) -> str:
    """Returns the name of the backend that serves the call.

    Args:
        backend: the one to use, or None for the first that can.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: it cannot serve the call; the message lists its reasons.
    """
    if backend is None:
        for name in fused_order(call):
            if not reasons_not_to_choose(name, call):
                return name
        return REFERENCE
    op = "attention" if isinstance(call, Call) else call.op
    if backend not in NAMES:
        known = ", ".join(f'"{name}"' for name in NAMES)
        raise ValueError(f"{op}: backend must be None or one of {known}; got {backend!r}.")
    reasons = unsupported_reasons(backend, call)
    if reasons:
        raise BackendError(
            f'{op}: backend "{backend}" cannot serve this call: {"; ".join(reasons)}. '
            "Leave backend=None to let fastattn choose one that can."
        )
    return backend


def explain(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Explanation:
    """Says which backend serves a call, and why the ones before it do not.

    Takes the arguments of :func:`fastattn.attention` and computes nothing.

    Returns:
        An :class:`Explanation`; print it.

    Raises:
        ValueError, TypeError, BackendError: as :func:`fastattn.attention` does.
    """
    from fastattn.ops.attention import describe_call

    call, backend = describe_call(q, k, v, **options)
    return explanation(call, select(call, backend))


def explanation(call: Call, chosen: str) -> Explanation:
    """Returns the choice of a backend together with why the ones before it were passed over."""
    before = itertools.takewhile(lambda name: name != chosen, fused_order(call))
    reasons = {name: reasons_not_to_choose(name, call) for name in before}
    return Explanation(chosen, call, reasons)
