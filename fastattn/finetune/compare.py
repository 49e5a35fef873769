"""How much faster is a training step than stock Transformers'? Measured on the run's own batches.

Both models have the same weights and the same dropout, and take the same batches, padded by the
ordinary collator. Steps alternate, so that whatever else the machine does meets both alike. A
step is forward, backward, gradient clipping and AdamW, as in the Trainer.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import fastattn
from fastattn.finetune.config import FinetuneConfig
from fastattn.finetune.model import ATTENTION_DROPOUTS, HIDDEN_DROPOUTS
from fastattn.finetune.tasks.base import Encoded, Task
from fastattn.finetune.training import choose_device

_MAX_GRAD_NORM = 1.0  # the Trainer's default

Batch = dict[str, torch.Tensor]


def compare_steps(
    config: FinetuneConfig, task: Task, checkpoint: Path, tokenizer: Any, train: Encoded
) -> dict[str, Any]:
    """Times training steps of stock Transformers and of the patched model, one by one in turn.

    Args:
        checkpoint: the folder whose weights both start from.
        train: where batches are drawn from, ``config.compare_steps`` of them and one more, on
            which both models warm up untimed.

    Returns:
        Medians in milliseconds, their ratio, and what they were measured on.
    """
    device = choose_device(config)
    load = task.auto_model.from_pretrained
    models = {name: _load_stock(load, checkpoint).to(device) for name in ("stock", "fastattn")}
    batches = _draw_batches(config, task.collator(tokenizer, models["stock"]), train, device)
    fastattn.patch(models["fastattn"])
    difference = _logit_difference(models, batches[0])
    steppers = {name: _Stepper(model, config) for name, model in models.items()}
    times_ms: dict[str, list[float]] = {name: [] for name in models}
    bar = tqdm(batches, desc="compare", unit="pair", disable=not config.progress)
    for index, batch in enumerate(bar):
        # Who goes first changes from pair to pair.
        for name in sorted(steppers, reverse=bool(index % 2)):
            elapsed_ms = steppers[name].step(batch)
            if index > 0:
                times_ms[name].append(elapsed_ms)
    medians = {name: statistics.median(times) for name, times in times_ms.items()}
    return {
        "ratio": medians["stock"] / medians["fastattn"],
        "stock_step_ms": medians["stock"],
        "fastattn_step_ms": medians["fastattn"],
        "stock_steps_ms": times_ms["stock"],
        "fastattn_steps_ms": times_ms["fastattn"],
        "shapes": [list(batch["input_ids"].shape) for batch in batches[1:]],
        "real_tokens": [int(batch["attention_mask"].sum()) for batch in batches[1:]],
        "stock_attention": models["stock"].config._attn_implementation,
        "dropout": _dropout(models["stock"]),
        "dtype": "bfloat16 autocast" if config.bf16 else "float32",
        "device": device,
        "threads": torch.get_num_threads(),
        "largest_logit_difference": difference,
    }


class _Stepper:
    """A model with its optimizer."""

    def __init__(self, model: nn.Module, config: FinetuneConfig) -> None:
        self._model = model.train()
        self._device = next(model.parameters()).device.type
        self._autocast = config.bf16
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,  # as the Trainer's default optimizer is
        )

    def step(self, batch: Batch) -> float:
        """Takes a step and returns its time in milliseconds."""
        self._synchronize()
        started = time.perf_counter()
        autocast = torch.autocast(self._device, torch.bfloat16) if self._autocast else None
        with autocast or contextlib.nullcontext():
            loss = self._model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), _MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._synchronize()
        return (time.perf_counter() - started) * 1e3

    def _synchronize(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def _load_stock(load: Callable[..., Any], checkpoint: Path) -> Any:
    """Loads a checkpoint as a user of Transformers would who knows its fastest attention."""
    try:
        return load(checkpoint, attn_implementation="sdpa")
    except ValueError:  # some models do not have it
        return load(checkpoint)


def _draw_batches(
    config: FinetuneConfig, collator: Any, train: Encoded, device: str
) -> list[Batch]:
    loader = torch.utils.data.DataLoader(
        train,
        batch_size=min(config.batch_size, len(train)),
        sampler=torch.utils.data.RandomSampler(
            train,
            num_samples=min(config.batch_size, len(train)) * (config.compare_steps + 1),
            generator=torch.Generator().manual_seed(config.seed),
        ),
        collate_fn=collator,
    )
    return [{name: value.to(device) for name, value in batch.items()} for batch in loader]


@torch.no_grad()
def _logit_difference(models: dict[str, nn.Module], batch: Batch) -> float:
    """The largest difference between the models' logits without dropout."""
    stock, ours = (_logits(model.eval()(**batch)) for model in models.values())
    difference = (stock - ours).abs()
    is_token = batch["attention_mask"].bool()
    if stock.ndim == 3 and stock.shape[:2] == is_token.shape:
        # Tokens' logits: what stock computes for padding means nothing.
        difference = difference[is_token]
    return float(difference.max())


def _logits(output: Any) -> torch.Tensor:
    if "logits" in output:
        return output.logits.float()
    return torch.stack([output.start_logits, output.end_logits]).float()


def _dropout(model: Any) -> Sequence[float]:
    """The dropout of hidden states and of attention weights."""
    return [
        next((getattr(model.config, name) for name in names if hasattr(model.config, name)), 0.0)
        for names in (HIDDEN_DROPOUTS, ATTENTION_DROPOUTS)
    ]
