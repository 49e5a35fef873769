"""``fastattn bench``: its commands and options."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fastattn.cli.errors import clear_errors

app = typer.Typer(
    help="Measure how fast fastattn is on this machine, beside torch and Transformers.",
    no_args_is_help=True,
)

Device = Annotated[str, typer.Option(help='"cpu", or "cuda" for the current GPU.')]
Quick = Annotated[
    bool, typer.Option("--quick", help="Fewer rounds: a first impression, saved only to --output.")
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
    """Time the operation beside torch's own attention, and measure its memory.

    Every case is verified against torch in float64 before it is timed.
    """
    with clear_errors(debug):
        _check(device, threads, rounds)
        if device == "cuda":
            _attention_on_a_gpu(quick, output, case, rounds)
            return
        from fastattn.bench import attention as module
        from fastattn.bench.cases import (
            ATTENTION_CASES,
            MEMORY_CASES,
            AttentionCase,
            MemoryCase,
            choose,
        )

        known: list[AttentionCase | MemoryCase] = [*ATTENTION_CASES, *MEMORY_CASES]
        cases = choose(known, case or ())
        usual = module.QUICK_ROUNDS if quick else module.ROUNDS
        _run(
            "attention",
            lambda say: module.run(cases, rounds or usual, say),
            partial=bool(case),
            quick=quick,
            output=output,
            options={"--quick": quick, "--threads": threads, "--case": case, "--rounds": rounds},
        )


def _attention_on_a_gpu(
    quick: bool, output: str | None, case: list[str] | None, rounds: int | None
) -> None:
    from fastattn.bench import gpu
    from fastattn.bench.cases import GPU_CASES, choose

    cases = choose(GPU_CASES, case or ())
    usual = gpu.QUICK_ROUNDS if quick else gpu.ROUNDS
    _run(
        "gpu-attention",
        lambda say: gpu.run(cases, rounds or usual, say),
        partial=bool(case),
        quick=quick,
        output=output,
        options={"--device": "cuda", "--quick": quick, "--case": case, "--rounds": rounds},
    )


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
        _check(device, threads, rounds)
        from fastattn.bench import texts
        from fastattn.bench.cases import BERT_CASES, choose

        cases = choose(BERT_CASES, case or ())
        texts.require_packages()
        from transformers.utils import logging

        from fastattn.bench import bert as module

        logging.set_verbosity_error()  # a new head on the model is what is wanted here
        logging.disable_progress_bar()
        on_gpu = device == "cuda"
        options = {"--device": device if on_gpu else None, "--quick": quick, "--threads": threads}
        _run(
            "gpu-bert" if on_gpu else "bert",
            lambda say: module.run(cases, quick=quick, rounds=rounds, say=say, device=device),
            partial=bool(case),
            quick=quick,
            output=output,
            options={**options, "--case": case, "--rounds": rounds},
        )
        if not case:
            _overhead(rounds)


@app.command()
def overhead(threads: Threads = None, rounds: Rounds = None, debug: Debug = False) -> None:
    """Time what our Python costs a call, beside torch's attention on tiny inputs, and a patch.

    Prints, and saves nothing. The other benchmarks include it in their times.
    """
    with clear_errors(debug):
        _check("cpu", threads, rounds)
        _overhead(rounds)


def _overhead(rounds: int | None) -> None:
    from fastattn.bench import overhead as module

    for line in module.lines(rounds or 100):
        typer.echo(line)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(metavar="BEFORE.json", help="The first result file.")],
    after: Annotated[str, typer.Argument(metavar="AFTER.json", help="The second one.")],
    debug: Debug = False,
) -> None:
    """Compare two result files, and flag what changed by more than noise.

    Says how it is and exits with 0, whatever became slower.
    """
    with clear_errors(debug):
        from fastattn.bench import comparison, results, screen, tables

        old, new = (results.read(Path(file).expanduser()) for file in (before, after))
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


def _check(device: str, threads: int | None, rounds: int | None) -> None:
    """Checks the options that all measurements share, and sets the number of threads."""
    import torch

    if device not in ("cpu", "cuda"):
        raise ValueError(
            f"bench: device must be 'cpu' or 'cuda'; got {device!r}. Leave --device out."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "bench: device must be one that torch can use; got 'cuda', and torch sees no GPU. "
            "Leave --device out, or see `fastattn info`."
        )
    for name, value in (("threads", threads), ("rounds", rounds)):
        if value is not None and value < 1:
            raise ValueError(f"bench: {name} must be at least 1; got {value}. Set --{name}.")
    from fastattn.backends import cpu

    if device == "cpu" and cpu.unavailable_reason() is not None:
        raise ValueError(
            "bench: the CPU backend must be ready to be measured; got: "
            f"{cpu.unavailable_reason()}. See `fastattn info`."
        )
    if threads is not None:
        torch.set_num_threads(threads)


def _run(
    kind: str,
    measure: Callable[[Callable[[str], None]], dict[str, Any]],
    *,
    partial: bool,
    quick: bool,
    output: str | None,
    options: dict[str, Any],
) -> None:
    """Measures, prints and saves."""
    from fastattn.bench import results, screen

    # A first impression or a part must not take the place of a full run's results.
    save = output is not None or not (quick or partial)
    path = results.choose_path(kind, output) if save else None
    head = results.provenance(kind, _command(kind, options), quick=quick, partial=partial)
    started = time.perf_counter()
    found = measure(screen.say)
    result = head | {"seconds": round(time.perf_counter() - started, 1)} | found
    screen.show(result)
    if path is None:
        typer.echo("Not saved: a quick or partial run is saved only where --output says.")
        return
    replaced = " (replaced an older result)" if path.exists() else ""
    results.write(path, result)
    typer.echo(f"Saved in {_short(path)}{replaced}.")


def _command(kind: str, options: dict[str, Any]) -> str:
    """The command as one would type it. Where results go has no influence on them: left out."""
    words = ["fastattn", "bench", kind.removeprefix("gpu-")]
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(name)
            elif item not in (None, False):
                words += [name, str(item)]
    return shlex.join(words)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
