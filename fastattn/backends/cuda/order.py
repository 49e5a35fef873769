"""Which of the two backends for GPUs goes first: one table of what was measured, one of guesses.

``order.json`` holds a row for each architecture, class of head_dim, and dropout or none, with its
date and GPU. ``python bench/gpu_tables.py order``, a step of ``make gpu``, writes its rows from the
times of ``fastattn bench attention --device cuda``. It has no row yet: nothing has been measured.

The length of sequences is no part of a row: a call of packed sequences need not say it, and a trace
of torch.compile would have to ask for it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

from fastattn.compiling import constant_for_the_compiler

CUDA, TRITON = "cuda", "triton"
MEASURED = Path(__file__).with_name("order.json")
HEAD_DIMS = (32, 64, 128, 256)  # classes of head_dim: up to these

# Where nothing was measured, from this compute capability on, newest first. From sm_90 on what
# Triton compiles has instructions (wgmma, tcgen05) that our mma.sync kernels do not use; before
# it both use the same ones, and on sm_75 Triton uses none.
ORDER = (
    ((9, 0), (TRITON, CUDA)),
    ((0, 0), (CUDA, TRITON)),
)


@functools.cache
def measured() -> dict[tuple[str, int, bool], str]:
    """Returns the faster backend for an architecture, a class of head_dim, and dropout or none."""
    return {row_key(row): row["first"] for row in json.loads(MEASURED.read_text("utf-8"))}


def row_key(row: dict[str, Any]) -> tuple[str, int, bool]:
    """Returns what a row of the measured table is about."""
    return row["target"], row["head_dim"], row["dropout"]


def class_of(head_dim: int) -> int:
    """Returns the largest head_dim of a class; 0 of what has none."""
    return next((largest for largest in HEAD_DIMS if head_dim <= largest), 0)


def order_for(
    capability: tuple[int, int], head_dim: int | None = None, dropout: bool = False
) -> tuple[str, str]:
    """Returns the backends in the order in which they are tried.

    Args:
        head_dim: of a call of attention; None for the operators on hidden states.
    """
    if head_dim is not None:
        target = "sm_{}{}".format(*capability)
        first = measured().get((target, class_of(head_dim), dropout))
        if first is not None:
            return (CUDA, TRITON) if first == CUDA else (TRITON, CUDA)
    return next(order for since, order in ORDER if capability >= since)


@constant_for_the_compiler
def gpu_order(head_dim: int | None = None, dropout: bool = False) -> tuple[str, str]:
    """Returns the order for the current GPU."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return order_for((0, 0))
    return order_for(torch.cuda.get_device_capability(), head_dim, dropout)
