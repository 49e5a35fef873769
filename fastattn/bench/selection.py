"""Which of the cases make sense on the machine at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from fastattn import environment

# Any of these makes a bfloat16 product faster than a float32 one.
_BFLOAT16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}


class _HasDtype(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...


Case = TypeVar("Case", bound=_HasDtype)


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16."""
    return bool(_BFLOAT16_FEATURES & set(environment.cpu()["features"]))


def for_this_cpu(cases: Sequence[Case]) -> tuple[list[Case], dict[str, str]]:
    """Returns the cases that one would run on this CPU, and for each other one why not.

    Nobody trains in bfloat16 where it is emulated: such cases run only when they are named.
    """
    if cpu_has_bfloat16():
        return list(cases), {}
    why = "this CPU has no bfloat16 arithmetic"
    kept = [case for case in cases if case.dtype != "bfloat16"]
    return kept, {case.name: why for case in cases if case.dtype == "bfloat16"}
