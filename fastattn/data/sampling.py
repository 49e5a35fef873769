"""Batches of about as many tokens, whatever their number of rows.

A model without padding spends its time and memory on tokens. Batches of a fixed number of texts
hold few tokens or many; batches of a fixed number of tokens take all as long, and on several ranks
nobody waits for the rank with the longest texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class TokenBudgetSampler(Sampler[list[int]]):
    """Cuts an epoch into batches of about ``tokens_per_batch`` tokens.

        sampler = TokenBudgetSampler(lengths, tokens_per_batch=4096)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=PackedCollator())

    The shuffled texts are laid one after the other and cut where equal shares of tokens end. So
    every epoch has the same number of batches, so does every rank, no rank gets a short last one,
    and every text is in one batch of the epoch. A batch holds at most ``tokens_per_batch`` tokens
    and those of one text more.

    Args:
        lengths: the number of tokens of each text.
        tokens_per_batch: how many tokens a batch is to have at most on average.
        shuffle: whether each epoch has an order of its own, drawn from the seed and the epoch.
        seed: the same on every rank.
        num_replicas: how many ranks share an epoch. Default: those of torch.distributed, or 1.
        rank: which of them this one is. Default: that of torch.distributed, or 0.
        drop_last: whether to leave out the texts that fill no further batch on every rank, so that
            batches are as full as they can be. Which they are is another choice in each epoch.

    Raises:
        ValueError: a length or number is not positive, the rank is none of the replicas, or there
            are fewer texts than replicas.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        tokens_per_batch: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        self._lengths = torch.as_tensor(lengths, dtype=torch.int64)
        _check(self._lengths, tokens_per_batch, num_replicas, rank)
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.num_replicas, self.rank = num_replicas, rank
        per_round = tokens_per_batch * num_replicas
        total = int(self._lengths.sum())
        rounds = max(1, total // per_round if drop_last else math.ceil(total / per_round))
        # Every batch has a text at least.
        self._num_batches = min(rounds, len(self._lengths) // num_replicas)
        share = tokens_per_batch if drop_last else total / (self._num_batches * num_replicas)
        self._tokens = min(share, total / (self._num_batches * num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the epoch that is iterated next; the same on every rank."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of batches of this rank, in every epoch."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the indices of the texts of each batch of this rank."""
        count = len(self._lengths)
        order = torch.arange(count)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(count, generator=generator)
        cuts = self._cuts(self._lengths[order])
        indices = order.tolist()
        for batch in range(self.rank, len(cuts) - 1, self.num_replicas):
            yield indices[cuts[batch] : cuts[batch + 1]]

    def _cuts(self, lengths: torch.Tensor) -> list[int]:
        """Returns where the batches of all ranks begin, and where the last of them ends."""
        number = self._num_batches * self.num_replicas
        ends = lengths.cumsum(0)
        wanted = torch.arange(1, number + 1, dtype=torch.float64) * self._tokens
        # A text goes to the share in which its middle lies.
        middles = ends.double() - lengths / 2
        cuts = [0, *torch.searchsorted(middles, wanted).tolist()]
        for batch in range(1, number + 1):
            # At least one text in this batch, and one for each of those that follow.
            most = len(lengths) - (number - batch)
            cuts[batch] = min(max(cuts[batch], cuts[batch - 1] + 1), most)
        return cuts


def _check(lengths: torch.Tensor, tokens_per_batch: int, num_replicas: int, rank: int) -> None:
    name = "TokenBudgetSampler"
    if lengths.ndim != 1 or len(lengths) == 0 or int(lengths.min()) < 1:
        raise ValueError(
            f"{name}: lengths must be a list of positive numbers of tokens; got "
            f"{_shown(lengths)}. Leave out empty texts."
        )
    if tokens_per_batch < 1:
        raise ValueError(
            f"{name}: tokens_per_batch must be positive; got {tokens_per_batch}. A few thousand "
            "are usual."
        )
    if not 0 <= rank < num_replicas:
        raise ValueError(
            f"{name}: rank must be in [0, {num_replicas}); got {rank}. Leave rank and num_replicas "
            "out to take those of torch.distributed."
        )
    if len(lengths) < num_replicas:
        raise ValueError(
            f"{name}: lengths must name a text at least for each of {num_replicas} replicas; got "
            f"{len(lengths)}. Train on fewer ranks."
        )


def _shown(lengths: torch.Tensor) -> str:
    if lengths.ndim != 1 or len(lengths) == 0:
        return f"shape {tuple(lengths.shape)}"
    return f"{int(lengths.min())} at index {int(lengths.argmin())}"
