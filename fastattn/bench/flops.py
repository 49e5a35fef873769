"""What a training step of BERT must compute, in floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def training_flops(config: Any, lengths: Sequence[int], *, only_first_rows: bool = False) -> int:
    """Returns the operations of forward and backward of a BERT with a head for sequences.

    Counted are the matrix products, a multiply-add as two: linear layers, q @ k.T and p @ v, over
    real tokens. Backward is twice forward, since each product of it has two gradients; what is
    computed once more there, as kernels do with the scores, is not useful and does not count.

    Args:
        config: sizes, under the names of BERT's config.
        lengths: of the sequences of a batch, in tokens, or of all that were trained on.
        only_first_rows: whether only what is read of the last layer counts, as in a patched model:
            its keys and values, and all else of the first row of each sequence.
    """
    hidden, tokens, batch_size = config.hidden_size, sum(lengths), len(lengths)
    # Of a row: query and output, and the feed-forward part; key and value; scores and their sums.
    own = 2 * hidden**2 + 2 * hidden * config.intermediate_size
    read_by_others = 2 * hidden**2
    layer = tokens * (own + read_by_others) + 2 * hidden * sum(length**2 for length in lengths)
    last = layer
    if only_first_rows:
        last = batch_size * own + tokens * read_by_others + 2 * hidden * tokens
    head = batch_size * (hidden**2 + hidden * config.num_labels)
    multiply_adds = (config.num_hidden_layers - 1) * layer + last + head
    return 3 * 2 * multiply_adds
