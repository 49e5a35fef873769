"""``torch.nn.functional.scaled_dot_product_attention`` on fastattn: same arguments, same meaning.

    import fastattn

    out = fastattn.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=False)

    with fastattn.compat.routed_sdpa():      # code that calls torch's function runs on fastattn
        loss = model(batch).loss

The same as in torch 2.6 to 2.13: shapes with any number of leading dimensions, which broadcast;
bool and float masks, with their gradient; causality aligned to the *top-left* corner, where
:func:`fastattn.attention` aligns to the bottom-right one, or to the corner that a mask of
``torch.nn.attention.bias`` names; values of another head_dim; grouped heads
if they are asked for; 0, and gradients of 0, for a row whose keys are all masked; a contiguous
result for a contiguous query.

Different: errors are ValueError and TypeError, where torch raises RuntimeError. A mask together
with is_causal is refused, as torch documents; torch itself ignores the mask in some of its kernels.
Dropout draws other random bits, by the rule of :mod:`fastattn.dropout`, from torch's generator.
Masks of no or one dimension broadcast too. A key that a bool mask of shape (batch, 1, 1, S) hides
is never read, not even if it is NaN.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from fastattn import backends, dropout
from fastattn.compiling import constant_for_the_compiler
from fastattn.ops import attention as op
from fastattn.ops import checks
from fastattn.reference import statistics_dtype

_OP = "scaled_dot_product_attention"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention with the arguments of ``torch.nn.functional.scaled_dot_product_attention``.

        out = dropout(softmax(scale * query @ key.T + mask)) @ value

    Args:
        query: (..., L, E), at least two dimensions; float32, float64, float16 or bfloat16. Under
            ``torch.autocast`` query, key and value are cast to its dtype.
        key: (..., S, E). The dimensions before the last two broadcast among all three.
        value: (..., S, Ev).
        attn_mask: broadcastable to (..., L, S). bool, True = attend; or float32 or the dtype of
            query, added to the scores, which gets a gradient; or ``causal_upper_left(L, S)`` or
            ``causal_lower_right(L, S)`` of ``torch.nn.attention.bias``.
        dropout_p: probability of dropping an attention weight, in [0, 1]. Applied whenever it is
            positive: pass 0 in evaluation.
        is_causal: query i sees keys j <= i. Not together with attn_mask.
        scale: factor of the scores. Default: E ** -0.5.
        enable_gqa: dimension -3 of query may be a multiple of that of key, and of value.

    Returns:
        (..., L, Ev) in the dtype of query. A row with no key to attend to is 0.

    Raises:
        ValueError, TypeError: an argument breaks its rule; the message says which.
        NotImplementedError: a gradient of a gradient, or a forward-mode derivative, through a fused
            kernel.
    """
    _check_tensors(query, key, value)
    _check_options(attn_mask, dropout_p, is_causal, scale)
    attn_mask, diagonal = _split_causal(attn_mask, is_causal, query.shape[-2], key.shape[-2])
    q, k, v = op.autocast(query, key, value)
    if not q.dtype == k.dtype == v.dtype:
        _fail(
            TypeError,
            f"query, key and value must have one dtype; got {q.dtype}, {k.dtype} and {v.dtype}. "
            "Convert them, or run under torch.autocast.",
        )
    if attn_mask is not None:
        _check_mask(attn_mask, query, q)
    shape = None
    if not _is_batch(q, k, v, enable_gqa):
        leading = _leading_dims(q, k, v, enable_gqa)
        shape = (*leading, q.shape[-2], v.shape[-1])
        if 0 in leading:
            # Sums of nothing: they keep the result in the graph of the arguments.
            return q.new_empty(shape) + (q.sum() + k.sum() + v.sum())
        q, k, v, attn_mask = _as_batch(q, k, v, attn_mask, leading)
    out = _attend(q, k, v, attn_mask, float(dropout_p), diagonal, scale)
    if shape is not None:
        out = out.reshape(shape)
    return out.contiguous() if query.is_contiguous() else out


@contextmanager
def routed_sdpa() -> Iterator[None]:
    """Lets calls of torch's own function run on fastattn for the length of a ``with`` block.

    Whoever calls ``torch.nn.functional.scaled_dot_product_attention`` by that path inside the
    block, such as ``torch.nn.MultiheadAttention`` and the models of Transformers with "sdpa", gets
    :func:`scaled_dot_product_attention`. It holds for this thread, or asyncio task, and no other.
    Not reached are names that hold the function itself (``from torch.nn.functional import ...``),
    C++ code, and code that was compiled before the block.
    """
    token = _is_routed.set(True)
    _Route.enter()
    try:
        yield
    finally:
        _Route.leave()
        _is_routed.reset(token)


_is_routed = ContextVar("_is_routed", default=False)


class _Route:
    """Stands in for torch's function as long as any thread is in a block."""

    _lock = threading.Lock()
    _blocks = 0
    _torchs: Callable[..., Tensor] = F.scaled_dot_product_attention

    @classmethod
    def enter(cls) -> None:
        with cls._lock:
            if F.scaled_dot_product_attention is not _either:
                cls._torchs = F.scaled_dot_product_attention
                F.scaled_dot_product_attention = _either
            cls._blocks += 1

    @classmethod
    def leave(cls) -> None:
        with cls._lock:
            cls._blocks -= 1
            # Who replaced the function in the meantime knows what to put back.
            if cls._blocks == 0 and F.scaled_dot_product_attention is _either:
                F.scaled_dot_product_attention = cls._torchs


def _either(*args: Any, **kwargs: Any) -> Tensor:
    """Ours in a block, torch's own elsewhere."""
    function = scaled_dot_product_attention if _routes_here() else _Route._torchs
    return function(*args, **kwargs)


@constant_for_the_compiler
def _routes_here() -> bool:
    return _is_routed.get()


def _is_batch(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> bool:
    """Whether they are (batch, heads, length, head_dim) as the kernels take them."""
    if not q.ndim == k.ndim == v.ndim == 4:
        return False
    batch_size, heads = q.shape[:2]
    heads_kv = k.shape[1]
    return (
        k.shape[0] == v.shape[0] == batch_size > 0
        and v.shape[1] == heads_kv
        and heads > 0
        and (heads_kv == heads or heads_kv == 1 or (enable_gqa and _divides(heads_kv, heads)))
    )


def _divides(heads_kv: int, heads: int) -> bool:
    return heads_kv > 0 and heads % heads_kv == 0


def _leading_dims(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> tuple[int, ...]:
    """Returns the dimensions of the result before (L, Ev)."""
    last = -3 if enable_gqa else -2
    heads: tuple[int, ...] = ()
    if enable_gqa:
        fit = min(q.ndim, k.ndim, v.ndim) >= 3 and all(
            _divides(x.shape[-3], q.shape[-3]) for x in (k, v)
        )
        if not fit:
            _fail(
                ValueError,
                "dimension -3 of query must be a multiple of that of key and of value if "
                f"enable_gqa; got shapes {_shapes(q, k, v)}.",
            )
        heads = (q.shape[-3],)
    try:
        return (*torch.broadcast_shapes(*(x.shape[:last] for x in (q, k, v))), *heads)
    except RuntimeError:
        _fail(
            ValueError,
            "the dimensions of query, key and value before the last two must broadcast; got "
            f"shapes {_shapes(q, k, v)}. Grouped heads need enable_gqa=True.",
        )


def _as_batch(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, leading: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Brings everything to four dimensions; the last of ``leading`` is the heads."""
    rank = max(len(leading), 1)
    *batch, heads = leading or (1,)
    q, k, v = (x.reshape((1,) * (rank + 2 - x.ndim) + tuple(x.shape)) for x in (q, k, v))
    q = q.expand(*q.shape[:-3], heads, *q.shape[-2:])
    if k.shape[-3] != v.shape[-3]:
        k, v = (x.repeat_interleave(heads // x.shape[-3], dim=-3) for x in (k, v))
    q, k, v = (_one_batch_dim(x.expand(*batch, *x.shape[-3:]), len(batch)) for x in (q, k, v))
    if mask is None:
        return q, k, v, None
    if mask.ndim > len(leading) + 2:
        _fail_mask(mask, (*leading, q.shape[-2], k.shape[-2]))
    mask = mask.reshape((1,) * (rank + 2 - mask.ndim) + tuple(mask.shape))
    if any(size not in (1, whole) for size, whole in zip(mask.shape, batch, strict=False)):
        _fail_mask(mask, (*leading, q.shape[-2], k.shape[-2]))
    if any(size != 1 for size in mask.shape[: len(batch)]):
        mask = mask.expand(*batch, *mask.shape[-3:])
    return q, k, v, _one_batch_dim(mask, len(batch))


def _one_batch_dim(x: Tensor, num_batch_dims: int) -> Tensor:
    """(*batch, heads, ., .) -> (batch, heads, ., .)"""
    return x[None] if num_batch_dims == 0 else x.flatten(0, num_batch_dims - 1)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    diagonal: int | None,
    scale: float | None,
) -> Tensor:
    """(batch, heads, L, E), (batch, heads_kv, S, E), (batch, heads_kv, S, Ev), and a mask.

    The mask broadcasts to (batch, heads, L, S). diagonal: query i sees keys j <= i + diagonal;
    None: all.
    """
    head_dim, head_dim_v = q.shape[-1], v.shape[-1]
    if scale is None:
        scale = head_dim**-0.5 if head_dim > 0 else 1.0
    width = max(head_dim, head_dim_v, 1)
    q, k, v = _padded(q, width), _padded(k, width), _padded(v, width)
    window = (-1, -1)
    if diagonal is not None:
        right = diagonal + q.shape[2] - k.shape[2]
        if right < 0:  # keys behind the last query are seen by none
            k, v = k[:, :, :right], v[:, :, :right]
        window = (-1, max(right, 0))
    key_padding_mask, bias = (None, None) if mask is None else _split_mask(mask, q, k)
    options = op.Options(
        None,
        None,
        q.shape[2],
        k.shape[2],
        key_padding_mask,
        bias,
        None,
        float(scale),
        0.0,
        window,
        dropout_p,
    )
    chosen = backends.choose(q, k, options, heads_dim=-3)
    seed = dropout.draw_seed(q.device) if dropout_p > 0.0 else None
    out, _ = op.run(q, k, v, options, seed, chosen, heads_first=True)
    return out if head_dim_v == width else out[..., :head_dim_v]


def _padded(x: Tensor, width: int) -> Tensor:
    """Zeros behind head_dim: they change no score, and give columns that nobody reads."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _split_causal(
    mask: Tensor | None, is_causal: bool, rows: int, columns: int
) -> tuple[Tensor | None, int | None]:
    """Returns the mask, unless it says where causality begins and no more, and that diagonal.

    Such masks of torch hold no values: only torch's own function makes something of them.
    """
    if mask is None or type(mask) is Tensor:
        return mask, 0 if is_causal else None
    torchs = sys.modules.get("torch.nn.attention.bias")  # whoever has such a mask has loaded it
    if torchs is None or not isinstance(mask, torchs.CausalBias):
        return mask, 0 if is_causal else None
    shape = (mask.seq_len_q, mask.seq_len_kv)
    if shape != (rows, columns):
        _fail(
            ValueError,
            f"attn_mask must be made for (L, S) = {(rows, columns)}; got a {type(mask).__name__} "
            f"for {shape}.",
        )
    to_the_end = mask.variant == torchs.CausalVariant.LOWER_RIGHT
    return None, columns - rows if to_the_end else 0


def _split_mask(mask: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Returns the mask as (batch, S) bool, True = attend, or else as what the scores get added."""
    full = (*q.shape[:3], k.shape[2])
    shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if len(shape) != 4 or any(a not in (1, b) for a, b in zip(shape, full, strict=True)):
        _fail_mask(mask, full)
    mask = mask.reshape(shape)
    if mask.dtype != torch.bool:
        return None, mask.to(statistics_dtype(q.dtype))
    if mask.shape[1] == mask.shape[2] == 1:
        return mask[:, 0, 0].expand(full[0], full[3]), None
    return None, torch.where(mask, 0.0, -math.inf).to(statistics_dtype(q.dtype))


def _fail(kind: type[Exception], text: str) -> NoReturn:
    raise kind(f"{_OP}: {text}")


def _fail_mask(mask: Tensor, full: Sequence[int]) -> NoReturn:
    _fail(
        ValueError,
        f"attn_mask must broadcast to (..., L, S) = {tuple(full)}; got shape {tuple(mask.shape)}.",
    )


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Checks types, devices and the last two dimensions."""
    named = (("query", query), ("key", key), ("value", value))
    for name, x in named:
        if not isinstance(x, Tensor):
            _fail(TypeError, f"{name} must be a torch.Tensor; got {type(x).__name__}.")
        if (problem := checks.wrong_layout(name, x)) is not None:
            _fail(TypeError, problem)
        if x.dtype not in checks.DTYPES:
            _fail(
                TypeError,
                f"{name} must be float32, float64, float16 or bfloat16; got {x.dtype}. "
                f"Convert it with {name}.to(dtype).",
            )
        if x.device != query.device:
            _fail_device(name, x, query)
        if x.ndim < 2:
            _fail(
                ValueError,
                f"{name} must have at least two dimensions, (..., length, head_dim); got shape "
                f"{tuple(x.shape)}.",
            )
    if query.shape[-1] != key.shape[-1]:
        _fail(
            ValueError,
            f"key must have the last dimension of query, {query.shape[-1]}; got shape "
            f"{tuple(key.shape)}.",
        )
    if key.shape[-2] != value.shape[-2]:
        _fail(
            ValueError,
            f"value must have as many rows as key, {key.shape[-2]}; got shape "
            f"{tuple(value.shape)}.",
        )


def _fail_device(name: str, x: Tensor, query: Tensor) -> NoReturn:
    _fail(
        ValueError,
        f"{name} must be on the device of query, {query.device}; got {x.device}. "
        f"Move it with {name}.to(query.device).",
    )


def _check_options(
    attn_mask: Tensor | None, dropout_p: float, is_causal: bool, scale: float | None
) -> None:
    """Checks everything that is not a tensor."""
    for name, x in (("dropout_p", dropout_p), ("scale", scale)):
        if x is not None and (isinstance(x, bool) or not isinstance(x, (int, float))):
            _fail(TypeError, f"{name} must be a number; got {type(x).__name__}.")
    if not 0.0 <= dropout_p <= 1.0:
        _fail(ValueError, f"dropout_p must be in [0, 1]; got {dropout_p}.")
    if scale is not None and not -math.inf < scale < math.inf:
        _fail(ValueError, f"scale must be finite; got {scale}.")
    if is_causal and attn_mask is not None:
        _fail(
            ValueError,
            "attn_mask must be None if is_causal; got both. Put the causal mask into attn_mask.",
        )


def _check_mask(mask: Tensor, query: Tensor, q: Tensor) -> None:
    """Checks the mask but for its shape; q is query after autocast."""
    if not isinstance(mask, Tensor):
        _fail(TypeError, f"attn_mask must be a torch.Tensor; got {type(mask).__name__}.")
    if (problem := checks.wrong_layout("attn_mask", mask)) is not None:
        _fail(TypeError, problem)
    if mask.dtype not in (torch.bool, torch.float32, query.dtype, q.dtype):
        _fail(
            TypeError,
            f"attn_mask must be bool, float32 or the dtype of query, {query.dtype}; got "
            f"{mask.dtype}. A 0/1 mask converts with attn_mask.bool().",
        )
    if mask.device != query.device:
        _fail_device("attn_mask", mask, query)
