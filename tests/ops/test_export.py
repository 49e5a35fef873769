"""Functions in the programs that torch.export makes: they serve sizes other than the example's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastattn
from fastattn.compat import bert_padding, flash_attn
from fastattn.compat.rotary import apply_rotary_emb

pytestmark = pytest.mark.skipif(torch.__version__ < "2.9", reason="only tried with newer compilers")
LENGTHS = ((3, 4, 2), (3, 4, 2, 5))
SIZES = ((3, 12, 4), (5, 20, 6))  # batch, rows of the cache, new rows


def ends(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def packed(lengths: tuple[int, ...], *others: Tensor) -> tuple[Tensor, ...]:
    """Rows of sequences, (total, heads, head_dim), and where these end."""
    return torch.randn(sum(lengths), 2, 8), ends(lengths), *others


def padded(lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Hidden states of a batch and its mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, 16), mask.long()


def cached(batch_size: int, rows: int, new: int) -> tuple[Tensor, ...]:
    """q, both caches, k, v, and the rows that are in the cache."""
    shapes = [(batch_size, size, 2, 8) for size in (new, rows, rows, new, new)]
    before = torch.randint(1, rows - new, (batch_size,), dtype=torch.int32)
    return *(torch.randn(shape) for shape in shapes), before


def table() -> tuple[Tensor, Tensor]:
    angles = torch.randn(20, 4)
    return angles.cos(), angles.sin()


def attend(q: Tensor, ends: Tensor, **options: Any) -> Any:
    return fastattn.attention(q, q, q, cu_seqlens_q=ends, **options)


def with_a_tensor_as_longest(q: Tensor, ends: Tensor) -> Any:
    longest: Any = ends.diff().max()
    return flash_attn.flash_attn_varlen_func(q, q, q, ends, ends, longest, longest)


def with_cache(q: Tensor, k_cache: Tensor, v_cache: Tensor, *new: Tensor) -> Any:
    k, v, before, *rotary = new
    caches = k_cache.clone(), v_cache.clone()
    return flash_attn.flash_attn_with_kvcache(
        q, *caches, k, v, *rotary, cache_seqlens=before, causal=True
    )


def unpadded(hidden_states: Tensor, mask: Tensor) -> Tensor:
    rows, indices, ends, longest, _ = bert_padding.unpad_input(hidden_states, mask)
    q = rows.unflatten(-1, (2, -1))
    out: Any = flash_attn.flash_attn_varlen_func(q, q, q, ends, ends, longest, longest)
    return bert_padding.pad_input(out.flatten(1), indices, *mask.shape)


def concatenated(hidden_states: Tensor, lengths: Tensor) -> Tensor:
    rows, indices, _, longest = bert_padding.unpad_input_for_concatenated_sequences(
        hidden_states, lengths
    )
    return bert_padding.pad_input(rows * longest, indices, *lengths.shape)


# What is exported, and arguments of two sizes.
CASES: dict[str, tuple[Callable[..., Any], list[tuple[Tensor, ...]]]] = {
    "packed": (attend, [packed(x) for x in LENGTHS]),
    "reference": (
        lambda *x: attend(*x, max_seqlen_q=9, max_seqlen_k=9, backend="reference"),
        [packed(x) for x in LENGTHS],
    ),
    "a tensor as longest": (with_a_tensor_as_longest, [packed(x) for x in LENGTHS]),
    "cache": (with_cache, [cached(*x) for x in SIZES]),
    "cache and rotation": (with_cache, [(*cached(*x), *table()) for x in SIZES]),
    "rotation": (
        lambda x, ends, cos, sin: apply_rotary_emb(x, cos, sin, cu_seqlens=ends),
        [packed(x, *table()) for x in LENGTHS],
    ),
    "rotation with offsets": (
        lambda x, ends, offsets, cos, sin: apply_rotary_emb(
            x, cos, sin, cu_seqlens=ends, seqlen_offsets=offsets
        ),
        [packed(x, torch.arange(len(x)), *table()) for x in LENGTHS],
    ),
    "padding": (unpadded, [padded(x) for x in LENGTHS]),
    "concatenated sequences": (
        concatenated,
        [
            (torch.randn(2, 6, 4), torch.tensor([[2, 3, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]])),
            (torch.randn(3, 4, 4), torch.tensor([[2, 2, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])),
        ],
    ),
}


class Module(torch.nn.Module):
    """A function, which torch.export takes no other way."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


@pytest.mark.parametrize("name", CASES)
def test_other_sizes(name):
    function, (first, other) = CASES[name]
    shapes = tuple(dict.fromkeys(range(x.ndim), torch.export.Dim.AUTO) for x in first)
    program = torch.export.export(
        Module(function), first, dynamic_shapes=(shapes,), strict=False
    ).module()
    for arguments in (first, other):
        torch.testing.assert_close(program(*arguments), function(*arguments))
