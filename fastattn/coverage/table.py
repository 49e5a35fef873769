"""The coverage table as a page of Markdown."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import torch
import transformers

from fastattn import environment
from fastattn.coverage import speed
from fastattn.coverage.measure import Row, measure

# Rounding differs between machines; beyond this it is no rounding.
ROUNDING = 1e-12

_HEAD = """# Coverage

What `fastattn.patch` does for each model, with Transformers {version}. Made by
`python -m fastattn.coverage docs/coverage.md`, which builds every head of each model with random
weights and runs it stock and patched, forward and backward, in float64.

- *Attention*: runs `fastattn.attention`.
- *Unpadded*: padding is removed once around the whole encoder.
- *Fused layer*: the names for `fuse` that apply: query, key and value projected together (`qkv`);
  bias, dropout, residual and LayerNorm, and bias and GELU, as one operator each (`layer_norm`,
  `gelu`); products on our own kernel (`linear`); no rows but those that a head for sequences reads
  in the last layer (`first_rows`).
- *Error*: the largest difference from stock, relative, over all outputs and gradients of batches
  padded right, left and inside, and of unpadded ones. Stock runs torch's own attention where the
  model can, because in float64 many a model's eager attention computes its softmax in float32.
- *Generation*: whether greedy decoding with a cache gives the tokens of stock.
- *Speed-up*: a training step in float32 of a model of {layers} layers, {hidden} wide, on 8 rows of
  {seqlen} positions, right padding leaving {shortest} to {seqlen}: stock's time on torch's own
  attention over ours, the fastest of a few, with {threads} thread(s) on {cpu}, {date}. It says
  which way a model goes; `fastattn bench` measures.

| Model | Heads | Attention | Unpadded | Fused layer | Error | Generation | Speed-up |
|---|---:|---|---|---|---|---|---:|
"""


def page(rows: Iterable[Row] | None = None) -> str:
    """Returns the whole page; by default measured now."""
    rows = measure() if rows is None else list(rows)
    lines = "".join(line(row) for row in rows)
    left = "\n## What is left as it was, and why\n\n"
    return head() + lines + left + "".join(notes(row) for row in rows)


def head() -> str:
    """Returns what comes before the rows."""
    return _HEAD.format(
        version=version(),
        layers=speed.NUM_LAYERS,
        hidden=speed.HIDDEN_SIZE,
        seqlen=speed.SEQLEN,
        shortest=speed.SHORTEST,
        threads=torch.get_num_threads(),
        cpu=environment.cpu()["model"],
        date=datetime.date.today(),
    )


def version() -> str:
    """Returns the version of Transformers that the table is about."""
    return ".".join(transformers.__version__.split(".")[:2])


def line(row: Row) -> str:
    """Returns one model's line of the table."""
    cells = [
        row.name,
        str(row.num_heads),
        *("yes" if x else "no" for x in (row.attention, row.unpadded)),
        ", ".join(row.fused) or "no",
        _error(row.error),
        {True: "same tokens", False: "OTHER TOKENS", None: ""}[row.generates],
        "" if row.speedup is None else f"{row.speedup:.1f}x",
    ]
    return f"| {' | '.join(cells)} |\n"


def notes(row: Row) -> str:
    """Returns one model's lines on what was left."""
    return "".join(f"- {row.name}: {reason}.\n" for reason in row.reasons)


def _error(error: float | None) -> str:
    """Returns the error in words that do not change with the machine."""
    if error is None:
        return "left stock"
    return f"< {ROUNDING:.0e}" if error < ROUNDING else f"**{error:.1g}**"
