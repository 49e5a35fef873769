"""The commands and their options. What they do is imported when they run, so --help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from fastattn.cli import (
    bench_command,
    data_command,
    explain_command,
    finetune_command,
    search_command,
)
from fastattn.cli.errors import clear_errors

app = typer.Typer(
    name="fastattn",
    help="Fused attention for fine-tuning BERT and other encoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Entry point of the command line."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        import fastattn

        typer.echo(f"fastattn {fastattn.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, CPU and GPU, and which backends are ready or why not."""
    from fastattn.cli import info_command

    info_command.run(as_json)


@app.command()
def check(debug: Debug = False) -> None:
    """Check that this installation computes the right results. Takes seconds.

    Every backend that is ready is compared with the reference in float64, and a patched BERT with
    the stock one. Exits with 1 if anything is wrong.
    """
    from fastattn.cli import check_command

    with clear_errors(debug):
        all_right = check_command.run()
    raise typer.Exit(0 if all_right else 1)


app.command("explain")(explain_command.explain)
app.command("finetune")(finetune_command.finetune)
app.command("search")(search_command.search)
app.add_typer(bench_command.app, name="bench")
app.add_typer(data_command.app, name="data")
