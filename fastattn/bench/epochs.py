"""``fastattn bench epochs``: epochs of IMDB from the first step to the last, and what they reach.

A patched model trains on packed reviews in batches of few sizes (``pad_to_multiple_of``), eagerly
or compiled; with the mode "reduce-overhead" each size is a CUDA graph on a GPU. A step is that of
:mod:`fastattn.bench.bert`. Reviews are shuffled anew for each epoch, and those that fill no batch
are left out. Batches are made, and lie on the device, before: a loader does that meanwhile. Labels
alternate, and the weights of all models but MiniLM are random: this measures speed alone.

Each case is verified before it is timed, as it is timed: logits and gradients of the compiled
model, with tokens of no sequence in the batch, against those of the stock model in float64.
"""

from __future__ import annotations

import copy
import gc
import random
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

import fastattn
from fastattn.bench import bert, peak, texts
from fastattn.bench.attention import reason
from fastattn.bench.cases import EpochsCase
from fastattn.bench.flops import training_flops
from fastattn.data.packing import PackedCollator
from fastattn.errors import VerificationError

QUICK_EPOCHS = 1
# Steps on each size before the clock starts, and verifications of a compiled model: a CUDA graph is
# made of the second and first replayed in the third.
_WARMUP_PASSES = 3

Say = Callable[[str], None]


def draw_epochs(case: EpochsCase, epochs: int) -> list[list[bert.Batch]]:
    """Returns the packed batches of each epoch, the same ones in every run."""
    rows = list(_reviews(case.num_texts or texts.num_reviews(), case.max_length))
    collator = PackedCollator(pad_to_multiple_of=case.pad_to_multiple_of)
    labelled = [{**row, "labels": index % 2} for index, row in enumerate(rows)]
    shuffled = random.Random(texts.SEED)
    found = []
    for _ in range(epochs):
        shuffled.shuffle(labelled)
        starts = range(0, len(labelled) - case.batch_size + 1, case.batch_size)
        found.append([collator(labelled[start : start + case.batch_size]) for start in starts])
    return found


@cache
def _reviews(count: int, max_length: int) -> tuple[dict[str, list[int]], ...]:
    """All cases take the same ones, and tokenizing them takes longer than a quick epoch."""
    return tuple(texts.draw_reviews(count, max_length))


def size_of(batch: bert.Batch) -> tuple[int, int]:
    """Returns what differs between batches: the number of tokens, and the longest length's bound.

    A compiled model has a CUDA graph for each.
    """
    return batch["input_ids"].shape[1], batch["max_length_q"]


def run_case(
    case: EpochsCase, epochs: int, peak_gflops: float, *, device: str = "cpu"
) -> dict[str, Any]:
    """Verifies one case, and trains for so many epochs after some steps that are timed apart.

    Raises:
        VerificationError: logits or gradients are wrong, or weights are not finite at the end.
    """
    drawn = [[bert.to_device(x, device) for x in epoch] for epoch in draw_epochs(case, epochs)]
    batches = [batch for epoch in drawn for batch in epoch]
    stock = bert.load_model(case.bert).to(device)
    model = copy.deepcopy(stock)
    fastattn.patch(model)
    if case.compile_mode is not None:
        model = torch.compile(model, mode=case.compile_mode)
    short = bert.short_texts(case.bert, device)
    passes = 1 if case.compile_mode is None else _WARMUP_PASSES
    checked, _ = bert.verify(case.bert, stock, model, short, passes=passes)
    runner = bert.Runner(model, case.bert)
    sizes = {size_of(batch): batch for batch in batches}
    before = _graphs()
    warmup_s = _seconds(runner, [*sizes.values()] * _WARMUP_PASSES, device)
    warm = _graphs()
    epochs_s = [_seconds(runner, epoch, device) for epoch in drawn]
    _check_weights(case, model)
    training_s = sum(epochs_s)
    lengths = [length for x in batches for length in x["cu_seq_lens_q"].diff().tolist()]
    flops = training_flops(stock.config, lengths, only_first_rows=True)
    gflops = flops / training_s / 1e9
    return {
        "name": case.name,
        "model": case.model,
        "dtype": case.dtype,
        "batch_size": case.batch_size,
        "compile_mode": case.compile_mode,
        "pad_to_multiple_of": case.pad_to_multiple_of,
        "steps": len(batches),
        "tokens": sum(lengths),
        "padding": 1 - sum(lengths) / sum(tokens for tokens, _ in map(size_of, batches)),
        "sizes": sorted(sizes),
        "graphs": {"before": warm - before, "meanwhile": _graphs() - warm},
        "verified": checked,
        "warmup_s": warmup_s,
        "epochs_s": epochs_s,
        "training_s": training_s,
        "target_s": case.target_s,
        "tokens_per_s": sum(lengths) / training_s,
        "gflops": gflops,
        "peak_share": gflops / peak_gflops,
    }


def _seconds(runner: bert.Runner, batches: Sequence[bert.Batch], device: str) -> float:
    """Trains on batches, and returns the seconds until the device has done it."""
    started = time.perf_counter()
    for batch in batches:
        runner.step(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _graphs() -> int:
    """Returns how many graphs were compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _check_weights(case: EpochsCase, model: nn.Module) -> None:
    wrong = [name for name, x in model.named_parameters() if not bool(x.isfinite().all())]
    if wrong:
        raise VerificationError(
            f"bench: the weights of {case.name} must be finite after training; got others in "
            f"{wrong[0]}. Its times are no result; run `fastattn check`."
        )


def run(
    cases: Sequence[EpochsCase],
    *,
    quick: bool = False,
    epochs: int | None = None,
    say: Say = lambda line: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Runs cases with torch's number of threads; ``epochs`` replaces each case's own.

    Returns:
        What a result file holds beside the machine: the peaks by dtype, the cases, and why a
        compiled one was not run.
    """
    texts.require_packages()
    dtypes = sorted({case.dtype for case in cases})
    peaks = {dtype: peak.gflops(device, dtype) for dtype in dtypes}
    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for case in cases:
        say(case.name)
        count = epochs or (QUICK_EPOCHS if quick else case.epochs)
        try:
            results.append(run_case(case, count, peaks[case.dtype], device=device))
        except Exception as error:
            if case.compile_mode is None or isinstance(error, VerificationError):
                raise
            skipped[case.name] = reason(error)  # a CPU without a compiler, say
        torch.compiler.reset()
        gc.collect()  # two models, and the memory of graphs
    return {"peak_gflops": peaks, "cases": results, "skipped": skipped}
