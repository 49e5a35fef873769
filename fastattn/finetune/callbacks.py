"""What a run adds to the stock Trainer's loop: a bar, when to evaluate and save, when to stop."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState

from fastattn.finetune.config import FinetuneConfig

# Bars are redrawn this often; to a log file, where every redraw is a line, less often.
_TERMINAL_INTERVAL_S = 0.2
_LOG_INTERVAL_S = 5.0


class Progress(TrainerCallback):
    """Shows a bar with loss and tokens/s, and measures the time spent training.

    Tokens are counted without padding. The time leaves out evaluation between the epochs.
    """

    def __init__(self, show: bool) -> None:
        self.train_seconds = 0.0
        self.tokens = 0
        self.tokens_per_second = 0.0
        self.first_step = 0
        self._show = show
        self._bar: tqdm | None = None
        self._evaluation_bar: tqdm | None = None
        self._postfix = {"loss": "?", "tokens/s": "?"}
        self._started = self._evaluation_seconds = 0.0
        self._tokens_before = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = self._new_bar("train", state.max_steps, state.global_step)
        self.first_step = state.global_step
        self._tokens_before = state.num_input_tokens_seen
        self._evaluation_seconds = 0.0
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._bar is not None
        self.tokens = state.num_input_tokens_seen - self._tokens_before
        self.tokens_per_second = self.tokens / self._elapsed()
        self._postfix["tokens/s"] = f"{self.tokens_per_second:,.0f}"
        self._bar.set_postfix(self._postfix, refresh=False)
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self._postfix["loss"] = f"{float(logs['loss']):.3f}"
            # For the curves, and for callbacks that come after this one.
            logs["tokens_per_second"] = self.tokens_per_second
            state.log_history[-1]["tokens_per_second"] = self.tokens_per_second

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self._evaluation_bar is None:
            self._evaluation_bar = self._new_bar("evaluate", len(eval_dataloader), 0)
        self._evaluation_bar.update(1)

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._evaluation_bar is not None:
            self._evaluation_bar.close()
            self._evaluation_bar = None
        self._evaluation_seconds += (metrics or {}).get("eval_runtime", 0.0)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.train_seconds = self._elapsed()
        self.tokens_per_second = self.tokens / self.train_seconds
        assert self._bar is not None
        self._bar.close()
        self._bar = None

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started - self._evaluation_seconds

    def _new_bar(self, name: str, total: int, initial: int) -> tqdm:
        interval = _TERMINAL_INTERVAL_S if sys.stderr.isatty() else _LOG_INTERVAL_S
        return tqdm(
            desc=name,
            total=total,
            initial=initial,
            unit="step",
            mininterval=interval,
            dynamic_ncols=True,
            disable=not self._show,
            leave=self._bar is None or name == "train",  # within training, make room again
        )


class ExtraSteps(TrainerCallback):
    """Saves every ``save_steps``, beside the checkpoints of the evaluations.

    And evaluates the last step, which might be better than every one evaluated so far.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        self._save_steps = config.save_steps
        self._evaluates = config.eval_steps is not None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._save_steps is not None and state.global_step % self._save_steps == 0:
            control.should_save = True
        if self._evaluates and state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def stopped_early(checkpoint: Path) -> TrainerState | None:
    """Returns the state of a run that had already stopped early when it saved this checkpoint.

    The Trainer would forget that, and train on until the next evaluation.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    saved = (state.stateful_callbacks or {}).get(EarlyStoppingCallback.__name__)
    if saved is None:
        return None
    waited = saved["attributes"]["early_stopping_patience_counter"]
    return state if waited >= saved["args"]["early_stopping_patience"] else None
