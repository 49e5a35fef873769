"""The dropout rules of the project, in plain torch.

Attention weights
-----------------

Whether the attention weight of query row ``row`` and key column ``col`` is dropped is a function
of ``(seed, sequence, head, row, col)`` alone. Rows and columns count from the start of their own
sequence. Every backend evaluates the same function, so the same weights are dropped on a CPU, in
CUDA and in Triton, in a padded batch and in a packed one, in the forward and in the backward pass,
whatever the tile sizes; nothing has to be stored.

The rule:

1. The score matrix of one head is cut into tiles of 16 x 16. In a tile, ``lane`` = 4 * (row % 8)
   + (col % 8) // 2 names one of 32 groups of eight elements.
2. One call of Philox4x32-7 serves a group. Its key is the 64-bit seed (low word, high word), its
   counter is ``(32 * (col // 16) + lane, row // 16, head, sequence)``.
3. The call returns four 32-bit words. Element (row, col) uses word
   ``2 * ((row % 16) // 8) + (col % 16) // 8``: its low 16 bits if col is even, else its high ones.
4. The element is dropped if those 16 bits, as an unsigned number, are less than
   ``drop_threshold(dropout_p)``. What is kept is multiplied by ``keep_scale(dropout_p)``.

``lane`` and the four words are how a warp holds the 16 x 16 result of two m16n8 tensor-core
instructions, so on a GPU each thread makes one call for the eight scores it owns. On a CPU,
one word of 8 neighbouring rows holds 8 consecutive columns of each, so a 16-bit vector comparison
yields the mask of a row as whole bytes.

Hidden states
-------------

Whether an element of a hidden state is dropped is in the same way a function of
``(seed, row, col)``: col counts along the last dimension, row counts what is left when the other
dimensions are flattened.

1. A row is cut into blocks of 256 columns, and a block into four groups of 64. Columns
   2 * c and 2 * c + 1 of all four groups, ``c`` = (col % 64) // 2, are served by one call.
2. The call is Philox4x32-7 with the seed as key, as above, and the counter
   ``(32 * (col // 256) + c, row % 2**32, row // 2**32, 0x48494444)``. The last word, "HIDD", is
   where attention has the index of a sequence: no counter serves both.
3. Element (row, col) uses word ``(col % 256) // 64``: its low 16 bits if col is even, else its
   high ones.
4. Threshold and scale are those of attention weights.

One word of 16 calls side by side then holds the draws of 32 neighbouring columns in their order.

Seven rounds are the fewest with which Philox4x32 passes BigCrush (Salmon, Moraes, Dror, Shaw:
"Parallel random numbers: as easy as 1, 2, 3", SC 2011, table 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 16
HIDDEN_BLOCK = 256
_CALLS_PER_HIDDEN_BLOCK = 32
HIDDEN_MARK = 0x48494444
PHILOX_ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = 0xFFFFFFFF
_DRAWS = 1 << 16


def drop_threshold(dropout_p: float) -> int:
    """Returns how many of the 65536 values of a 16-bit draw mean "drop".

    The probability is rounded to a multiple of 1/65536, but never to "keep all" or "drop all".
    """
    if dropout_p in (0.0, 1.0):
        return round(dropout_p * _DRAWS)
    return min(max(round(dropout_p * _DRAWS), 1), _DRAWS - 1)


def keep_scale(dropout_p: float) -> float:
    """Returns the factor of a kept weight: one over the probability with which it is kept.

    It is 0 where none is kept.
    """
    kept = _DRAWS - drop_threshold(dropout_p)
    return _DRAWS / kept if kept else 0.0


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Draws the seed of one call from torch's generator of ``device``.

    Returns:
        A scalar int64 tensor on ``device``; reading it is left to the kernel, so nothing waits.
    """
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=device, generator=generator)


def _multiply_32(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the high and the low 32 bits of ``constant * x``, for x below 2**32 in int64."""
    low_part = constant * (x & 0xFFFF)
    high_part = constant * (x >> 16)
    return (high_part + (low_part >> 16)) >> 16, (low_part + (high_part << 16)) & _LOW_32


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32 of broadcastable int64 counters below 2**32; four tensors of 32-bit words."""
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _LOW_32, (seed >> 32) & _LOW_32
    for _ in range(PHILOX_ROUNDS):
        high0, low0 = _multiply_32(MULTIPLIERS[0], c0)
        high1, low1 = _multiply_32(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 = (key0 + KEY_INCREMENTS[0]) & _LOW_32
        key1 = (key1 + KEY_INCREMENTS[1]) & _LOW_32
    return c0, c1, c2, c3


def random_bits(
    seed: Tensor, batch_size: int, num_heads: int, seqlen_q: int, seqlen_k: int
) -> Tensor:
    """Returns the 16-bit draw of every attention weight.

    Args:
        seed: scalar int64 tensor.

    Returns:
        (batch_size, num_heads, seqlen_q, seqlen_k) int64, values in [0, 65536).
    """

    def counter(size: int, dim: int) -> Tensor:
        shape = [1] * 5
        shape[dim] = size
        return torch.arange(size, device=seed.device).view(shape)

    row_tiles, col_tiles = -(-seqlen_q // TILE), -(-seqlen_k // TILE)
    words = philox(
        (
            32 * counter(col_tiles, 3) + counter(32, 4),
            counter(row_tiles, 2),
            counter(num_heads, 1),
            counter(batch_size, 0),
        ),
        seed,
    )
    full = (batch_size, num_heads, row_tiles, col_tiles, 8, 4)
    # (row half, column half, parity of the column, batch, head, row tile, column tile, g, t)
    halves = torch.stack(
        [
            half.expand((*full[:4], 32)).reshape(full)
            for w in words
            for half in (w & 0xFFFF, w >> 16)
        ]
    ).view(2, 2, 2, *full)
    bits = halves.permute(3, 4, 5, 0, 7, 6, 1, 8, 2)
    bits = bits.reshape(batch_size, num_heads, row_tiles * TILE, col_tiles * TILE)
    return bits[:, :, :seqlen_q, :seqlen_k]


def keep_mask(
    seed: Tensor,
    batch_size: int,
    num_heads: int,
    seqlen_q: int,
    seqlen_k: int,
    dropout_p: float,
) -> Tensor:
    """Returns which attention weights are kept.

    Args:
        seed: scalar int64 tensor, from :func:`draw_seed`.
        dropout_p: probability of dropping, in [0, 1].

    Returns:
        (batch_size, num_heads, seqlen_q, seqlen_k) bool, True = kept.
    """
    bits = random_bits(seed, batch_size, num_heads, seqlen_q, seqlen_k)
    return bits >= drop_threshold(dropout_p)


def hidden_random_bits(seed: Tensor, rows: int, hidden_size: int) -> Tensor:
    """Returns the 16-bit draw of every element of hidden states.

    Args:
        seed: scalar int64 tensor.

    Returns:
        (rows, hidden_size) int64, values in [0, 65536).
    """
    row = torch.arange(rows, device=seed.device)[:, None]
    blocks = -(-hidden_size // HIDDEN_BLOCK)
    call = torch.arange(blocks * _CALLS_PER_HIDDEN_BLOCK, device=seed.device)
    words = philox((call, row & _LOW_32, row >> 32, torch.full_like(row, HIDDEN_MARK)), seed)
    by_word = torch.stack([torch.stack((w & 0xFFFF, w >> 16), dim=-1) for w in words])
    # (word, row, block, c, parity) -> (row, block, word, c, parity)
    bits = by_word.view(4, rows, blocks, _CALLS_PER_HIDDEN_BLOCK, 2).permute(1, 2, 0, 3, 4)
    return bits.reshape(rows, blocks * HIDDEN_BLOCK)[:, :hidden_size]


def hidden_keep_mask(seed: Tensor, rows: int, hidden_size: int, dropout_p: float) -> Tensor:
    """Returns which elements of hidden states are kept.

    Args:
        seed: scalar int64 tensor, from :func:`draw_seed`.
        dropout_p: probability of dropping, in [0, 1).

    Returns:
        (rows, hidden_size) bool, True = kept.
    """
    return hidden_random_bits(seed, rows, hidden_size) >= drop_threshold(dropout_p)
