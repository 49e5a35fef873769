"""``fastattn bench bert``: whole training steps and inference, beside stock Transformers.

Both models start from the same weights, and take the same texts and the same dropout; batches are
padded by the ordinary collator to the longest of each, or for fastattn packed, where the case says
so. Steps alternate. A training step is forward, backward, gradient clipping and the fused AdamW, as
in the Trainer. The stock model runs torch's own attention, for short texts eager attention as well;
inference has ONNX Runtime beside it where that is installed. Each case is verified before it is
timed: logits and gradients, without dropout, against those of the stock model in float64.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastattn
from fastattn.bench import lengths, texts
from fastattn.bench.attention import reason
from fastattn.bench.cases import BertCase
from fastattn.bench.peers import PEER_FACTOR, Refusal, require_distributions
from fastattn.bench.profiling import profile_ms
from fastattn.bench.timing import Run, by_clock, compare, interleave
from fastattn.errors import VerificationError

_LEARNING_RATE = 5e-5  # these two and the norm: the Trainer's defaults
_WEIGHT_DECAY = 0.0
_MAX_GRAD_NORM = 1.0

# The Trainer's length-grouped sampler sorts this many batches at a time.
_BATCHES_SORTED_TOGETHER = 50

# Of a case. A slow machine makes fewer rounds; no ratio stands on less than three.
_BUDGET_S = 40.0

# Verification takes a few short texts: float64 is slow, and what can be wrong is wrong there too.
_VERIFIED_LENGTHS = (64, 32, 32, 7)
# The relative error allowed: a multiple of the stock model's in the same dtype, and a floor.
_ERROR_FACTOR = 3.0
_ERROR_FLOOR = {"float32": 2e-5, "bfloat16": 2e-2}

_CONFIGS: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "bert-base": {},
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}

Batch = dict[str, Any]
Rows = list[dict[str, list[int]]]
Say = Callable[[str], None]


class Pair(NamedTuple):
    """The same texts as stock Transformers gets them, and as fastattn does."""

    stock: Batch
    ours: Batch


def load_model(case: BertCase) -> Any:
    """Returns the stock model of a case, for two classes, in float32.

    All but MiniLM have random weights: speed does not depend on them, and no download is needed.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig

    from fastattn.finetune.model import packaged_model_path

    torch.manual_seed(0)
    if case.model == "minilm-l6":
        folder = packaged_model_path()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    else:
        config = BertConfig(**_CONFIGS[case.model])
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


def draw_texts(case: BertCase, count: int) -> Rows:
    """Returns tokenized reviews, of their own lengths or cut to GLUE-like ones."""
    rows = texts.draw_reviews(count, case.max_length)
    if case.lengths == "imdb":
        return rows
    wanted = lengths.glue_like(count, case.max_length)
    return [cut(row, length) for row, length in zip(rows, wanted, strict=True)]


def cut(row: dict[str, list[int]], length: int) -> dict[str, list[int]]:
    """Returns the first tokens of a text."""
    return {name: values[:length] for name, values in row.items()}


def draw_batches(case: BertCase, count: int) -> list[Pair]:
    """Returns batches of texts, the same ones in every run.

    Grouped batches are drawn as by the Trainer's length-grouped sampler: of 50 batches' worth of
    texts sorted by length.
    """
    size = case.batch_size
    num_batches = _BATCHES_SORTED_TOGETHER if case.is_grouped else count
    rows = draw_texts(case, max(num_batches, count) * size)
    if case.is_grouped:
        rows.sort(key=lambda row: len(row["input_ids"]), reverse=True)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    groups = random.Random(texts.SEED).sample(groups, count)
    return [collate(case, group, index) for index, group in enumerate(groups)]


def collate(case: BertCase, rows: Rows, index: int = 0) -> Pair:
    """Returns a batch of texts for both."""
    from transformers import DataCollatorWithPadding

    from fastattn.data.packing import PackedCollator

    labelled = [{**row, "labels": (i + index) % 2} for i, row in enumerate(rows)]
    stock = dict(DataCollatorWithPadding(texts.tokenizer())(labelled))
    if case.batching != "packed":
        return Pair(stock, stock)
    return Pair(stock, PackedCollator(pad_to_multiple_of=case.pad_to_multiple_of)(labelled))


def to_device(batch: Mapping[str, Any], device: str) -> Batch:
    """Returns a batch whose tensors are on a device."""
    return {k: x.to(device) if isinstance(x, Tensor) else x for k, x in batch.items()}


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


class Inference:
    """Something else than a model that computes logits."""

    def __init__(self, logits: Callable[..., Tensor]) -> None:
        self.logits = logits

    def step(self, batch: Batch) -> None:
        """Computes the logits of a batch."""
        self.logits(**batch)


def autocast(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Returns what bfloat16 training runs under; nothing for float32."""
    if dtype == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def short_texts(case: BertCase, device: str = "cpu") -> Pair:
    """Returns the few texts that verification takes, with padding among them for whom it is."""
    rows = texts.draw_reviews(len(_VERIFIED_LENGTHS), case.max_length)
    cut_rows = [cut(row, n) for row, n in zip(rows, _VERIFIED_LENGTHS, strict=True)]
    return Pair(*(to_device(batch, device) for batch in collate(case, cut_rows)))


def verify(
    case: BertCase,
    stock: Any,
    ours: Any,
    batch: Pair,
    peers: Mapping[str, Any] | None = None,
    passes: int = 1,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Compares logits and gradients, without dropout, with those of the stock model in float64.

    Args:
        peers: more models, and functions of a batch that return logits.
        passes: how often ours computes and is compared; a compiled model is not itself at once.

    Returns:
        For "logits" and "gradients" (all parameters as one vector) our relative error
        |x - truth| / |truth| in the last pass, and the one allowed; and why a peer is not timed.

    Raises:
        VerificationError: ours are further off than that.
    """
    truth = _logits_and_gradients(copy.deepcopy(stock).double(), batch.stock, "float64")
    theirs = _relative(_logits_and_gradients(stock, batch.stock, case.dtype), truth)
    allowed = {
        name: _ERROR_FACTOR * error + _ERROR_FLOOR[case.dtype] for name, error in theirs.items()
    }
    found: dict[str, float] = {}
    for _ in range(passes):
        found = _relative(_logits_and_gradients(ours, batch.ours, case.dtype), truth)
        _check_errors(case, found, allowed)
    refused = {}
    for name, peer in (peers or {}).items():
        if isinstance(peer, nn.Module):
            errors = _relative(_logits_and_gradients(peer, batch.stock, case.dtype), truth)
        else:
            logits = {"logits": peer(**batch.stock).double()}
            errors = _relative(logits, truth)
        for what, error in errors.items():
            if not error <= PEER_FACTOR * allowed[what]:
                refused[name] = f"its {what} have a relative error of {error:.1e}"
    checked = {name: {"error": found[name], "allowed": allowed[name]} for name in found}
    return checked, refused


def _check_errors(case: BertCase, found: Mapping[str, float], allowed: Mapping[str, float]) -> None:
    for name, error in found.items():
        if not error <= allowed[name]:
            raise VerificationError(
                f"bench: the {name} of {case.name} must be as accurate as stock Transformers'; got "
                f"a relative error of {error:.2e}, where {allowed[name]:.2e} is allowed. Nothing "
                "was timed; run `fastattn check`."
            )


def _relative(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        name: float((x - truth[name]).norm()) / float(truth[name].norm())
        for name, x in found.items()
    }


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


def _more_peers(
    case: BertCase, stock: Any, batch: Pair, device: str, quick: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the peers beside the stock model, and why others are not there."""
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    if case.lengths == "glue" and case.model != "bert-large":
        found["stock-eager"] = copy.deepcopy(stock)
        found["stock-eager"].set_attn_implementation("eager")
    if case.mode == "inference":
        try:
            found["onnxruntime"] = _onnxruntime(case, stock, batch, device, quick)
        except Exception as error:  # whatever a peer cannot do is part of the result
            refused["onnxruntime"] = reason(error)
    return found, refused


def _onnxruntime(
    case: BertCase, stock: Any, batch: Pair, device: str, quick: bool
) -> Callable[..., Tensor]:
    require_distributions("onnxruntime", "onnx", "onnxscript")
    if device != "cpu" or case.dtype != "float32":
        raise Refusal("its session here is of float32 on a CPU")
    if quick:
        raise Refusal("exporting takes too long for a quick run")
    from fastattn.bench.onnx_peer import model_session

    return model_session(stock.eval(), batch.stock)


def run_case(
    case: BertCase, rounds: int, device: str = "cpu", *, quick: bool = False
) -> dict[str, Any]:
    """Verifies, times and profiles one case on ``rounds`` batches, after one untimed.

    A slow machine makes fewer rounds, but three. A step on a GPU ends when the GPU has done it;
    what remains in it is not profiled.
    """
    pairs = [
        Pair(*(to_device(batch, device) for batch in pair))
        for pair in draw_batches(case, rounds + 1)
    ]
    stock = load_model(case).to(device)
    patched = copy.deepcopy(stock)
    fastattn.patch(patched)
    short = short_texts(case, device)
    more, refused = _more_peers(case, stock, short, device, quick)
    checked, wrong = verify(case, stock, patched, short, more)
    refused |= wrong
    models = {"fastattn": patched, "stock": stock} | more
    steppers: dict[str, Runner | Inference] = {
        name: Runner(x, case) if isinstance(x, nn.Module) else Inference(x)
        for name, x in models.items()
        if name not in refused
    }
    times_ms = interleave(
        {name: _steps(x, name, pairs) for name, x in steppers.items()},
        rounds,
        warmup=1,
        stopwatch=_by_clock_of(device),
        budget_s=_BUDGET_S,
    )
    timed = pairs[1 : 1 + len(times_ms["fastattn"])]
    typical = _typical(timed)
    return {
        "name": case.name,
        "model": case.model,
        "mode": case.mode,
        "dtype": case.dtype,
        "batch_size": case.batch_size,
        "batching": "grouped" if case.is_grouped else case.batching,
        "lengths": case.lengths,
        "grouped_without_dropout": case.grouped_without_dropout,
        "dropout": _dropout(stock),
        "stock_attention": stock.config._attn_implementation,
        "shapes": [list(pair.stock["input_ids"].shape) for pair in timed],
        "tokens": [int(pair.stock["attention_mask"].sum()) for pair in timed],
        "refused": refused,
        "verified": checked,
        **compare(times_ms),
        "times_ms": times_ms,
        "target": case.target,
        "profile_ms": profile_ms(lambda: steppers["fastattn"].step(typical.ours))
        if device == "cpu"
        else {},
    }


def _by_clock_of(device: str) -> Callable[[Run], float]:
    def timed(run: Run) -> float:
        def until_done() -> None:
            run()
            if device == "cuda":
                torch.cuda.synchronize()

        return by_clock(until_done)

    return timed


def _steps(runner: Runner | Inference, name: str, pairs: Sequence[Pair]) -> Run:
    todo = iter(pairs)

    def step() -> None:
        pair = next(todo)
        runner.step(pair.ours if name == "fastattn" else pair.stock)

    return step


def _typical(pairs: Sequence[Pair]) -> Pair:
    """The batch with the median number of tokens."""
    ordered = sorted(pairs, key=lambda pair: int(pair.stock["attention_mask"].sum()))
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
        results.append(run_case(case, rounds or usual, device, quick=quick))
        gc.collect()  # two models with their optimizers
    return {"cases": results}
