"""The one place where kernels are launched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from fastattn.backends.triton import target


class Launch(NamedTuple):
    """A launch that was recorded instead of done."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int


_recorder: Callable[[Launch], None] | None = None


def launch(
    kernel: Any,
    programs: int | tuple[int, ...],
    device: torch.device,
    arguments: dict[str, Any],
    *,
    num_warps: int,
    num_stages: int,
) -> None:
    """Runs programs of a kernel on the current stream of a device; nothing if there are none."""
    grid = programs if isinstance(programs, tuple) else (programs,)
    if _recorder is not None:
        _recorder(Launch(kernel, grid, arguments, num_warps, num_stages))
    elif 0 not in grid:
        with _current(device):
            kernel[grid](
                **arguments,
                num_warps=num_warps,
                num_stages=num_stages,
                # Its default depends on Triton's version, and results should not.
                enable_fp_fusion=True,
            )


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within it, a GPU is the current one of its kind, which is where Triton launches."""
    if device.type == "cpu":  # the interpreter's tensors
        return contextlib.nullcontext()
    return torch.get_device_module(device).device(device)


@contextlib.contextmanager
def recorded(offline: target.Target, recorder: Callable[[Launch], None]) -> Iterator[None]:
    """Within it, calls on tensors of the meta device record what they would launch on a target."""
    global _recorder
    _recorder = recorder
    target.set_offline(offline)
    try:
        yield
    finally:
        _recorder = None
        target.set_offline(None)
