"""Transformers' Trainer with batches of about as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer

from fastattn.data.sampling import TokenBudgetSampler

# What is taken over from the stock loader besides its data set and collator.
_KEPT = (
    "num_workers",
    "pin_memory",
    "worker_init_fn",
    "prefetch_factor",
    "persistent_workers",
    "multiprocessing_context",
)


class TokenBudgetTrainer(Trainer):
    """The stock Trainer, whose training batches are cut by a :class:`TokenBudgetSampler`.

    ``per_device_train_batch_size`` has no effect on them; evaluation batches are the stock ones.
    The order of an epoch depends on ``data_seed``, or ``seed``, and on the epoch alone.

    Args:
        tokens_per_batch: about how many tokens a batch of one process has.
        lengths: the number of tokens of each training text. Default: counted once, by reading
            ``input_ids`` of the whole training set.
        args, kwargs: as for the stock Trainer.
    """

    def __init__(
        self,
        *args: Any,
        tokens_per_batch: int,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.tokens_per_batch = tokens_per_batch
        self._lengths = lengths

    def get_train_dataloader(self) -> DataLoader:
        """Returns the stock loader with other batches; each rank gets its own share of them."""
        stock = super().get_train_dataloader()
        if self._lengths is None:
            self._lengths = [len(row["input_ids"]) for row in stock.dataset]
        seed = self.args.data_seed
        sampler = TokenBudgetSampler(
            self._lengths,
            self.tokens_per_batch,
            seed=self.args.seed if seed is None else seed,
            num_replicas=self.args.world_size,
            rank=self.args.process_index,
            drop_last=self.args.dataloader_drop_last,
        )
        return _Loader(
            stock.dataset,
            batch_sampler=sampler,
            collate_fn=stock.collate_fn,
            **{name: getattr(stock, name) for name in _KEPT},
        )


class _Loader(DataLoader):
    """A data loader that tells its sampler the epoch, as Trainer expects of it."""

    batch_sampler: TokenBudgetSampler

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
