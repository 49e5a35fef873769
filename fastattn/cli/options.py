"""What the commands' options are made of."""

from __future__ import annotations

from typing import Any

import typer


def option(*names: str, help: str, panel: str, **settings: Any) -> Any:
    """Returns an option that ``--help`` shows under a heading."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)
