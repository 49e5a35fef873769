"""One run of Transformers' stock Trainer, with our progress bar."""

from __future__ import annotations

import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback

from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.tasks.base import Encoded, Task

# Bars are redrawn this often; to a log file, where every redraw is a line, less often.
_TERMINAL_INTERVAL_S = 0.2
_LOG_INTERVAL_S = 5.0


class Evaluation(NamedTuple):
    """How well a model does on one set, and how long that took."""

    metrics: dict[str, float]
    loss: float
    seconds: float
    num_examples: int
    num_tokens: int  # without padding


class Progress(TrainerCallback):
    """Shows a bar with loss and tokens/s, and measures the time spent training.

    Tokens are counted without padding. The time leaves out evaluation between the epochs.
    """

    def __init__(self, show: bool) -> None:
        self.train_seconds = 0.0
        self.tokens = 0
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
        self._postfix["tokens/s"] = f"{self.tokens / self._elapsed():,.0f}"
        self._bar.set_postfix(self._postfix, refresh=False)
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self._postfix["loss"] = f"{float(logs['loss']):.3f}"

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


def choose_device(config: FinetuneConfig) -> str:
    """Returns "cuda" if it is there or asked for, or else "cpu".

    Raises:
        ValueError: it is asked for and not there.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ValueError(
            "finetune: device must be one that torch can use; got 'cuda', and torch sees no GPU. "
            "Leave --device out, or see `fastattn info`."
        )
    return "cuda" if available and config.device != "cpu" else "cpu"


def num_training_steps(config: FinetuneConfig, num_features: int) -> int:
    """Returns the number of optimizer steps of a run."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, math.ceil(config.epochs * math.ceil(num_features / config.batch_size)))


def make_trainer(
    config: FinetuneConfig,
    task: Task,
    model: Any,
    tokenizer: Any,
    train: Encoded,
    validation: Encoded | None,
    checkpoints: Path,
) -> tuple[Trainer, Progress]:
    """Returns the stock Trainer for a run of a task, and its progress bar."""
    steps = num_training_steps(config, len(train))
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(config.warmup_ratio * steps)
    arguments = task.arguments_class(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        use_cpu=choose_device(config) == "cpu",
        seed=config.seed,
        eval_strategy="no" if validation is None else "epoch",
        save_strategy="epoch" if config.save_steps is None else "steps",
        save_steps=config.save_steps or 500,
        save_total_limit=1,
        logging_steps=max(1, min(50, steps // 50)),
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=choose_device(config) == "cuda",
        report_to="none",
        disable_tqdm=True,  # our own bar instead
        **task.trainer_arguments(config),
    )
    trainer = task.trainer_class(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=task.collator(tokenizer, model),
        processing_class=tokenizer,
        compute_metrics=None if validation is None else task.scorer(validation, tokenizer),
        preprocess_logits_for_metrics=task.logits_to_predictions(),
    )
    trainer.remove_callback(PrinterCallback)
    progress = Progress(config.progress)
    trainer.add_callback(progress)
    return trainer, progress


def train(trainer: Trainer, checkpoint: Path | None) -> float:
    """Trains, from a checkpoint if one is given; returns the mean training loss."""
    with warnings.catch_warnings():
        # Transformers 4 counts tokens with torch.tensor(tensor), of which torch disapproves.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        # And it distrusts the clock when two checkpoints are less than a second apart.
        warnings.filterwarnings("ignore", message="mtime may not be reliable")
        result = trainer.train(
            resume_from_checkpoint=None if checkpoint is None else str(checkpoint)
        )
    return result.training_loss


def evaluate(trainer: Trainer, task: Task, encoded: Encoded) -> Evaluation:
    """Evaluates the Trainer's model on one set."""
    started = time.perf_counter()
    trainer.compute_metrics = task.scorer(encoded, trainer.processing_class)
    found = trainer.evaluate(encoded, metric_key_prefix="test")
    # What the Trainer adds of its own accord are times.
    times = ("runtime", "per_second", "time")
    metrics = {
        name.removeprefix("test_"): value
        for name, value in found.items()
        if name.startswith("test_") and not name.endswith(times)
    }
    return Evaluation(
        loss=metrics.pop("loss"),
        metrics=metrics,
        seconds=time.perf_counter() - started,
        num_examples=len(encoded.examples),
        num_tokens=encoded.num_tokens(),
    )
