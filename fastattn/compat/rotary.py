"""Rotary position embedding, in plain torch, and ``flash_attn.layers.rotary`` on it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastattn.ops.padding import row_places


def apply_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, positions: Tensor
) -> Tensor:
    """Turns pairs of columns by an angle that grows with the position.

        (a, b) -> (a * cos - b * sin, a * sin + b * cos)

    Args:
        x: (batch, seqlen, heads, head_dim).
        cos: (positions, rotary_dim / 2), rotary_dim at most head_dim; further columns stay.
        sin: the shape of cos.
        interleaved: pairs are columns 0 and 1, 2 and 3, ...; else the first half of the
            rotary_dim columns meets the second.
        positions: (batch, seqlen) int64, rows of cos and sin.

    Returns:
        The shape and dtype of x; products and sums in float32, or float64 for float64.

    Raises:
        ValueError: cos and sin disagree, or are wider than x.

    Source: Su et al., "RoFormer", 2021, section 3.2.
    """
    half = cos.shape[-1]
    if cos.shape != sin.shape or cos.ndim != 2 or 2 * half > x.shape[-1]:
        raise ValueError(
            "rotary: cos and sin must both be (positions, rotary_dim / 2) with rotary_dim at most "
            f"head_dim, {x.shape[-1]}; got shapes {tuple(cos.shape)} and {tuple(sin.shape)}."
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = (table.to(dtype)[positions][:, :, None] for table in (cos, sin))
    turned, rest = x[..., : 2 * half].to(dtype), x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """:func:`apply_rotary` with the arguments of flash-attn 2.8.

    Args:
        x: (batch, seqlen, heads, head_dim), or (total, heads, head_dim) with cu_seqlens.
        cos, sin, interleaved: as there.
        inplace: write the result to x and return that.
        seqlen_offsets: position of the first row of each sequence: a number, or (batch,) int.
        cu_seqlens: (batch + 1,) int32, 0 and the running sum of the lengths.
        max_seqlen: has no effect.

    Returns:
        The shape and dtype of x; differentiable.

    Raises:
        ValueError: shapes disagree.
    """
    if x.ndim != (4 if cu_seqlens is None else 3):
        layout = (
            "(batch, seqlen, heads, head_dim)"
            if cu_seqlens is None
            else ("(total, heads, head_dim), because cu_seqlens is given")
        )
        raise ValueError(f"apply_rotary_emb: x must be {layout}; got shape {tuple(x.shape)}.")
    offsets = torch.as_tensor(seqlen_offsets, device=x.device).long()
    if cu_seqlens is None:
        positions = torch.arange(x.shape[1], device=x.device) + offsets.reshape(-1, 1)
        out = apply_rotary(x, cos, sin, interleaved, positions.expand(x.shape[:2]))
    else:
        sequence, positions = row_places(cu_seqlens, len(x))
        if offsets.ndim > 0:
            offsets = offsets[sequence.clamp(max=len(offsets) - 1)]
        positions = positions + offsets
        # Rows behind the last sequence belong to none: turn them by some angle of the table.
        positions = positions.clamp(max=len(cos) - 1)
        out = apply_rotary(x[None], cos, sin, interleaved, positions[None])[0]
    return x.copy_(out) if inplace else out
