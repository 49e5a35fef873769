"""Which items of work the blocks of Hopper's kernels take: each one once, the costliest first."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.emulator.conftest import CSRC

SOURCE = Path(__file__).with_name("work_items.cu")
NOTHING = 2**31 - 1  # the row of a block that has no item
MAX_RANKED, MIN_MEAN_ROWS = 128, 128  # of work.cuh
SHORT = 64  # queries and keys of a warpgroup, of tile.cuh

Item = tuple[int, int, int]  # sequence, first row, head
Block = tuple[int, int, range]  # sequence, first row, heads
Items = Callable[..., list[Block]]


@pytest.fixture(scope="module")
def items(compile_library: Callable[..., ctypes.CDLL]) -> Items:
    """items(by_keys, heads, lengths_q, lengths_k, tail) -> the blocks' items, in their order.

    Of packed sequences, or with batch_size of so many as long as the only one.
    """
    library = compile_library("work_items", [(CSRC, SOURCE)])
    library.work_items.restype = ctypes.c_int64

    def items(
        by_keys: bool,
        heads: int,
        lengths_q: Sequence[int],
        lengths_k: Sequence[int],
        tail: int = 0,
        *,
        batch_size: int | None = None,
        sharing: int = 1,
    ) -> list[Block]:
        ends = [list(itertools.accumulate(x, initial=0)) for x in (lengths_q, lengths_k)]
        lengths = [torch.tensor(x, dtype=torch.int32) for x in ends]
        packed = batch_size is None
        pointers = [ctypes.c_void_p(x.data_ptr() if packed else None) for x in lengths]
        sizes = (len(lengths_q) if batch_size is None else batch_size, heads * sharing, heads)
        totals = [ctypes.c_int64(x[-1] + tail) for x in ends]
        arguments = (ctypes.c_bool(by_keys), *map(ctypes.c_int64, sizes), *pointers, *totals)
        blocks = library.work_items(*arguments, None)
        found = torch.full((blocks, 4), -1, dtype=torch.int32)
        assert library.work_items(*arguments, ctypes.c_void_p(found.data_ptr())) == blocks
        return [(sequence, row, range(*heads)) for sequence, row, *heads in found.tolist()]

    return items


def by_head(blocks: list[Block]) -> list[Item]:
    return [(sequence, row, head) for sequence, row, heads in blocks for head in heads]


def expected(by_keys: bool, heads: int, lengths_q: Sequence[int], lengths_k: Sequence[int]) -> set:
    """All items there are; the last length is that of the rows behind the last sequence."""
    kept: set[Item] = set()
    for sequence, length in enumerate(lengths_k if by_keys else lengths_q):
        rows = range(0, max(1, length), 512) if by_keys else range(0, length, 128)
        kept |= {(sequence, row, head) for row in rows for head in range(heads)}
    return kept


def cost(by_keys: bool, length_q: int, length_k: int) -> int:
    if by_keys:
        return -(-min(length_k, 512) // 128) * -(-length_q // 64)
    return -(-length_k // 64)


lengths = st.sampled_from([0, 1, 63, 64, 65, 127, 128, 129, 200, 512, 513, 1300])


@given(st.lists(st.tuples(lengths, lengths), max_size=9), st.integers(1, 3), st.booleans())
@settings(max_examples=60)
def test_each_item_is_taken_once_and_costly_ones_first(items, pairs, heads, by_keys):
    lengths_q, lengths_k = ([pair[side] for pair in pairs] for side in (0, 1))
    blocks = items(by_keys, heads, lengths_q, lengths_k, 70)
    taken = by_head(blocks)
    own = lengths_k if by_keys else lengths_q
    all_q, all_k = [*lengths_q, 70], [*lengths_k, 70]
    ends = [max(1, x) if by_keys else x for x in (all_k if by_keys else all_q)]
    real = [item for item in taken if item[1] < ends[item[0]]]
    assert len(real) == len(set(real))
    assert set(real) == expected(by_keys, heads, all_q, all_k)
    if sum(own) + 70 >= MIN_MEAN_ROWS * len(own):
        costs = [
            0 if sequence == len(pairs) else cost(by_keys, all_q[sequence], all_k[sequence])
            for sequence, _, _ in real
        ]
        assert costs == sorted(costs, reverse=True)
        assert {item[1] for item in taken[len(real) :]} <= {NOTHING}
    for sequence, row, block_heads in blocks:
        if row < ends[sequence] and len(block_heads) > 1:
            assert max(all_q[sequence], all_k[sequence]) <= SHORT


@pytest.mark.parametrize("by_keys", [False, True])
def test_many_sequences_keep_their_order(items, by_keys):
    """Ranking them would take longer than it saves; and so it would for short ones."""
    for own in ([1, 600] * (MAX_RANKED // 2), [3, 100, 20]):
        taken = items(by_keys, 1, own, own, 0)
        order = [block[0] for block in taken if block[1] < max(1, [*own, 0][block[0]])]
        assert order == sorted(order)


@pytest.mark.parametrize("by_keys", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 5, 12])
@pytest.mark.parametrize(("length_q", "length_k"), [(64, 64), (1, 0), (30, 64), (65, 64), (64, 65)])
def test_a_short_batch_has_a_block_for_two_heads(items, length_q, length_k, heads, by_keys):
    """No block ends at once, and the last one of an odd number of heads has one."""
    blocks = items(by_keys, heads, [length_q], [length_k], batch_size=3)
    pairs = [range(head, min(head + 2, heads)) for head in range(0, heads, 2)]
    apart = [range(head, head + 1) for head in range(heads)]
    expected_heads = pairs if max(length_q, length_k) <= SHORT else apart
    assert blocks == [(i, 0, own) for i in range(3) for own in expected_heads]


def test_packed_short_sequences_share_blocks_too(items):
    """The host knows no length, so as many blocks start, and half of them have no head."""
    blocks = items(False, 3, [64, 65], [64, 64])
    of_first = [heads for sequence, row, heads in blocks if (sequence, row) == (0, 0)]
    assert [list(heads) for heads in of_first] == [[0, 1], [2], []]
    of_second = [heads for sequence, row, heads in blocks if (sequence, row) == (1, 0)]
    assert [list(heads) for heads in of_second] == [[0], [1], [2]]


def test_heads_that_share_keys_have_blocks_of_their_own_in_the_backward_pass(items):
    """But a pair of query heads in the others: each warpgroup has keys of its own there."""
    by_keys = items(True, 2, [64], [64], batch_size=1, sharing=2)
    assert by_keys == [(0, 0, range(0, 1)), (0, 0, range(1, 2))]
    assert items(False, 2, [64], [64], batch_size=1, sharing=2) == [
        (0, 0, range(0, 2)),
        (0, 0, range(2, 4)),
    ]
