"""Runs stock and patched models side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastattn.coverage.cases import BATCH_SIZE, CASES, PADDINGS, SEQLEN, Case, make_batch, make_mask
from fastattn.coverage.speed import speedup
from fastattn.errors import PatchError
from fastattn.patching import PatchReport, patch
from fastattn.patching.attention_only import SERVED
from fastattn.patching.fusions import FUSIONS

_NEW_TOKENS = 8


@dataclass(frozen=True)
class Row:
    """What one model gets."""

    name: str
    num_heads: int  # classes that ran, the body among them
    attention: bool
    unpadded: bool
    fused: tuple[str, ...]  # the fusions that apply to one of its classes or more
    error: float | None  # the largest, relative, over outputs and gradients; None if left stock
    generates: bool | None  # whether greedy tokens are those of stock; None if it does not generate
    reasons: tuple[str, ...]  # what was left, and why
    speedup: float | None = None  # of a training step; None if it was not measured


def measure(cases: Iterable[Case] = CASES) -> list[Row]:
    """Runs every head of every model, stock and patched, and times a step of each model."""
    return [replace(measure_one(case), speedup=speedup(case)) for case in cases]


def measure_one(case: Case) -> Row:
    """Runs every head of one model."""
    reports: list[PatchReport] = []
    reasons: dict[str, None] = {}
    errors: list[float] = []
    generated: list[bool] = []
    classes = case.classes()
    for class_name in classes:
        stock = case.make(class_name)
        ours = copy.deepcopy(stock)
        try:
            reports.append(patch(ours))
        except PatchError as error:
            reasons |= {str(error).partition("got ")[2].partition(". ")[0]: None}
            continue
        reasons |= {layer.reason: None for layer in reports[-1].left}
        errors += [_error(case, stock, ours, padding) for padding in PADDINGS]
        if stock.can_generate():
            generated.append(_generates(case, stock, ours))
    done = [{layer.reason for layer in report.replaced} for report in reports]
    # Some are for some heads alone.
    fused = [name for name, text in FUSIONS.items() if any(text in x for x in done)]
    return Row(
        name=case.name,
        num_heads=len(classes),
        attention=bool(done) and all(SERVED in x for x in done),
        unpadded=bool(done) and any("padding removed" in y for x in done for y in x),
        fused=tuple(fused),
        error=max(errors) if errors else None,
        generates=all(generated) if generated else None,
        reasons=tuple(reasons),
    )


def _error(case: Case, stock: Any, ours: Any, padding: str) -> float:
    """Returns the largest difference of a step, relative to the largest number of its kind."""
    batch = make_batch(case, stock, padding)
    mask = make_mask(padding)
    outputs, grads = step(stock, batch, mask)
    our_outputs, our_grads = step(ours, batch, mask)
    if outputs.keys() != our_outputs.keys() or grads.keys() != our_grads.keys():
        return float("inf")
    largest = max(float(x.abs().max()) for x in grads.values())
    errors = [
        float((our_outputs[name] - x).abs().max()) / max(float(x.abs().max()), 1e-300)
        for name, x in outputs.items()
    ]
    errors += [float((our_grads[name] - x).abs().max()) / largest for name, x in grads.items()]
    return max(x if x == x else float("inf") for x in errors)


def step(
    model: Any, batch: dict[str, Any], mask: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the outputs, rows of padding zero, and the gradients of a sum of all of them."""
    model.zero_grad()
    outputs: dict[str, Tensor] = {}
    for name, x in model.train()(**batch).items():
        if not isinstance(x, Tensor):
            continue
        if mask is not None and x.shape[:2] == (BATCH_SIZE, SEQLEN):
            x = x * (mask != 0).view(*mask.shape, *[1] * (x.ndim - 2))
        outputs[name] = x
    # Weights of all signs and sizes: every row, and every column, counts.
    total = sum(
        (x * torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x)).sum()
        for x in outputs.values()
    )
    assert isinstance(total, Tensor)
    total.backward()
    grads = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {name: x.detach() for name, x in outputs.items()}, grads


def _generates(case: Case, stock: Any, ours: Any) -> bool:
    """Whether greedy decoding with a cache gives the same tokens."""
    batch = make_batch(case, stock, "left" if case.decodes else "right")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    tokens = [
        model.eval().generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
        for model in (stock, ours)
    ]
    return torch.equal(*tokens)
