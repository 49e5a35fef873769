"""``fastattn bench bert``: whole training steps and inference, beside stock Transformers.

Both models start from the same weights, and take the same batches of real reviews, padded by the
ordinary collator to the longest of each batch, and the same dropout. Steps alternate. A training
step is forward, backward, gradient clipping and the fused AdamW, as in the Trainer. The stock model
runs torch's own attention, its fastest. Each case is verified before it is timed: logits and
gradients of both models, without dropout, against those of the stock model in float64.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fastattn
from fastattn.bench import texts
from fastattn.bench.cases import BertCase
from fastattn.bench.profiling import profile_ms
from fastattn.bench.timing import compare, interleave
from fastattn.errors import VerificationError

_LEARNING_RATE = 5e-5  # these two and the norm: the Trainer's defaults
_WEIGHT_DECAY = 0.0
_MAX_GRAD_NORM = 1.0

# The Trainer's length-grouped sampler sorts this many batches at a time.
_BATCHES_SORTED_TOGETHER = 50

# Verification takes a few short texts: float64 is slow, and what can be wrong is wrong there too.
_VERIFIED_TEXTS = 4
_VERIFIED_TOKENS = 64
# The relative error allowed: a multiple of the stock model's in the same dtype, and a floor.
_ERROR_FACTOR = 3.0
_ERROR_FLOOR = {"float32": 2e-5, "bfloat16": 2e-2}

Batch = dict[str, Tensor]
Say = Callable[[str], None]


def load_model(case: BertCase) -> Any:
    """Returns the stock model of a case, for two classes, in float32.

    bert-base has random weights: speed does not depend on them, and no download is needed.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig

    from fastattn.finetune.model import packaged_model_path

    torch.manual_seed(0)
    if case.model == "minilm-l6":
        folder = packaged_model_path()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    elif case.model == "tiny":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = BertConfig(**sizes, intermediate_size=64)
    else:
        config = BertConfig()
    config.num_labels = 2
    if case.grouped_without_dropout:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        config.classifier_dropout = 0.0
    kind = AutoModelForSequenceClassification
    if case.model == "minilm-l6":
        return kind.from_pretrained(
            folder, config=config, attn_implementation="sdpa", dtype=torch.float32
        )
    return kind.from_config(config, attn_implementation="sdpa")


def draw_batches(case: BertCase, count: int) -> list[Batch]:
    """Returns padded batches of real reviews, the same ones in every run.

    Grouped batches are drawn as by the Trainer's length-grouped sampler: of 50 batches' worth of
    reviews sorted by length.
    """
    from transformers import DataCollatorWithPadding

    size = case.batch_size
    num_batches = _BATCHES_SORTED_TOGETHER if case.grouped_without_dropout else count
    rows = texts.draw_reviews(max(num_batches, count) * size, case.max_length)
    if case.grouped_without_dropout:
        rows.sort(key=lambda row: len(row["input_ids"]), reverse=True)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    groups = random.Random(texts.SEED).sample(groups, count)
    collate = DataCollatorWithPadding(texts.tokenizer())
    batches = [dict(collate(group)) for group in groups]
    for index, batch in enumerate(batches):
        batch["labels"] = (torch.arange(size) + index) % 2
    return batches


class Runner:
    """A model with its optimizer, and the step that is timed, on the device of the model."""

    def __init__(self, model: Any, case: BertCase) -> None:
        self.model = model.train(case.mode == "train")
        self._case = case
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True
        )

    def step(self, batch: Batch) -> None:
        """Trains on a batch, or computes its logits."""
        if self._case.mode == "inference":
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            with torch.inference_mode(), autocast(self._case.dtype, batch["labels"].device):
                self.model(**inputs)
            return
        with autocast(self._case.dtype, batch["labels"].device):
            loss = self.model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()


def autocast(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Returns what bfloat16 training runs under; nothing for float32."""
    if dtype == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def verify(case: BertCase, stock: Any, ours: Any, batch: Batch) -> dict[str, dict[str, float]]:
    """Compares logits and gradients of both models, without dropout, with the truth in float64.

    Returns:
        For "logits" and "gradients" (all parameters as one vector) the relative error
        |x - truth| / |truth|, and the one allowed.

    Raises:
        VerificationError: ours are further off than that.
    """
    short = {
        name: value[:_VERIFIED_TEXTS, :_VERIFIED_TOKENS] if value.dim() == 2 else value
        for name, value in batch.items()
    }
    short["labels"] = short["labels"][:_VERIFIED_TEXTS]
    # Reviews are seldom so short that there is padding among their first tokens.
    short["attention_mask"] = short["attention_mask"].clone()
    short["attention_mask"][1:, short["attention_mask"].shape[1] // 2 :] = 0
    truth = _logits_and_gradients(copy.deepcopy(stock).double(), short, "float64")
    theirs = _logits_and_gradients(stock, short, case.dtype)
    found = _logits_and_gradients(ours, short, case.dtype)
    checked = {}
    for name in truth:
        scale = float(truth[name].norm())
        error, stock_error = (
            float((x[name] - truth[name]).norm()) / scale for x in (found, theirs)
        )
        allowed = _ERROR_FACTOR * stock_error + _ERROR_FLOOR[case.dtype]
        if not error <= allowed:
            raise VerificationError(
                f"bench: the {name} of {case.name} must be as accurate as stock Transformers'; got "
                f"a relative error of {error:.2e}, where {allowed:.2e} is allowed. Nothing was "
                "timed; run `fastattn check`."
            )
        checked[name] = {"error": error, "allowed": allowed}
    return checked


def _logits_and_gradients(model: Any, batch: Batch, dtype: str) -> dict[str, Tensor]:
    was_training = model.training
    model.eval()  # no dropout
    with autocast(dtype, batch["labels"].device):
        output = model(**batch)
    output.loss.backward()
    gradients = torch.cat([p.grad.flatten().double() for p in model.parameters()])
    model.zero_grad()
    model.train(was_training)
    return {"logits": output.logits.detach().double(), "gradients": gradients}


def run_case(case: BertCase, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Verifies, times and profiles one case on ``rounds`` batches, after one untimed.

    A step on a GPU ends when the GPU has done it; what remains in it is not profiled.
    """
    warm_up, *batches = (
        {name: value.to(device) for name, value in batch.items()}
        for batch in draw_batches(case, rounds + 1)
    )
    stock = load_model(case).to(device)
    ours = copy.deepcopy(stock)
    fastattn.patch(ours)
    checked = verify(case, stock, ours, warm_up)
    runners = {"fastattn": Runner(ours, case), "stock": Runner(stock, case)}
    for runner in runners.values():
        runner.step(warm_up)
    todo = {name: iter(batches) for name in runners}
    times_ms = interleave(
        {name: _next_step(runner, todo[name]) for name, runner in runners.items()},
        rounds,
        warmup=0,
    )
    return {
        "name": case.name,
        "model": case.model,
        "mode": case.mode,
        "dtype": case.dtype,
        "batch_size": case.batch_size,
        "grouped_without_dropout": case.grouped_without_dropout,
        "dropout": _dropout(stock),
        "stock_attention": stock.config._attn_implementation,
        "shapes": [list(batch["input_ids"].shape) for batch in batches],
        "tokens": [int(batch["attention_mask"].sum()) for batch in batches],
        "verified": checked,
        **compare(times_ms),
        "times_ms": times_ms,
        "target": case.target,
        "profile_ms": profile_ms(lambda: runners["fastattn"].step(_typical(batches)))
        if device == "cpu"
        else {},
    }


def _next_step(runner: Runner, batches: Any) -> Callable[[], None]:
    def step() -> None:
        batch = next(batches)
        runner.step(batch)
        if batch["labels"].is_cuda:
            torch.cuda.synchronize()

    return step


def _typical(batches: Sequence[Batch]) -> Batch:
    """The batch with the median number of tokens."""
    ordered = sorted(batches, key=lambda batch: int(batch["attention_mask"].sum()))
    return ordered[len(ordered) // 2]


def _dropout(model: Any) -> dict[str, float]:
    config = model.config
    return {
        "hidden": config.hidden_dropout_prob,
        "attention": config.attention_probs_dropout_prob,
    }


def run(
    cases: Sequence[BertCase],
    *,
    quick: bool = False,
    rounds: int | None = None,
    say: Say = lambda line: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Runs cases with torch's number of threads; ``rounds`` replaces each case's own.

    Returns:
        What a result file holds beside the machine: the cases.
    """
    texts.require_packages()
    results = []
    for case in cases:
        say(case.name)
        usual = case.quick_rounds if quick else case.rounds
        results.append(run_case(case, rounds or usual, device))
    return {"cases": results}
