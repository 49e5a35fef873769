"""Rotary position embedding, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


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
