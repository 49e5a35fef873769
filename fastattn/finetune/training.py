"""One run of Transformers' stock Trainer, with our progress bar."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer

from fastattn.finetune.callbacks import ExtraSteps, Progress, stopped_early
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.curves import tensorboard_callback, writes_tensorboard
from fastattn.finetune.output import CHECKPOINTS
from fastattn.finetune.tasks.base import Encoded, Task


class Evaluation(NamedTuple):
    """How well a model does on one set, and how long that took."""

    metrics: dict[str, float]
    loss: float
    seconds: float
    num_examples: int
    num_tokens: int  # without padding


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


def num_training_steps(config: FinetuneConfig, num_features: int, num_processes: int = 1) -> int:
    """Returns the number of optimizer steps of a run."""
    if config.max_steps is not None:
        return config.max_steps
    global_batch = config.batch_size * num_processes
    return max(1, math.ceil(config.epochs * math.ceil(num_features / global_batch)))


def make_trainer(
    config: FinetuneConfig,
    task: Task,
    model: Any,
    tokenizer: Any,
    train: Encoded,
    validation: Encoded | None,
    output: Path,
    num_processes: int = 1,
) -> tuple[Trainer, Progress]:
    """Returns the stock Trainer for a run of a task, and its progress bar.

    Args:
        output: the folder of the run, where checkpoints and TensorBoard's files go.
    """
    steps = num_training_steps(config, len(train), num_processes)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(config.warmup_ratio * steps)
    arguments = task.arguments_class(
        num_train_epochs=config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup,
        weight_decay=config.weight_decay,
        label_smoothing_factor=config.label_smoothing,
        bf16=config.bf16,
        use_cpu=choose_device(config) == "cpu",
        # Multiplies the loss by the number of processes, for models that divide it by the number of
        # labels of all. The heads of BERT and its family take a mean (Transformers 5.23).
        average_tokens_across_devices=False,
        seed=config.seed,
        logging_steps=max(1, min(50, steps // 50)),
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=choose_device(config) == "cuda",
        report_to="none",
        disable_tqdm=True,  # our own bar instead
        **_checkpoints(config, task, validation, output / CHECKPOINTS),
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
    trainer.add_callback(ExtraSteps(config))
    if config.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(config.patience))
    if writes_tensorboard(config.tensorboard) and trainer.is_world_process_zero():
        trainer.add_callback(tensorboard_callback(output))
    return trainer, progress


def _checkpoints(
    config: FinetuneConfig, task: Task, validation: Encoded | None, folder: Path
) -> dict[str, Any]:
    """The Trainer's arguments of when to evaluate, what to save, and which to keep.

    To keep the best, the Trainer wants a checkpoint of every evaluation. It then holds two, the
    best and the last, which a killed run goes on from.
    """
    evaluation: dict[str, Any] = {"eval_strategy": "no"}
    every = "epoch" if config.eval_steps is None else "steps"
    saving: dict[str, Any] = {"save_strategy": "epoch"}
    if validation is not None:
        evaluation = {"eval_strategy": every, "eval_steps": config.eval_steps}
        if config.keep == "best":
            saving = {
                "save_strategy": every,
                "save_steps": config.eval_steps or 500,
                "load_best_model_at_end": True,
                "metric_for_best_model": f"eval_{task.metric}",
                "greater_is_better": task.greater_is_better,
                # How long early stopping has waited, for a run that is resumed.
                "restore_callback_states_from_checkpoint": True,
            }
    limit = 2 if "load_best_model_at_end" in saving else 1
    return {
        # Absolute, because the state of a run holds the path of its best checkpoint.
        "output_dir": str(folder.resolve()),
        "save_total_limit": limit,
        **evaluation,
        **saving,
    }


def train(trainer: Trainer, checkpoint: Path | None) -> float | None:
    """Trains, from a checkpoint if one is given; returns the mean training loss.

    None if the checkpoint is of a run that had stopped early: there is nothing left to train.
    """
    stopped = None if checkpoint is None else stopped_early(checkpoint)
    if stopped is not None:
        trainer.state = stopped
        best = type(trainer.model).from_pretrained(stopped.best_model_checkpoint)
        trainer.model.load_state_dict(best.state_dict())
        return None
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
