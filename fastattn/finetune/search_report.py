"""What a search prints and draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.curves import points
from fastattn.finetune.output import CURVES_FILE, SEARCH_FILE
from fastattn.finetune.search_config import SearchConfig


def print_line(console: Console, line: str) -> None:
    """Prints a line as it is."""
    console.print(line, markup=False, soft_wrap=True)


def score_words(metric: str, score: float) -> str:
    """Returns a metric's name and value."""
    return f"{metric.replace('_', ' ')} {score:.4f}"


def print_start(
    console: Console,
    config: FinetuneConfig,
    search: SearchConfig,
    study: optuna.Study,
    folder: Path,
) -> None:
    """Says what will be tried, and what has been."""
    rates = search.learning_rates
    if search.trials is None:
        where = f"learning rates {', '.join(f'{rate:g}' for rate in rates)}"
    else:
        where = f"{search.trials} learning rates from {min(rates):g} to {max(rates):g}"
        where += f", proposed by Optuna's sampler {search.sampler}"
    done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    print_line(console, f"search    {where}; {search.workers} worker(s)")
    if done:
        print_line(console, f"          {done} trial(s) are done already")
    print_line(console, f"trial     {config.model} for {config.task}, {config.duration()}")
    print_line(console, f"output    {folder}\n")


def print_result(
    console: Console, study: optuna.Study, metric: str, winner: dict[str, Any], folder: Path
) -> None:
    """Prints a table of the trials, the winner, and what to type next."""
    name = metric.replace("_", " ")
    table = Table(box=None, header_style="", pad_edge=False)
    for column in ("learning rate", f"validation {name}", "kept step", "training", ""):
        table.add_column(column, justify="right")
    best = study.best_trial
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for trial in sorted(done, key=lambda trial: trial.params["learning_rate"]):
        table.add_row(
            f"{trial.params['learning_rate']:.3g}",
            f"{trial.value:.4f}",
            str(trial.user_attrs["kept_step"]),
            f"{trial.user_attrs['seconds']:.1f} s",
            "best" if trial.number == best.number else "",
        )
    console.print()
    console.print(table)
    console.print()
    metrics = winner["metrics"]
    if metrics is not None:
        words = score_words(metric, metrics[f"test_{metric}"])
        print_line(console, f"winner    test {words}; its model is in {folder / 'best'}")
    print_line(console, f"curves    {folder / CURVES_FILE}; figures: {folder / SEARCH_FILE}")
    print_line(
        console,
        f"next      fastattn finetune --learning-rate {best.params['learning_rate']:.6g} ...",
    )


def draw(study: optuna.Study, metric: str, folder: Path) -> None:
    """Draws validation loss and metric by step for each trial, and the metric by learning rate."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials.sort(key=lambda trial: trial.params["learning_rate"])
    figure = Figure(figsize=(12, 4), layout="constrained")
    loss, score, rates = figure.subplots(1, 3)
    colors = colormaps["viridis"]
    for index, trial in enumerate(trials):
        color = colors(index / max(1, len(trials)))
        label = f"{trial.params['learning_rate']:.3g}"
        for ax, name in ((loss, "eval_loss"), (score, f"eval_{metric}")):
            ax.plot(
                *points(trial.user_attrs["history"], name), "o-", ms=3, color=color, label=label
            )
    tried = [trial.params["learning_rate"] for trial in trials]
    rates.plot(tried, [trial.value for trial in trials], "o-", color="gray")
    best = study.best_trial
    rates.plot([best.params["learning_rate"]], [best.value], "o", color="C3", label="best")
    rates.set(xscale="log")
    name = metric.replace("_", " ")
    for ax, title, along in (
        (loss, "validation loss", "step"),
        (score, f"validation {name}", "step"),
        (rates, f"validation {name}, of the model kept", "learning rate"),
    ):
        ax.set(title=title, xlabel=along)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    figure.savefig(folder / CURVES_FILE, dpi=120)
