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

Item = tuple[int, int, int]  # sequence, first row, head
Items = Callable[..., list[Item]]


@pytest.fixture(scope="module")
def items(compile_library: Callable[..., ctypes.CDLL]) -> Items:
    """items(by_keys, heads, lengths_q, lengths_k, tail) -> the blocks' items, in their order."""
    library = compile_library("work_items", [(CSRC, SOURCE)])
    library.work_items.restype = ctypes.c_int64

    def items(
        by_keys: bool, heads: int, lengths_q: Sequence[int], lengths_k: Sequence[int], tail: int
    ) -> list[Item]:
        ends = [list(itertools.accumulate(x, initial=0)) for x in (lengths_q, lengths_k)]
        lengths = [torch.tensor(x, dtype=torch.int32) for x in ends]
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in lengths]
        totals = [ctypes.c_int64(x[-1] + tail) for x in ends]
        batch = ctypes.c_int64(len(lengths_q))
        arguments = (ctypes.c_bool(by_keys), batch, ctypes.c_int64(heads), *pointers, *totals)
        blocks = library.work_items(*arguments, None)
        found = torch.full((blocks, 3), -1, dtype=torch.int32)
        assert library.work_items(*arguments, ctypes.c_void_p(found.data_ptr())) == blocks
        return [tuple(x) for x in found.tolist()]

    return items


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
    taken = items(by_keys, heads, lengths_q, lengths_k, 70)
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


@pytest.mark.parametrize("by_keys", [False, True])
def test_many_sequences_keep_their_order(items, by_keys):
    """Ranking them would take longer than it saves; and so it would for short ones."""
    for own in ([1, 600] * (MAX_RANKED // 2), [3, 100, 20]):
        taken = items(by_keys, 1, own, own, 0)
        order = [item[0] for item in taken if item[1] < max(1, [*own, 0][item[0]])]
        assert order == sorted(order)
