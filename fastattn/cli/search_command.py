"""``fastattn search``: its options, and those of ``fastattn finetune``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fastattn.cli import finetune_command
from fastattn.cli.errors import clear_errors
from fastattn.finetune.search_config import SAMPLERS, WINNERS, SearchConfig

_DEFAULT = SearchConfig()
_RATES = ",".join(f"{rate:g}" for rate in _DEFAULT.learning_rates)
_PANEL = "Search"
# Options of finetune that a search has no use for: it sets the one, measures no speed, and begins a
# trial that was interrupted anew.
_LEFT_OUT = ("learning_rate", "compare_steps", "no_compare", "save_steps")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not numbers with commas between them") from None


def _option(help: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=_PANEL, **settings)


LearningRates = Annotated[
    Any,
    _option(
        "The points of the grid, with commas between them; samplers look between the smallest "
        "and the largest.",
        metavar="A,B,...",
        parser=_numbers,
    ),
]
Sampler = Annotated[str, _option(f"How to choose what to try: {', '.join(SAMPLERS)}.")]
Trials = Annotated[int | None, _option("How many to try; for a sampler. A grid has its points.")]
Workers = Annotated[int, _option("Processes on this machine that run trials at the same time.")]
Winner = Annotated[
    str,
    _option(
        f"{', '.join(WINNERS)}. The best model goes into best/ as it is, or trained anew on the "
        "training and validation sets, and is evaluated on the test set."
    ),
]
Storage = Annotated[
    str | None,
    _option(
        "URL of a database for Optuna, which workers on several machines share. Default: "
        "search.db in the output folder."
    ),
]
Study = Annotated[str, _option("Name of the search in the database.")]


def _with_options_of_finetune(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of finetune beside its own, for typer to read."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    others = inspect.signature(finetune_command.finetune, eval_str=True).parameters.values()
    context, *rest = (x for x in others if x.name not in _LEFT_OUT)
    merged = [context, *own, *rest]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        command(**given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [x.replace(kind=keyword) for x in merged]
    )
    wrapped.__annotations__ = {x.name: x.annotation for x in merged}
    return wrapped


@_with_options_of_finetune
def search(
    learning_rates: LearningRates = _RATES,
    sampler: Sampler = _DEFAULT.sampler,
    trials: Trials = None,
    workers: Workers = _DEFAULT.workers,
    winner: Winner = _DEFAULT.winner,
    storage: Storage = None,
    study: Study = _DEFAULT.study,
    **options: Any,
) -> None:
    """Choose the learning rate on the validation set: one run of finetune for each.

    The same command with --resume goes on after an interruption, or helps while it runs; nothing
    that is done is done again.
    """
    with clear_errors(options["debug"]):
        config = finetune_command.given_settings(options["context"])
        chosen = SearchConfig(
            learning_rates=learning_rates,
            sampler=sampler,
            trials=trials,
            workers=workers,
            winner=winner,
            storage=storage,
            study=study,
        )
        config.check()
        chosen.check(config)
        finetune_command.prepare_libraries()
        _require_optuna()
        from fastattn.finetune.search import search as run

        run(config, chosen)


def _require_optuna() -> None:
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise ImportError(
            "search: optuna must be installed; got none. Run `pip install 'fastattn[search]'`."
        )
