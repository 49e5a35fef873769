"""One run in several processes, as ``torchrun`` and ``accelerate launch`` start them.

The Trainer shares out the batches and averages the gradients. What is here sees to the rest: one
process prints and writes, and an error in any of them ends them all, with its message said once.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from fastattn.environment import launched_processes

T = TypeVar("T")

_PATIENCE_S = 30.0
# What gloo and NCCL say when another process has gone.
_GONE = re.compile(r"closed by peer|reset by peer|remote process exited|ncclRemoteError", re.I)


class OtherProcessError(RuntimeError):
    """Another process of this run failed, and says why itself."""


class Processes(NamedTuple):
    """This process's place among those of its run."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def together(self, work: Callable[[], T]) -> T:
        """Does some work in every process, and goes on when all of them have done it.

        Raises:
            OtherProcessError: it failed in another process, but not here, or the first process
                says the same. What fails in another process only, the first one reports.
        """
        if self.size == 1:
            return work()
        result: list[T] = []
        own: Exception | None = None
        try:
            result.append(work())
        except Exception as error:
            own = error
        messages: list[str | None] = [None] * self.size
        dist.all_gather_object(messages, None if own is None else str(own))
        failed = [rank for rank, message in enumerate(messages) if message is not None]
        if not failed:
            return result[0]
        if not self.is_first:
            raise OtherProcessError(messages[failed[0]]) from own
        if own is not None:
            raise own
        raise ValueError(f"process {failed[0]} of {self.size}: {messages[failed[0]]}")

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Names the process in which training fails; the others say nothing when it is gone.

        Raises:
            OtherProcessError: the connection to another process broke.
        """
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            if _GONE.search(str(error)):
                raise OtherProcessError("another process ended") from error
            name = type(error).__name__
            raise RuntimeError(f"process {self.rank} of {self.size}: {name}: {error}") from error


def join(on_cpu: bool) -> Processes:
    """Joins the processes of this run, if a launcher started several.

    Args:
        on_cpu: whether they train on CPUs, over gloo.
    """
    if launched_processes() < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu)
    if torch.cuda.is_available() and not on_cpu:
        torch.cuda.set_device(state.device)
    return Processes(state.process_index, state.num_processes)


def is_first_process() -> bool:
    """Returns whether this is the first process of its run, before it has joined the others."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_the_message() -> None:
    """Waits until the process that reports an error has done so and ended.

    Launchers end all processes when one of them does; it must not be a silent one.
    """
    if dist.is_initialized():
        with contextlib.suppress(Exception):
            dist.barrier()
    else:
        time.sleep(_PATIENCE_S)  # the launcher ends this process sooner
