"""One clear message instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

UNFORESEEN = 1
BAD_INPUT = 2
INTERRUPTED = 130


@contextmanager
def clear_errors(debug: bool) -> Iterator[None]:
    """Prints an error's message and exits: 2 for bad input, 1 for anything unforeseen.

    Args:
        debug: let errors through, with their tracebacks.
    """
    from fastattn.errors import FastattnError

    try:
        yield
    except KeyboardInterrupt:
        typer.secho("\nStopped.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise  # nobody reads on, as in `fastattn ... | head`: click ends quietly
    except (FastattnError, ValueError, ImportError) as error:
        if debug:
            raise
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(BAD_INPUT) from error
    except Exception as error:
        if debug:
            raise
        message = f"error: {type(error).__name__}: {error}"
        typer.secho(message, fg=typer.colors.RED, err=True)
        typer.echo("Nobody foresaw this. Run again with --debug to see where it is.", err=True)
        raise typer.Exit(UNFORESEEN) from error
