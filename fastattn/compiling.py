"""What fastattn tells torch.compile, without importing it.

The compiler is a second and more of imports, which a program that compiles nothing should not pay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_for_the_compiler(function: Function) -> Function:
    """Makes torch.compile call a function while it traces, and take the result as a constant.

    It is what ``torch.compiler.assume_constant_result`` does, which would import all of the
    compiler: 1.4 s at every import of fastattn (torch 2.13, 2026-11-24).
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
