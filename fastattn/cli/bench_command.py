"""``fastattn bench``: its commands and options."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastattn.cli.errors import clear_errors
from fastattn.environment import MAX_THREADS

if TYPE_CHECKING:
    from fastattn.bench.kinds import Options

app = typer.Typer(
    help="Measure how fast fastattn is on this machine, beside torch and Transformers.",
    no_args_is_help=True,
)

Device = Annotated[str, typer.Option(help='"cpu", or "cuda" for the current GPU.')]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="A few cases and rounds: a first impression, saved only to --output."
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        help="File (.json) or folder for the results. Default: bench/results/<machine>/ within "
        "the source tree, else the current folder."
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: torch's, one a core.")]
Cases = Annotated[
    list[str] | None,
    typer.Option("--case", help="Run this case; may be repeated. Default: all of them."),
]
Rounds = Annotated[int | None, typer.Option(help="Times that each implementation is timed.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def attention(
    device: Device = "cpu",
    quick: Quick = False,
    output: Output = None,
    threads: Threads = None,
    case: Cases = None,
    rounds: Rounds = None,
    debug: Debug = False,
) -> None:
    """Time the operation beside every attention that is installed.

    Every implementation is verified against torch in float64 before it is timed.
    """
    with clear_errors(debug):
        _measure("attention", _options(device, quick, threads, case, rounds), output, threads)


@app.command()
def layers(
    device: Device = "cpu",
    quick: Quick = False,
    output: Output = None,
    threads: Threads = None,
    case: Cases = None,
    rounds: Rounds = None,
    debug: Debug = False,
) -> None:
    """Time the rest of a layer, and whole layers of BERT, beside torch's own."""
    with clear_errors(debug):
        _measure("layers", _options(device, quick, threads, case, rounds), output, threads)


@app.command()
def memory(
    device: Device = "cpu",
    quick: Quick = False,
    output: Output = None,
    threads: Threads = None,
    case: Cases = None,
    debug: Debug = False,
) -> None:
    """Measure the peak memory of attention and of training steps."""
    with clear_errors(debug):
        _measure("memory", _options(device, quick, threads, case, None), output, threads)


@app.command()
def growth(
    device: Device = "cpu",
    quick: Quick = False,
    output: Output = None,
    threads: Threads = None,
    case: Cases = None,
    rounds: Rounds = None,
    debug: Debug = False,
) -> None:
    """Time attention as lengths, sequences, threads and padding grow, and fit the exponents."""
    with clear_errors(debug):
        _measure("growth", _options(device, quick, threads, case, rounds), output, threads)


@app.command()
def bert(
    device: Device = "cpu",
    quick: Quick = False,
    output: Output = None,
    threads: Threads = None,
    case: Cases = None,
    rounds: Rounds = None,
    debug: Debug = False,
) -> None:
    """Time training steps and inference of BERT models beside stock Transformers.

    Takes minutes, most of them in the stock models, and prints what remains in our own step.
    Logits and gradients are verified against the stock model in float64 before it is timed.
    """
    with clear_errors(debug):
        _measure("bert", _options(device, quick, threads, case, rounds), output, threads)


@app.command()
def epochs(
    device: Device = "cpu",
    quick: Quick = False,
    output: Output = None,
    threads: Threads = None,
    case: Cases = None,
    rounds: Annotated[int | None, typer.Option(help="Epochs that each case trains.")] = None,
    debug: Debug = False,
) -> None:
    """Time whole epochs of IMDB, packed, and print their share of the machine's peak.

    On a GPU bert-base in bfloat16, eager and as CUDA graphs; on a CPU some steps of a tiny model.
    """
    with clear_errors(debug):
        _measure("epochs", _options(device, quick, threads, case, rounds), output, threads)


@app.command()
def install(
    quick: Quick = False, output: Output = None, rounds: Rounds = None, debug: Debug = False
) -> None:
    """Time the build, the installation and the first import, from the source tree."""
    with clear_errors(debug):
        _measure("install", _options("cpu", quick, None, None, rounds), output, None)


@app.command(name="all")
def all_kinds(
    device: Device = "cpu",
    quick: Quick = False,
    output: Output = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Run everything that `fastattn bench render` writes about. Takes most of an hour on two cores.

    A kind that fails does not keep the others from being measured; the exit code is then 1.
    """
    failed: list[str] = []
    with clear_errors(debug):
        from fastattn.bench.kinds import kinds_of

        options = _options(device, quick, threads, None, None)
        if output is not None and Path(output).suffix == ".json":
            raise ValueError(
                f"bench all: output must be a folder, as there is a file for each kind; got "
                f"{output!r}. Leave the suffix out."
            )
        for kind in kinds_of(device):
            typer.echo(f"== {kind}")
            try:
                _measure(kind, options, output, threads)
            except Exception as error:
                if debug:
                    raise
                typer.echo(f"{kind} failed: {type(error).__name__}: {error}", err=True)
                failed.append(kind)
    if failed:
        typer.echo(f"Failed: {', '.join(failed)}.", err=True)
        raise typer.Exit(1)


@app.command()
def overhead(threads: Threads = None, rounds: Rounds = None, debug: Debug = False) -> None:
    """Time what our Python costs a call, beside torch's attention on tiny inputs, and a patch.

    Prints, and saves nothing. The other benchmarks include it in their times.
    """
    with clear_errors(debug):
        _options("cpu", False, threads, None, rounds)
        from fastattn.bench import overhead as module

        for line in module.lines(rounds or 100):
            typer.echo(line)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(metavar="BEFORE.json", help="The first result file.")],
    after: Annotated[
        str | None,
        typer.Argument(
            metavar="[AFTER.json]",
            help="The second one. If it is left out, BEFORE.json is the second, and the first is "
            "the last committed result of its kind, of this machine or another one like it.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare two results, of `fastattn bench` or of `pytest bench`, and flag what changed by more
    than noise.

    Says how it is and exits with 0, whatever became slower.
    """
    with clear_errors(debug):
        from fastattn.bench import comparison, results, screen, tables

        second = comparison.read(Path(after if after is not None else before).expanduser())
        first = {} if after is None else comparison.read(Path(before).expanduser())
        if first and not set(first) & set(second):
            comparison.compare_results(*(next(iter(x.values())) for x in (first, second)))
        for kind, new in second.items():
            if first and kind not in first:
                continue
            old = first[kind] if first else results.read(results.last_committed(new))
            if old["machine"]["slug"] != new["machine"]["slug"]:
                typer.echo("Of two machines: the ratios to the peers are what can be compared.")
            screen.show_table(comparison.compare_results(old, new))
            for line in comparison.missing_cases(old, new):
                typer.echo(line)
            typer.echo(f"Before: {tables.provenance(old)}")
            typer.echo(f"After: {tables.provenance(new)}")


@app.command()
def render(debug: Debug = False) -> None:
    """Write the committed results into README.md and bench/README.md, and draw them."""
    with clear_errors(debug):
        from fastattn.bench import render as module
        from fastattn.bench.results import source_tree

        root = source_tree()
        if root is None:
            raise ValueError(
                "bench render: fastattn must run from its source tree; got an installed package. "
                "Clone the repository and run it there."
            )
        for file in module.render(root):
            typer.echo(f"wrote {file.relative_to(root)}")


def _options(
    device: str, quick: bool, threads: int | None, names: list[str] | None, rounds: int | None
) -> Options:
    """Checks the options that all measurements share, and sets the number of threads."""
    if device not in ("cpu", "cuda"):
        raise ValueError(
            f"bench: device must be 'cpu' or 'cuda'; got {device!r}. Leave --device out."
        )
    for name, value in (("threads", threads), ("rounds", rounds)):
        if value is not None and value < 1:
            raise ValueError(f"bench: {name} must be at least 1; got {value}. Set --{name}.")
    if threads is not None and threads > MAX_THREADS:
        raise ValueError(
            f"bench: threads must be at most {MAX_THREADS:,}; got {threads:,}. Set --threads."
        )
    # Only now: a message about an option does not wait for torch.
    import torch

    from fastattn.backends import cpu
    from fastattn.bench.kinds import Options

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "bench: device must be one that torch can use; got 'cuda', and torch sees no GPU. "
            "Leave --device out, or see `fastattn info`."
        )
    if device == "cpu" and cpu.unavailable_reason() is not None:
        raise ValueError(
            "bench: the CPU backend must be ready to be measured; got: "
            f"{cpu.unavailable_reason()}. See `fastattn info`."
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return Options(device, quick, rounds, tuple(names or ()))


def _measure(command: str, options: Options, output: str | None, threads: int | None) -> None:
    """Measures one kind, prints and saves."""
    from fastattn.bench import results, screen
    from fastattn.bench.kinds import KINDS

    # A first impression or a part must not take the place of a full run's results.
    partial = bool(options.names)
    kind = f"gpu-{command}" if options.device == "cuda" else command
    save = output is not None or not (options.quick or partial)
    path = results.choose_path(kind, output) if save else None
    words = _command(command, options, threads)
    head = results.provenance(kind, words, quick=options.quick, partial=partial)
    started = time.perf_counter()
    found = KINDS[command](options, screen.say)
    result = head | {"seconds": round(time.perf_counter() - started, 1)} | found
    screen.show(result)
    if path is None:
        typer.echo("Not saved: a quick or partial run is saved only where --output says.")
        return
    replaced = " (replaced an older result)" if path.exists() else ""
    results.write(path, result)
    typer.echo(f"Saved in {_short(path)}{replaced}.")


def _command(command: str, options: Options, threads: int | None) -> str:
    """The command as one would type it. Where results go has no influence on them: left out."""
    words = ["fastattn", "bench", command]
    named: dict[str, Any] = {
        "--device": options.device if options.device != "cpu" else None,
        "--quick": options.quick,
        "--threads": threads,
        "--case": list(options.names),
        "--rounds": options.rounds,
    }
    for name, value in named.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(name)
            elif item not in (None, False):
                words += [name, str(item)]
    return shlex.join(words)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
