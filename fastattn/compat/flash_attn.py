"""The functions of flash-attn 2.8 on fastattn: same names, same arguments, same meaning.

    from fastattn.compat.flash_attn import flash_attn_varlen_func

They run on every device and in every dtype that :func:`fastattn.attention` serves, such as float32
on a CPU, with any head_dim. What differs from flash-attn:

- ``deterministic`` has no effect: the backward pass always is. ``num_splits`` has none either.
- Dropout draws other random bits, by the rule of :mod:`fastattn.dropout`, from torch's generator.
- ``softmax_lse`` of a row with no key is -inf, where flash-attn has +inf; and it is differentiable.
- dropout_p together with softcap is served. Under ``torch.autocast`` q, k and v are cast.
- Paged caches (``block_table``) are refused.

``return_attn_probs=True`` returns (out, softmax_lse, S_dmask). S_dmask is for tests, as in
flash-attn: it is empty unless dropout_p > 0. Then it is (batch, nheads, seqlen_q, seqlen_k) in the
dtype of q, its absolute value is exp(score - largest score of the row), and what is negative was
dropped. Divided by their sum, a row's absolute values are its attention weights before dropout.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from fastattn import backends, dropout, reference
from fastattn.compat.rotary import apply_rotary
from fastattn.ops import attention as op
from fastattn.ops import checks
from fastattn.ops.padding import row_places

VERSION = "2.8.3"

Result = Tensor | tuple[Tensor, Tensor, Tensor]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of a batch without padding.

    Args:
        q: (batch_size, seqlen_q, nheads, headdim).
        k: (batch_size, seqlen_k, nheads_k, headdim); nheads_k divides nheads.
        v: the shape of k.
        dropout_p: probability of dropping an attention weight; pass 0 in evaluation.
        softmax_scale: factor of the scores. Default: headdim ** -0.5.
        causal: the last query sees the last key, the one before it no more than the one before.
        window_size: (left, right) keys that a query sees beside its own; -1 = all.
        softcap: if positive, bounds the scores: softcap * tanh(score / softcap).
        alibi_slopes: (nheads,) or (batch_size, nheads), floating-point.
        return_attn_probs: also return softmax_lse and S_dmask; see the module.

    Returns:
        out, the shape of q; or (out, softmax_lse (batch_size, nheads, seqlen_q), S_dmask).

    Raises:
        ValueError, TypeError, BackendError: as :func:`fastattn.attention` does.
    """
    return _attend(
        q,
        k,
        v,
        return_attn_probs,
        dropout_p=dropout_p,
        softmax_scale=softmax_scale,
        causal=causal,
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """:func:`flash_attn_func` with keys and values in one tensor.

    Args:
        q: (batch_size, seqlen_q, nheads, headdim).
        kv: (batch_size, seqlen_k, 2, nheads_k, headdim).
    """
    k, v = _unbind("flash_attn_kvpacked_func", "kv", kv, 2, 5)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """:func:`flash_attn_func` with queries, keys and values in one tensor.

    Args:
        qkv: (batch_size, seqlen, 3, nheads, headdim).
    """
    q, k, v = _unbind("flash_attn_qkvpacked_func", "qkv", qkv, 3, 5)
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """Attention of sequences that lie one after the other.

    Args:
        q: (total_q, nheads, headdim).
        k: (total_k, nheads_k, headdim); nheads_k divides nheads.
        v: the shape of k.
        cu_seqlens_q: (batch_size + 1,) int32, 0 and the running sum of the lengths.
        cu_seqlens_k: the same for k and v.
        max_seqlen_q: length of the longest sequence of q.
        max_seqlen_k: the same for k and v.
        block_table: must be None.

    Returns:
        out, the shape of q; or (out, softmax_lse (nheads, total_q), S_dmask (batch_size, nheads,
        max_seqlen_q, max_seqlen_k)).

    The other arguments and the errors are those of :func:`flash_attn_func`.
    """
    if block_table is not None:
        _refuse_pages("flash_attn_varlen_func")
    return _attend(
        q,
        k,
        v,
        return_attn_probs,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=checks.as_int(max_seqlen_q),
        max_seqlen_k=checks.as_int(max_seqlen_k),
        dropout_p=dropout_p,
        softmax_scale=softmax_scale,
        causal=causal,
        window=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """:func:`flash_attn_varlen_func` with keys and values in one tensor.

    Args:
        q: (total_q, nheads, headdim).
        kv: (total_k, 2, nheads_k, headdim).
    """
    k, v = _unbind("flash_attn_varlen_kvpacked_func", "kv", kv, 2, 4)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """:func:`flash_attn_varlen_func` with queries, keys and values in one tensor.

    Args:
        qkv: (total, 3, nheads, headdim).
        cu_seqlens: (batch_size + 1,) int32, 0 and the running sum of the lengths.
        max_seqlen: length of the longest sequence.
    """
    q, k, v = _unbind("flash_attn_varlen_qkvpacked_func", "qkv", qkv, 3, 4)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to a cache of keys and values, which new ones are first written to, in place.

    Args:
        q: (batch_size, seqlen_q, nheads, headdim).
        k_cache: (batch_size_cache, seqlen_cache, nheads_k, headdim).
        v_cache: the shape of k_cache.
        k: (batch_size, seqlen_new, nheads_k, headdim), written from row cache_seqlens on, or None.
        v: the shape of k.
        rotary_cos: (seqlen_rotary, rotary_dim / 2). Turns k, and q, by their positions: k at
            cache_seqlens and on; q likewise if causal or windowed, else all at cache_seqlens.
        rotary_sin: the shape of rotary_cos.
        cache_seqlens: rows of each sequence in the cache before k is written: a number, or
            (batch_size,) int32. Default: the whole cache, if there is no k.
        cache_batch_idx: (batch_size,) int, which sequence of the cache belongs to which of q.
        cache_leftpad: (batch_size,) int, the row at which each sequence begins.
        block_table: must be None.
        rotary_interleaved: turn columns 0 and 1, 2 and 3, ... together, or the first half of
            them with the second.

    Returns:
        out, the shape of q; with return_softmax_lse also (batch_size, nheads, seqlen_q).

    Raises:
        ValueError, TypeError: an argument breaks its rule, or a gradient is needed.

    The other arguments are those of :func:`flash_attn_func`.
    """
    _check_cache(q, k_cache, v_cache, k, v, block_table, cache_seqlens)
    _check_rotary(rotary_cos, rotary_sin, k, cache_leftpad)
    batch_size = q.shape[0]
    before = k_cache.shape[1] if cache_seqlens is None else cache_seqlens
    if isinstance(before, Tensor):
        before = before.to(q.device, torch.int64).expand(batch_size)
    else:
        before = torch.full((batch_size,), before, dtype=torch.int64, device=q.device)
    seqlen_new = 0 if k is None else k.shape[1]
    rows = before[:, None] + torch.arange(seqlen_new, device=q.device)
    _check_room(before, seqlen_new, k_cache.shape[1])
    if rotary_cos is not None and rotary_sin is not None and k is not None:
        in_order = causal or tuple(window_size) != (-1, -1)
        steps = torch.arange(q.shape[1], device=q.device) * int(in_order)
        rotary = (rotary_cos, rotary_sin, rotary_interleaved)
        q, k = apply_rotary(q, *rotary, before[:, None] + steps), apply_rotary(k, *rotary, rows)
    chosen = torch.arange(batch_size) if cache_batch_idx is None else cache_batch_idx
    sequences = chosen.to(q.device, torch.int64)
    if k is not None and v is not None:
        k_cache[sequences[:, None], rows] = k
        v_cache[sequences[:, None], rows] = v
    if cache_batch_idx is not None:
        k_cache, v_cache = k_cache[sequences], v_cache[sequences]
    ends = before + seqlen_new
    if checks.can_be_read(ends) and batch_size > 0:
        longest = int(ends.max())
        k_cache, v_cache = k_cache[:, :longest], v_cache[:, :longest]
    window = checks.check_window(window_size, causal)
    options = _cache_masks(q, k_cache, ends, cache_leftpad, window, alibi_slopes)
    options |= {"softmax_scale": softmax_scale, "softcap": softcap, "return_lse": True}
    out, lse = op.attention(q, k_cache[:batch_size], v_cache[:batch_size], **options)
    return (out, lse) if return_softmax_lse else out


def _cache_masks(
    q: Tensor,
    k_cache: Tensor,
    ends: Tensor,
    leftpad: Tensor | None,
    window: tuple[int, int],
    alibi_slopes: Tensor | None,
) -> dict[str, Any]:
    """What hides the rows of a cache that a query does not see, as options of attention.

    The lengths differ and stay on the device, so alignment to the end of each sequence goes into a
    bias, (batch_size, 1 or nheads, seqlen_q, rows); a sequence's end alone into a padding mask.
    """
    col = torch.arange(k_cache.shape[1], device=q.device)
    attend = col < ends[:, None]
    if leftpad is not None:
        attend = attend & (col >= leftpad[:, None])
    left, right = window
    if right < 0 and left < 0 and alibi_slopes is None:
        return {"key_padding_mask": attend}
    row = torch.arange(q.shape[1], device=q.device)[:, None]
    # Of query and key, counted from the diagonal that ends at the last of both.
    distance = (row + ends[:, None, None] - q.shape[1] - col)[:, None]
    attend = attend[:, None, None, :]
    if right >= 0:
        attend = attend & (distance >= -right)
    if left >= 0:
        attend = attend & (distance <= left)
    bias = torch.where(attend, 0.0, float("-inf"))
    if alibi_slopes is not None:
        alibi_slopes = checks.check_alibi_slopes(alibi_slopes, q, q.shape[0])
        bias = bias - alibi_slopes.float().reshape(-1, q.shape[2], 1, 1) * distance.abs()
    return {"bias": bias}


def _check_room(before: Tensor, seqlen_new: int, seqlen_cache: int) -> None:
    """Checks that what is cached and what is new fit into the cache, if the CPU knows."""
    if not checks.can_be_read(before) or before.numel() == 0:
        return
    if not 0 <= int(before.min()) <= int(before.max()) <= (seqlen_cache - seqlen_new):
        _fail(
            f"cache_seqlens must be between 0 and {seqlen_cache - seqlen_new}, the rows of the "
            f"cache less those of k; got {before.tolist()}. Make a longer cache."
        )


def _check_cache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    block_table: Tensor | None,
    cache_seqlens: int | Tensor | None,
) -> None:
    if block_table is not None:
        _refuse_pages("flash_attn_with_kvcache")
    if (k is None) != (v is None):
        _fail("k and v must come together; got one of them alone.")
    if k is not None and cache_seqlens is None:
        _fail(
            "cache_seqlens must be given with k, which is written behind that many rows; got None."
        )
    tensors = (q, k_cache, v_cache, k, v)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        _fail(
            "q, k, v and the caches must not need a gradient, because the cache is written in "
            "place; got one that does. Call it under torch.no_grad(), or use flash_attn_func."
        )


def _check_rotary(
    cos: Tensor | None, sin: Tensor | None, k: Tensor | None, leftpad: Tensor | None
) -> None:
    if (cos is None) != (sin is None) or (cos is not None and k is None):
        _fail("rotary_cos and rotary_sin must come together, and with k; got some of them alone.")
    if cos is not None and leftpad is not None:
        _fail(
            "cache_leftpad must be None if rotary_cos is given, because positions are not defined "
            "then; got both. Turn q and k before the call."
        )


def _fail(text: str) -> NoReturn:
    raise ValueError(f"flash_attn_with_kvcache: {text}")


def _refuse_pages(function: str) -> NoReturn:
    raise ValueError(
        f"{function}: block_table must be None, because paged caches are not served; got a table. "
        "Gather the pages of each sequence with k_cache[block_table].flatten(1, 2) first."
    )


def _unbind(function: str, name: str, packed: Tensor, count: int, ndim: int) -> tuple[Tensor, ...]:
    """Takes q, k, v out of one tensor; the gradient is put together in one pass."""
    if not isinstance(packed, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor; got {type(packed).__name__}.")
    if packed.ndim != ndim or packed.shape[-3] != count:
        layout = "(batch_size, seqlen" if ndim == 5 else "(total"
        raise ValueError(
            f"{function}: {name} must be {layout}, {count}, nheads, headdim); got shape "
            f"{tuple(packed.shape)}."
        )
    return packed.unbind(-3)


def _attend(q: Tensor, k: Tensor, v: Tensor, return_attn_probs: bool, **options: Any) -> Result:
    """All functions but the one with a cache."""
    q, k, v = op.autocast(q, k, v)
    checked = op.checked_options(q, k, v, **options)
    chosen = backends.select(backends.describe(q, k, checked))
    seed = dropout.draw_seed(q.device) if checked.dropout_p > 0.0 else None
    out, lse = op.run(q, k, v, checked, seed, chosen)
    if not return_attn_probs:
        return out
    return out, lse, q.new_empty(0) if seed is None else _dropped_weights(q, k, checked, seed)


@torch.no_grad()
def _dropped_weights(q: Tensor, k: Tensor, options: op.Options, seed: Tensor) -> Tensor:
    """Returns S_dmask; see the module.

    Attention to the rows of the identity as values gives the weights themselves.
    """
    named: dict[str, Any] = options._replace(dropout_p=0.0)._asdict()
    cu_seqlens_q, cu_seqlens_k = options.cu_seqlens_q, options.cu_seqlens_k
    if cu_seqlens_q is None or cu_seqlens_k is None:
        values = torch.eye(k.shape[1], device=q.device)[None, :, None]
        values = values.expand(k.shape[0], -1, k.shape[2], -1)
        weights, _ = reference.attention(q.float(), k.float(), values, **named)
    else:
        seqlen_q, seqlen_k = named["max_seqlen_q"], named["max_seqlen_k"]
        _, columns = _places(cu_seqlens_k, k.shape[0])
        values = torch.eye(seqlen_k, device=q.device)[columns][:, None].expand(-1, k.shape[1], -1)
        k = k[: len(columns)]
        packed, _ = reference.attention(q.float(), k.float(), values, **named)
        weights = packed.new_zeros(cu_seqlens_q.shape[0] - 1, seqlen_q, *packed.shape[1:])
        sequences, rows = _places(cu_seqlens_q, q.shape[0])
        weights[sequences, rows] = packed[: len(rows)]
    weights = weights.transpose(1, 2)  # (batch_size, nheads, seqlen_q, seqlen_k)
    if weights.numel() > 0:
        weights = weights / weights.amax(dim=-1, keepdim=True).clamp(min=torch.finfo().tiny)
    batch_size, nheads, seqlen_q, seqlen_k = weights.shape
    keep = dropout.keep_mask(seed, batch_size, nheads, seqlen_q, seqlen_k, options.dropout_p)
    return torch.where(keep, weights, -weights).to(q.dtype)


def _places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Returns of each packed row its sequence and its place in it, without rows of no sequence."""
    return row_places(cu_seqlens, min(total, int(cu_seqlens[-1])))


def _get_block_size_n(
    device: torch.device, head_dim: int, is_dropout: bool, is_causal: bool
) -> int:
    """Columns of a block: S_dmask is scaled by the largest score up to the end of its block.

    flash-attn's tests ask for it to undo that. Here the block is the row.
    """
    return 1 << 30
