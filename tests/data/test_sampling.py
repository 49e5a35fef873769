"""Batches have about as many tokens, ranks as many batches, and every text is seen once."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastattn.data.packing import PackedCollator
from fastattn.data.sampling import TokenBudgetSampler

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)


def _batches(lengths: list[int], tokens: int, replicas: int = 1, epoch: int = 0, **options):
    """The batches of every rank."""
    made = []
    for rank in range(replicas):
        sampler = TokenBudgetSampler(
            lengths, tokens, num_replicas=replicas, rank=rank, seed=5, **options
        )
        sampler.set_epoch(epoch)
        made.append(list(sampler))
        assert len(sampler) == len(made[-1])
    return made


@given(LENGTHS, st.integers(1, 300), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_every_text_is_in_one_batch_of_one_rank(lengths, tokens, replicas, epoch, shuffle):
    if len(lengths) < replicas:
        return
    ranks = _batches(lengths, tokens, replicas, epoch, shuffle=shuffle)
    batches = [batch for rank in ranks for batch in rank]
    assert all(batches)
    assert sorted(chain.from_iterable(batches)) == list(range(len(lengths)))
    assert len({len(rank) for rank in ranks}) == 1
    # Unless there are fewer texts than batches of this size.
    if len(batches) < len(lengths) // replicas * replicas:
        longest = max(sum(lengths[i] for i in batch) for batch in batches)
        assert longest <= tokens + max(lengths)


@given(LENGTHS, st.integers(60, 300), st.integers(1, 3))
def test_without_the_last_batch(lengths, tokens, replicas):
    if len(lengths) < replicas:
        return
    ranks = _batches(lengths, tokens, replicas, drop_last=True)
    seen = sorted(i for rank in ranks for batch in rank for i in batch)
    assert len(set(seen)) == len(seen)
    left_out = sum(lengths) - sum(lengths[i] for i in seen)
    assert left_out <= tokens * replicas + max(lengths)
    assert len({len(rank) for rank in ranks}) == 1


def test_batches_are_as_full_as_they_can_be():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 512, (2000,), generator=generator).tolist()
    for drop_last in (False, True):
        (batches,) = _batches(lengths, 8192, drop_last=drop_last)
        tokens = [sum(lengths[i] for i in batch) for batch in batches]
        assert len(batches) == sum(lengths) // 8192 + (not drop_last)
        assert min(tokens) > 8192 - 512 and max(tokens) < 8192 + 512


def test_epochs_and_seeds_give_other_orders():
    lengths = [5] * 40
    first, second = (_batches(lengths, 50, epoch=epoch) for epoch in (0, 1))
    assert first != second
    assert first == _batches(lengths, 50, epoch=0)
    other = TokenBudgetSampler(lengths, 50, seed=6)
    assert list(other) != first[0]
    (plain,) = _batches(lengths, 50, shuffle=False)
    assert plain == [list(range(i, i + 10)) for i in range(0, 40, 10)]


def test_a_text_longer_than_the_budget_has_a_batch():
    (batches,) = _batches([3, 3, 200, 3], 10, shuffle=False)
    assert [2] in batches
    assert sorted(chain.from_iterable(batches)) == [0, 1, 2, 3]


@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_a_plain_data_loader(context):
    texts = [{"input_ids": [i] * (1 + i % 7), "label": i} for i in range(30)]
    sampler = TokenBudgetSampler([len(x["input_ids"]) for x in texts], 25)
    loader = DataLoader(
        texts,
        batch_sampler=sampler,
        collate_fn=PackedCollator(),
        num_workers=2 if context else 0,
        multiprocessing_context=context,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == len(sampler)
    assert sorted(torch.cat([x["labels"] for x in batches]).tolist()) == list(range(30))
    for batch in batches:
        starts = batch["cu_seq_lens_q"][:-1].long()
        assert torch.equal(batch["input_ids"][0, starts], batch["labels"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lengths=[]), r"lengths must be a list of positive numbers.*got shape \(0,\). Leave"),
        (dict(lengths=[3, 0]), r"lengths must be .* got 0 at index 1. Leave out empty texts."),
        (dict(tokens_per_batch=0), r"tokens_per_batch must be positive; got 0. A few thousand"),
        (dict(rank=2), r"rank must be in \[0, 2\); got 2. Leave rank and num_replicas out"),
        (
            dict(lengths=[3]),
            r"lengths must name a text at least for each of 2 replicas; got 1. Train on",
        ),
    ],
)
def test_what_is_refused(arguments, message):
    given = dict(lengths=[3, 4, 5], tokens_per_batch=5, num_replicas=2, rank=0) | arguments
    with pytest.raises(ValueError, match="TokenBudgetSampler: " + message):
        TokenBudgetSampler(**given)
