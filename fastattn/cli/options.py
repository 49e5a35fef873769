"""What the commands' options are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from fastattn.errors import DataError


def option(*names: str, help: str, panel: str, **settings: Any) -> Any:
    """Returns an option that ``--help`` shows under a heading."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line, with its default or another value."""
    # By its name: some versions of typer bring a click of their own.
    return getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"


def pairs(
    command: str, name: str, given: Sequence[str], form: str = "NAME=COLUMN", empty: bool = False
) -> dict[str, str]:
    """Reads what was given to an option of the form NAME=VALUE that may be repeated.

    Args:
        command, name: the command and the option, for messages.
        form: how the option is written, for messages.
        empty: a value may be empty.

    Raises:
        DataError: something is not of this form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        left, equals, right = text.partition("=")
        if not left or not equals or not (right or empty):
            raise DataError(f"{command}: {name} must be {form}; got {text!r}. Write both.")
        if left in found:
            raise DataError(
                f"{command}: {name} must be given once for each name; got {left}={found[left]} and "
                f"{text}. Leave one of them out."
            )
        found[left] = right
    return found
