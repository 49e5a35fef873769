"""A case with its tensors: a padded batch, and the same tokens packed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fastattn import testing
from fastattn.bench import lengths
from fastattn.bench.cases import AttentionCase

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Tensors = tuple[Tensor, Tensor, Tensor, Tensor]  # q, k, v, dout

# Query rows whose scores are held at a time where the truth is computed, in float64.
_ROWS_AT_ONCE = 1024


class Problem(NamedTuple):
    """What implementations are given. Tensors are as the projections of a model write them."""

    case: AttentionCase
    lengths: list[int]
    padded: Tensors  # (batch, seqlen, num_heads, head_dim)
    packed: Tensors  # (tokens, num_heads, head_dim)
    cu_seqlens: Tensor
    is_token: Tensor | None  # (batch, seqlen) bool, where there is a padding mask

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.padded[0].device

    @property
    def mask(self) -> Tensor | None:
        """(batch, 1, 1, seqlen) bool, True = attend."""
        return None if self.is_token is None else self.is_token[:, None, None, :]

    def without_dropout(self) -> Problem:
        """Returns the same problem for verification: no two peers draw the same bits."""
        return self._replace(case=dataclasses.replace(self.case, dropout_p=0.0))


def make_problem(case: AttentionCase, device: str = "cpu", seed: int = 0) -> Problem:
    """Draws the tensors of a case, and its lengths; no loss reads a row of padding."""
    return problem_of(
        case, lengths.draw(case.lengths, case.batch_size, case.seqlen), device, seed=seed
    )


def problem_of(
    case: AttentionCase, rows: list[int], device: str = "cpu", *, width: int = 0, seed: int = 0
) -> Problem:
    """Draws the tensors of sequences of given lengths, padded to ``width`` or the longest."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(*rows, width) if rows else width
    size = (len(rows), longest, case.num_heads, case.head_dim)
    dtype = getattr(torch, case.dtype)
    q, k, v, dout = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(4))
    is_token = torch.arange(longest) < torch.tensor(rows)[:, None]
    has_mask = case.masked or not bool(is_token.all())
    is_token = is_token.to(device)
    dout = dout * is_token[:, :, None, None]
    packed = (testing.pack(x, rows) for x in (q, k, v, dout))
    return Problem(
        case,
        rows,
        (q, k, v, dout),
        (next(packed), next(packed), next(packed), next(packed)),
        testing.cu_seqlens(rows).to(device),
        is_token if has_mask else None,
    )


class Results(NamedTuple):
    """Out and the gradients of one head of one sequence, (length, head_dim) each."""

    out: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


class Sample(NamedTuple):
    """One head of one sequence: the truth, and what plain torch gives in the dtype of the case.

    Heads of sequences do not know of each other, so a few of them tell of the whole call.
    """

    sequence: int
    head: int
    truth: Results
    plain: Results

    def of(self, x: Tensor, problem: Problem, *, is_packed: bool) -> Tensor:
        """Returns the rows of a result that this is a sample of."""
        if is_packed:
            start = sum(problem.lengths[: self.sequence])
            return x[start : start + problem.lengths[self.sequence], self.head]
        return x[self.sequence, : problem.lengths[self.sequence], self.head]


def samples(problem: Problem) -> Iterator[Sample]:
    """Yields the first and the last head of the first and the last sequence.

    Where sequences are longer than 4096 tokens it is the last head of the last one.
    """
    places = set(
        itertools.product((0, len(problem.lengths) - 1), (0, problem.padded[0].shape[2] - 1))
    )
    if max(problem.lengths) > 4096:
        places = {max(places)}
    for sequence, head in sorted(places):
        length = problem.lengths[sequence]
        q, k, v, dout = (x[sequence, :length, head] for x in problem.padded)
        yield Sample(
            sequence,
            head,
            _by_chunks(*(x.double() for x in (q, k, v, dout))),
            _by_chunks(q, k, v, dout),
        )


def _by_chunks(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> Results:
    """Torch's plain attention of (length, head_dim), a few rows of q at a time."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    outs, grads = [], []
    with sdpa_kernel(SDPBackend.MATH):
        for rows, part in zip(
            leaves[0].split(_ROWS_AT_ONCE), dout.split(_ROWS_AT_ONCE), strict=True
        ):
            inputs = (rows[None, None], leaves[1][None, None], leaves[2][None, None])
            out = scaled_dot_product_attention(*inputs)[0, 0]
            grads.append(torch.autograd.grad(out, (rows, *leaves[1:]), part))
            outs.append(out.detach())
    dq, dk, dv = (list(column) for column in zip(*grads, strict=True))
    return Results(torch.cat(outs), torch.cat(dq), _sum(dk), _sum(dv))


def _sum(parts: list[Tensor]) -> Tensor:
    total: Any = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
