"""Removing padding from a batch and putting it back.

    mask (batch, seqlen)          1 1 1 0 | 1 1 0 0     any pattern: right, left, interior
    indices (total,)              0 1 2 4 5              rows of the flattened batch that are tokens
    cu_seqlens (batch + 1,)       0 3 5                  where each sequence begins among them

A gather's gradient is a scatter to the same rows and the reverse, so each is the other's backward:
no atomics, hence deterministic, and differentiable any number of times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library import fake_impl

from fastattn.ops.calls import plain_or
from fastattn.ops.checks import as_int, is_known

_IGNORED_LABEL = -100


class PackedLayout(NamedTuple):
    """How the tokens of a padded batch lie when packed one after the other.

    A named tuple, because wrappers that move or cast a module's inputs (FSDP, DDP, pipelines) walk
    through tuples and leave anything else alone.
    """

    indices: Tensor  # (total,) int64, rows of the flattened (batch * seqlen) batch
    cu_seqlens: Tensor  # (batch + 1,) int32
    max_seqlen: int
    min_seqlen: int
    batch_size: int
    seqlen: int
    # Whether nothing reads more of the last layer than the first row of each sequence.
    only_first_rows: bool = False

    @property
    def first_rows(self) -> Tensor:
        """The packed row at which each sequence begins: (batch,) int64."""
        return self.cu_seqlens[:-1].long()

    @property
    def total(self) -> int:
        """Number of tokens, padding not counted."""
        return self.indices.shape[0]


class UnpaddedInput(NamedTuple):
    """What :func:`unpad_input` returns, in flash-attn's order and names."""

    hidden_states: Tensor  # (total, ...)
    indices: Tensor  # (total,) int64
    cu_seqlens: Tensor  # (batch + 1,) int32
    max_seqlen_in_batch: int


def packed_layout(attention_mask: Tensor) -> PackedLayout:
    """Computes the packed layout of a padded batch.

    Args:
        attention_mask: (batch, seqlen), bool or a number; not zero = token.

    Waits for the device: the number of tokens is the shape of what follows. Once a forward pass is
    enough, every layer shares the result.
    """
    _check_mask("packed_layout", attention_mask)
    mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    batch_size, seqlen = mask.shape
    lengths = mask.sum(dim=1, dtype=torch.int32)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    indices = mask.flatten().nonzero().flatten()
    ends = (lengths.max(), lengths.min()) if batch_size else (0, 0)
    longest, shortest = map(as_int, ends)
    return PackedLayout(indices, cu_seqlens, longest, shortest, batch_size, seqlen)


def layout_of_mask(
    mask: Tensor, *, starts: bool, no_gaps: bool, not_empty: bool = False
) -> tuple[bool, PackedLayout | None]:
    """Returns whether a batch has padding, and the layout without it if it can be removed.

    Args:
        mask: (batch, seqlen) bool, True = token.
        starts: whether the first row of a sequence is read even where it is padding.
        no_gaps: whether tokens must be as far apart without padding as with it.
        not_empty: whether a graph that is being compiled may count on a token in each sequence.

    What depends on the mask's values is here, in one place. A compiler cannot trace it: its graph
    takes every batch as one with padding, and refuses what could not be packed. Where a mask has
    no values to look at, as a fake tensor has none, the padding stays.
    """
    if torch.compiler.is_compiling():
        return True, compiled_layout(mask, starts=starts, not_empty=not_empty, no_gaps=no_gaps)
    if not is_known(mask):
        return True, None
    layout = packed_layout(mask)
    if layout.total == mask.numel():
        return False, None
    if layout.total == 0:
        return True, None  # the stock layers cannot reshape zero rows
    if starts and not bool(mask[:, 0].all()):
        return True, None
    if no_gaps and has_gaps(mask):
        return True, None
    return True, layout


def compiled_layout(
    attention_mask: Tensor, *, starts: bool, not_empty: bool, no_gaps: bool
) -> PackedLayout:
    """Computes the packed layout of a padded batch in a graph that is being compiled.

    The graph serves every batch, so nothing in it may depend on the mask but the tokens' number.
    The longest length is not known, only that it is at most seqlen.

    Args:
        attention_mask: (batch, seqlen) bool, True = token.
        starts: whether every sequence must begin with a token.
        not_empty: whether every sequence must have a token.
        no_gaps: whether there must be no padding between a sequence's tokens.

    Raises:
        ValueError: when the graph runs, if they do not, or there is.
    """
    batch_size, seqlen = attention_mask.shape
    indices, cu_seqlens = torch.ops.fastattn.packed_layout(
        attention_mask, starts, not_empty, no_gaps
    )
    shortest = 1 if starts or not_empty else 0
    return PackedLayout(indices, cu_seqlens, seqlen, shortest, batch_size, seqlen)


# An operator, because tracing what it does would ask for the mask's values.
torch.library.define(
    "fastattn::packed_layout",
    "(Tensor mask, bool starts, bool not_empty, bool no_gaps) -> (Tensor, Tensor)",
)


@torch.library.impl("fastattn::packed_layout", "default")
def _packed_layout(
    mask: Tensor, starts: bool, not_empty: bool, no_gaps: bool
) -> tuple[Tensor, Tensor]:
    rule = "begin each sequence with" if starts else "give each sequence"
    missing = ~(mask[:, :1] if starts else mask).any(dim=1)
    if (starts or not_empty) and bool(missing.any()):
        sequence = int(missing.nonzero()[0])
        raise ValueError(
            f"patch: attention_mask must {rule} a token in a compiled model, whose graph cannot "
            "keep the padding of one batch and remove that of another; got none there in sequence "
            f"{sequence}. Pad on the right, or use fastattn.patch(model, unpad=False)."
        )
    if no_gaps and has_gaps(mask):
        raise ValueError(
            "patch: attention_mask must have no 0 between the tokens of a sequence in a compiled "
            "model that counts their distances, whose graph cannot keep the padding of one batch "
            "and remove that of another; got some. Pad at the ends, or use "
            "fastattn.patch(model, unpad=False)."
        )
    layout = packed_layout(mask)
    return layout.indices, layout.cu_seqlens


@torch.library.register_fake("fastattn::packed_layout")
def _packed_layout_fake(
    mask: Tensor, starts: bool, not_empty: bool, no_gaps: bool
) -> tuple[Tensor, Tensor]:
    total = _unknown_size(torch.library.get_ctx())
    indices = mask.new_empty(total, dtype=torch.int64)
    return indices, mask.new_empty(mask.shape[0] + 1, dtype=torch.int32)


def _unknown_size(context: Any) -> Any:
    """Returns a size that the compiler does not know.

    ``new_dynamic_size`` breaks the graph unless ``capture_dynamic_output_shape_ops`` is set, which
    is for operators that a user may not want in the graph. This one was made for it.
    """
    shape_env = getattr(context, "_shape_env", None)
    allocate = getattr(fake_impl, "allocate_size", None)
    if shape_env is None or allocate is None:
        return context.new_dynamic_size()
    return allocate(shape_env)


def labels_padding(is_token: Tensor, labels: Tensor, of_next: bool) -> bool:
    """Whether a row of padding is scored, or may be; waits for the device.

    Args:
        is_token: (batch, seqlen) bool.
        labels: (batch, seqlen), -100 where nothing is scored.
        of_next: whether row i is scored against label i + 1.
    """
    has_label = labels != _IGNORED_LABEL
    if of_next:
        has_label, is_token = has_label[:, 1:], is_token[:, :-1]
    scored = (has_label & ~is_token).any()
    return not is_known(scored) or bool(scored)


# Returns the mask again, so that a compiler does not leave the check out.
torch.library.define(
    "fastattn::unlabelled_padding", "(Tensor is_token, Tensor labels, bool of_next) -> Tensor"
)


@torch.library.impl("fastattn::unlabelled_padding", "default")
def _unlabelled_padding(is_token: Tensor, labels: Tensor, of_next: bool) -> Tensor:
    if labels_padding(is_token, labels, of_next):
        raise ValueError(
            "patch: labels must be -100 where attention_mask is 0 in a compiled model, whose graph "
            "cannot keep the padding of one batch and remove that of another; got others. Label "
            "padding -100, or use fastattn.patch(model, unpad=False)."
        )
    return is_token.clone()


@torch.library.register_fake("fastattn::unlabelled_padding")
def _unlabelled_padding_fake(is_token: Tensor, labels: Tensor, of_next: bool) -> Tensor:
    return torch.empty_like(is_token)


def sequences_layout(hidden_states: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> PackedLayout:
    """Returns the layout of sequences that lie one after the other already.

    Args:
        hidden_states: (1, total, ...).
        cu_seqlens: (batch + 1,) integers, 0 and the running sum of the lengths, none of them 0.
        max_seqlen: the longest length, or more.
    """
    indices = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    batch_size = cu_seqlens.shape[0] - 1
    return PackedLayout(indices, cu_seqlens.to(torch.int32), max_seqlen, 1, batch_size, max_seqlen)


def sequences_mask(cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Returns (batch + 1, max_seqlen, 1, 1), which models hand down as they do any 4-D mask.

    It holds cu_seqlens and no scores, and takes no memory. A mask of one row of tokens, whose shape
    begins with 1, is never of this shape.
    """
    return cu_seqlens.to(torch.int32)[:, None, None, None].expand(-1, max_seqlen, 1, 1)


def is_sequences_mask(mask: Any, hidden_states: Tensor) -> bool:
    """Whether a mask is one of :func:`sequences_mask` for (1, total, ...)."""
    return (
        isinstance(mask, Tensor)
        and mask.dtype == torch.int32
        and mask.ndim == 4
        and mask.shape[0] > hidden_states.shape[0]
    )


def dense_layout(hidden_states: Tensor) -> PackedLayout:
    """Returns the packed layout of a batch, (batch, seqlen, ...), in which every row is a token."""
    batch_size, seqlen = hidden_states.shape[:2]
    indices = torch.arange(batch_size * seqlen, device=hidden_states.device)
    cu_seqlens = torch.arange(batch_size + 1, dtype=torch.int32, device=hidden_states.device)
    return PackedLayout(indices, cu_seqlens * seqlen, seqlen, seqlen, batch_size, seqlen)


def unpad_input(hidden_states: Tensor, attention_mask: Tensor) -> UnpaddedInput:
    """Takes the tokens out of a padded batch.

    Args:
        hidden_states: (batch, seqlen, ...), any dtype.
        attention_mask: (batch, seqlen), bool or a number; not zero = token.

    Returns:
        The tokens, (total, ...) in the order of the batch; their indices in the flattened batch;
        cu_seqlens and the longest length, as :func:`fastattn.attention` takes them.

    Raises:
        TypeError: the mask is not a tensor. ValueError: the shapes disagree.
    """
    layout = packed_layout(attention_mask)
    if hidden_states.shape[:2] != attention_mask.shape:
        raise ValueError(
            "unpad_input: hidden_states must begin with the mask's shape, "
            f"{tuple(attention_mask.shape)}; got {tuple(hidden_states.shape)}. "
            "Pass the (batch, seqlen) mask of this batch."
        )
    rows = gather_rows(hidden_states.flatten(0, 1), layout.indices)
    return UnpaddedInput(rows, layout.indices, layout.cu_seqlens, layout.max_seqlen)


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Puts tokens back into a padded batch; padding rows are zero.

    Args:
        hidden_states: (total, ...), any dtype.
        indices: (total,) int64, as :func:`unpad_input` returns them.

    Returns:
        (batch, seqlen, ...).

    Raises:
        ValueError: there is not one index for each row.
    """
    if indices.ndim != 1 or indices.shape[0] != hidden_states.shape[0]:
        raise ValueError(
            "pad_input: indices must hold one row number for each row of hidden_states, "
            f"{hidden_states.shape[0]}; got shape {tuple(indices.shape)}. "
            "Pass the indices that unpad_input returned."
        )
    padded = scatter_rows(hidden_states, indices, batch * seqlen)
    return padded.unflatten(0, (batch, seqlen))


def packed_rows(x: Tensor, layout: PackedLayout) -> Tensor:
    """(batch, seqlen, ...), or (1, seqlen, ...) for all sequences alike -> (1, total, ...)."""
    rows = x.expand(layout.batch_size, *x.shape[1:]).flatten(0, 1)
    if not torch.compiler.is_compiling() and layout.total == rows.shape[0]:
        return rows[None]
    return gather_rows(rows, layout.indices)[None]


def has_padding_rows(x: Tensor, batch_size: int, seqlen: int) -> bool:
    """Whether x is (batch, seqlen, ...), and not (1, total, ...) of the tokens alone.

    Of one sequence, a graph that is being compiled does not know whether seqlen rows are tokens.
    If they are, both are the same; so the rows are taken for tokens.
    """
    if batch_size != 1 or not torch.compiler.is_compiling():
        return x.shape[:2] == (batch_size, seqlen)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return x.shape[0] == 1 and statically_known_true(x.shape[1] == seqlen)


def has_gaps(mask: Tensor) -> bool:
    """Whether padding lies inside a sequence of a (batch, seqlen) bool mask; waits for the device.

    Packed, the tokens on its two sides are less far apart.
    """
    begins = mask[:, 1:] & ~mask[:, :-1]
    return bool((begins.sum(dim=1) + mask[:, 0] > 1).any())


def row_places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """(batch + 1,) -> twice (total,) int64: the sequence of each row, and its place in it.

    Rows of no sequence count as those of one more. Waits for no device.
    """
    starts = cu_seqlens.long()
    rows = torch.arange(total, device=starts.device)
    sequence = torch.searchsorted(starts[1:].contiguous(), rows, right=True)
    return sequence, rows - starts.index_select(0, sequence)


def sequence_slots(layout: PackedLayout) -> Tensor:
    """Where tokens lie in a (batch * max_seqlen) batch of sequences from their first token on.

    Rows of no sequence get the slot behind the last, batch * max_seqlen, all of them.
    """
    sequence, place = row_places(layout.cu_seqlens, layout.total)
    slots = sequence * layout.max_seqlen + place
    return slots.clamp(max=layout.batch_size * layout.max_seqlen)


def pad_sequences(rows: Tensor, layout: PackedLayout) -> Tensor:
    """(total, ...) -> (batch, max_seqlen, ...), sequences from their first token on, then zeros.

    Rows of no sequence are left out, and get a gradient of zero.
    """
    size = layout.batch_size * layout.max_seqlen
    # They all write the row behind the last, which is cut off: nothing reads what it holds.
    padded = scatter_rows(rows, sequence_slots(layout), size + 1)[:size]
    return padded.unflatten(0, (layout.batch_size, layout.max_seqlen))


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Returns ``rows[indices]``; the indices must be distinct."""
    gathered: Tensor = _gather(rows, indices)
    return gathered


def scatter_rows(rows: Tensor, indices: Tensor, num_rows: int) -> Tensor:
    """Returns (num_rows, ...) zeros with ``rows`` at the distinct ``indices``."""
    scattered: Tensor = _scatter(rows, indices, num_rows)
    return scattered


class _GatherRows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, indices: Tensor) -> Tensor:
        return rows.index_select(0, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        rows, indices = inputs
        ctx.save_for_backward(indices)
        ctx.num_rows = rows.shape[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return scatter_rows(grad, indices, ctx.num_rows), None


class _ScatterRows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, indices: Tensor, num_rows: int) -> Tensor:
        return rows.new_zeros(num_rows, *rows.shape[1:]).index_copy_(0, indices, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return gather_rows(grad, indices), None, None


_gather = plain_or(lambda *args: _GatherRows.apply(*args), _GatherRows)
_scatter = plain_or(lambda *args: _ScatterRows.apply(*args), _ScatterRows)


def _check_mask(function: str, attention_mask: Tensor) -> None:
    """Checks that the mask is one of a padded batch."""
    if not isinstance(attention_mask, Tensor):
        raise TypeError(
            f"{function}: attention_mask must be a torch.Tensor; got "
            f"{type(attention_mask).__name__}."
        )
    if attention_mask.ndim != 2:
        raise ValueError(
            f"{function}: attention_mask must have shape (batch, seqlen); got "
            f"{tuple(attention_mask.shape)}. A mask of scores cannot be unpadded."
        )
