"""The settings of a search for the learning rate, their defaults, and their rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastattn.environment import launched_processes
from fastattn.finetune.config import FinetuneConfig

SAMPLERS = ("grid", "tpe", "random")
WINNERS = ("reuse", "retrain", "none")


@dataclass
class SearchConfig:
    """Where to look and how. ``fastattn search --help`` describes each field.

    ``learning_rates`` are the points of a grid; the samplers look between its smallest and its
    largest.
    """

    # BERT's paper chose among 2e-5 to 5e-5, for batches of 16 and 32; smaller batches want less.
    learning_rates: tuple[float, ...] = (1e-5, 1.5e-5, 2e-5, 3e-5)
    sampler: str = "grid"
    trials: int | None = None
    workers: int = 1
    winner: str = "reuse"
    storage: str | None = None
    study: str = "learning-rate"

    def check(self, config: FinetuneConfig) -> None:
        """Raises a ValueError that names the first setting that breaks its rule.

        Args:
            config: the settings of the trials.
        """
        for field, allowed, rule in self._rules(config):
            if not allowed:
                value = getattr(self, field)
                option = "--" + field.replace("_", "-")
                raise ValueError(
                    f"search: {field} must be {rule}; got {value!r}. Set it with {option}."
                )
        if config.validation_size == 0:
            raise ValueError(
                "search: validation_size must be at least 1, for the validation set decides; got "
                "0. Set it with --validation-size."
            )
        if config.save_steps is not None:
            raise ValueError(
                "search: save_steps must be left out, for a trial that was interrupted is run "
                f"again from its beginning; got {config.save_steps}. Leave --save-steps out."
            )
        if config.overwrite and self.storage is not None:
            raise ValueError(
                "search: overwrite must be left out beside storage, whose study it does not "
                "replace; got both. Begin another study there with --study, or go on with --resume."
            )
        if launched_processes() > 1:
            raise ValueError(
                "search: a search must be started as one process; got "
                f"{launched_processes()} of a launcher. Use --workers."
            )

    def _rules(self, config: FinetuneConfig) -> Iterator[tuple[str, bool, str]]:
        rates, grid = self.learning_rates, self.sampler == "grid"
        yield (
            "learning_rates",
            isinstance(rates, (tuple, list))
            and bool(rates)
            and all(_rate(x) for x in rates)
            and len({*rates}) == len(rates),
            "different numbers above 0 and at most 1",
        )
        yield "sampler", self.sampler in SAMPLERS, f"one of {', '.join(SAMPLERS)}"
        yield (
            "trials",
            self.trials is None if grid else _whole(self.trials),
            "left out for a grid, which has a trial for each point"
            if grid
            else f"a whole number of at least 1 for the sampler {self.sampler}",
        )
        yield (
            "learning_rates",
            grid or len(rates) > 1,
            f"a smallest and a largest for the sampler {self.sampler}",
        )
        yield "workers", _whole(self.workers), "a whole number of at least 1"
        yield "winner", self.winner in WINNERS, f"one of {', '.join(WINNERS)}"
        yield (
            "winner",
            config.patience is None or self.winner != "retrain",
            "reuse or none with --patience, for a winner that is retrained on the validation set "
            "too has nothing left to stop it",
        )
        yield (
            "storage",
            self.storage is None or "://" in self.storage,
            "a URL of a database, such as postgresql://user@host/name",
        )
        yield (
            "study",
            isinstance(self.study, str) and self.study.strip() != "",
            "the name of a search in the database",
        )


def _rate(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 < value <= 1


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
