"""Two real processes over gloo: DDP and FSDP2 give the loss and gradients of one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastattn
from fastattn.data.packing import PackedCollator
from fastattn.data.sampling import TokenBudgetSampler

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # before torch 2.6 it lies elsewhere, and is another
    fully_shard = None

pytestmark = [
    # Of Python 3.12; torch has one thread here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # That in-place operations on a linear layer's output would be wrong; there are none.
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .FSDPLinear. returned a view"),
]
RANKS = 2
LENGTHS = ((13, 5, 9, 1), (8, 8, 3, 12))  # of each rank's batch


def _run(rank: int, tools: Any, work: Any, folder: str) -> None:
    """One process of a test; leaves what its work returns in a file."""
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    try:
        torch.save(work(tools, rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def _on_ranks(tools: Any, work: Any, folder: Path) -> list[Any]:
    """Runs work(tools, rank) on every rank; returns what each returned."""
    torch.multiprocessing.start_processes(
        _run, args=(tools, work, str(folder)), nprocs=RANKS, start_method="fork"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def _wrap(model: Any, how: str) -> Any:
    if how == "ddp":
        return DistributedDataParallel(model)
    linear_layers = [x for x in model.modules() if isinstance(x, nn.Linear)]
    for part in linear_layers if how == "fsdp2 of linear layers" else model.bert.encoder.layer:
        fully_shard(part)
    return fully_shard(model)


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole gradients; FSDP2's are shards."""
    return {
        name.removeprefix("module."): getattr(x.grad, "full_tensor", lambda x=x: x.grad)()
        for name, x in model.named_parameters()
        if x.grad is not None
    }


def _step(tools: Any, rank: int, how: str, packed: bool, checkpointing: bool) -> Any:
    _, ours = tools.pair()
    if checkpointing:
        ours._set_gradient_checkpointing(
            gradient_checkpointing_func=lambda f, *a: torch.utils.checkpoint.checkpoint(
                f, *a, use_reentrant=False
            )
        )
    wrapped = _wrap(ours, how)
    batch = tools.batch(LENGTHS[rank], seed=rank)
    loss = wrapped(**(tools.pack(batch) if packed else batch)).loss
    loss.backward()
    return loss.detach(), _gradients(wrapped)


class _Step:
    """A step in the form that goes to another process."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self, tools: Any, rank: int) -> Any:
        return _step(tools, rank, *self.arguments)


@pytest.mark.parametrize(
    ("how", "packed", "checkpointing"),
    [
        ("ddp", False, False),
        ("ddp", True, True),
        ("fsdp2", False, True),
        ("fsdp2", True, False),
        ("fsdp2 of linear layers", False, False),
    ],
)
def test_the_step_is_that_of_one_process(tools, needs, tmp_path, how, packed, checkpointing):
    needs(interface=packed, fully_shard=how != "ddp")
    stock = tools.model()
    losses = [stock(**tools.batch(lengths, seed=rank)).loss for rank, lengths in enumerate(LENGTHS)]
    (sum(losses) / RANKS).backward()
    expected = {name: x.grad for name, x in stock.named_parameters() if x.grad is not None}
    results = _on_ranks(tools, _Step(how, packed, checkpointing), tmp_path)
    for (loss, gradients), stock_loss in zip(results, losses, strict=True):
        torch.testing.assert_close(loss, stock_loss.detach(), atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(gradients, expected, atol=2e-6, rtol=2e-5)


def _train_with_dropout(tools: Any, rank: int) -> Any:
    """Three steps on the same batch; each rank has a seed of its own."""
    model = tools.model(dropout=0.3)
    fastattn.patch(model)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    torch.manual_seed(100 + rank)
    losses = []
    for _ in range(3):
        loss = wrapped(**tools.batch(LENGTHS[0])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: x.detach() for name, x in model.named_parameters()}


def test_ranks_drop_differently_and_stay_together(tools, tmp_path):
    (losses, weights), (other_losses, other_weights) = _on_ranks(
        tools, _train_with_dropout, tmp_path
    )
    assert all(x != y for x, y in zip(losses, other_losses, strict=True))
    torch.testing.assert_close(weights, other_weights, atol=0, rtol=0)


def _see_an_epoch(tools: Any, rank: int) -> Any:
    """The texts this rank trains on in two epochs."""
    texts = [{"input_ids": [5 + i % 100] * (1 + i % 9), "label": i % 2} for i in range(41)]
    sampler = TokenBudgetSampler([len(x["input_ids"]) for x in texts], 30)
    loader = torch.utils.data.DataLoader(
        list(enumerate(texts)),
        batch_sampler=sampler,
        collate_fn=lambda rows: ([i for i, _ in rows], PackedCollator()([x for _, x in rows])),
    )
    model = tools.model()
    fastattn.patch(model)
    wrapped = DistributedDataParallel(model)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        seen = []
        for indices, batch in loader:
            wrapped(**batch).loss.backward()
            seen.append(indices)
        epochs.append(seen)
    return epochs


def test_a_token_budget_over_two_ranks(tools, needs, tmp_path):
    needs(interface=True)
    first, second = _on_ranks(tools, _see_an_epoch, tmp_path)
    assert first[0] != first[1]
    for ours, theirs in zip(first, second, strict=True):
        assert len(ours) == len(theirs)
        assert sorted(i for batch in ours + theirs for i in batch) == list(range(41))


@pytest.fixture
def needs():
    """needs(interface, fully_shard) skips a test that needs what is not there."""
    from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

    def check(interface: bool = False, fully_shard: bool = False) -> None:
        if interface and not HAS_ATTENTION_INTERFACE:
            pytest.skip("heads of Transformers 4.x take no packed batches")
        if fully_shard and globals()["fully_shard"] is None:
            pytest.skip("this torch has no fully_shard")

    return check
