"""Checks of what a caller passes to :func:`fastattn.attention`.

Each message has one form: operation, argument, rule, the value got, what to do.
"""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from fastattn.ops.calls import is_mapped

if TYPE_CHECKING:
    from fastattn.ops.attention import Options

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# What torch.autocast converts: float64 stays as it is.
AUTOCAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Rows farther away than there are any. Added to a row, larger numbers would overflow.
_UNBOUNDED = 1 << 30


def _fail(kind: type[Exception], text: str) -> NoReturn:
    raise kind(f"attention: {text}")


def wrong_layout(name: str, x: Tensor) -> str | None:
    """Returns what to say of a tensor that is not one block of rows, or None."""
    if x.is_nested:
        return (
            f"{name} must be an ordinary tensor; got a nested one. Lay its sequences one after the "
            "other and pass cu_seqlens_q, or pad them with torch.nested.to_padded_tensor."
        )
    if x.layout != torch.strided:
        return (
            f"{name} must be an ordinary tensor; got one of layout {x.layout}. "
            f"Convert it with {name}.to_dense()."
        )
    return None


def _require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        _fail(TypeError, f"{name} must be a torch.Tensor; got {type(value).__name__}.")
    problem = wrong_layout(name, value)
    if problem is not None:
        _fail(TypeError, problem)


def _require_device(name: str, value: Tensor, q: Tensor) -> None:
    if value.device != q.device:
        _fail(
            ValueError,
            f"{name} must be on the device of q, {q.device}; got {value.device}. "
            f"Move it with {name}.to(q.device).",
        )


def is_known(x: Tensor) -> bool:
    """Whether the values of a tensor can be read.

    They cannot while a graph is made, nor those of a fake or meta tensor, nor within torch.vmap.
    """
    return (
        not torch.compiler.is_compiling()
        and not isinstance(x, FakeTensor)
        and not x.is_meta
        and not is_mapped(x)
    )


def can_be_read(x: Tensor) -> bool:
    """Whether the values of a tensor can be read at once; a GPU would have to be waited for."""
    return x.device.type == "cpu" and is_known(x)


def as_int(length: Any) -> Any:
    """Returns a length as a number, which some callers have as a tensor of one element.

    Not by ``int()``, which would make a constant of what an exported program computes.
    """
    return length.item() if isinstance(length, Tensor) else length


def check_qkv(q: Tensor, k: Tensor, v: Tensor, packed: bool) -> None:
    """Checks the types, devices and shapes of q, k, v against each other."""
    if not _agree(q, k, v, 3 if packed else 4):
        _explain_disagreement(q, k, v, packed)
    q_shape, k_shape = q.shape, k.shape
    if k_shape != v.shape:
        _fail(
            ValueError,
            f"v must have the shape of k, {tuple(k_shape)}; got {tuple(v.shape)}. "
            "Values of another head_dim are not supported; pad the smaller one with zeros.",
        )
    if q_shape[-1] != k_shape[-1] or q_shape[-1] == 0:
        _fail(
            ValueError,
            f"k must have the head_dim of q, at least 1; got head_dim {k_shape[-1]} for k and "
            f"{q_shape[-1]} for q.",
        )
    num_heads, num_heads_kv = q_shape[-2], k_shape[-2]
    if num_heads == 0 or num_heads_kv == 0 or num_heads % num_heads_kv != 0:
        _fail(
            ValueError,
            "num_heads of q must be a multiple of num_heads_kv of k and v, both at least 1; got "
            f"{num_heads} and {num_heads_kv}.",
        )
    if not packed and q_shape[0] != k_shape[0]:
        _fail(
            ValueError,
            f"k must have the batch size of q, {q_shape[0]}; got {k_shape[0]}. "
            "Shapes are (batch, seqlen, heads, head_dim).",
        )


def _agree(q: Tensor, k: Tensor, v: Tensor, ndim: int) -> bool:
    """Whether all is right that :func:`_explain_disagreement` looks at one by one."""
    return (
        isinstance(q, Tensor)
        and isinstance(k, Tensor)
        and isinstance(v, Tensor)
        and q.layout == k.layout == v.layout == torch.strided
        and not (q.is_nested or k.is_nested or v.is_nested)
        and q.dtype in DTYPES
        and q.dtype == k.dtype == v.dtype
        and q.device == k.device == v.device
        and q.ndim == k.ndim == v.ndim == ndim
    )


def _explain_disagreement(q: Tensor, k: Tensor, v: Tensor, packed: bool) -> None:
    """Raises for the first of q, k, v that has another type, dtype, device or rank."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _require_tensor(name, tensor)
        if tensor.dtype not in DTYPES:
            _fail(
                TypeError,
                f"{name} must be float32, float64, float16 or bfloat16; got {tensor.dtype}. "
                f"Convert it with {name}.to(dtype).",
            )
        if tensor.dtype != q.dtype:
            _fail(
                TypeError,
                f"{name} must have the dtype of q, {q.dtype}; got {tensor.dtype}. "
                f"Convert it with {name}.to(q.dtype), or run under torch.autocast.",
            )
        _require_device(name, tensor, q)
        if tensor.ndim != (3 if packed else 4):
            layout = (
                "(total, heads, head_dim), because cu_seqlens_q is given"
                if packed
                else "(batch, seqlen, heads, head_dim), or packed with cu_seqlens_q"
            )
            _fail(ValueError, f"{name} must be {layout}; got shape {tuple(tensor.shape)}.")


def check_packed(
    q: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
) -> None:
    """Checks what can be checked of a packed layout without reading the cumulative lengths."""
    _check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q)
    if cu_seqlens_k is not cu_seqlens_q:
        _check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, q)
        if cu_seqlens_q.shape != cu_seqlens_k.shape:
            _fail(
                ValueError,
                "cu_seqlens_k must name as many sequences as cu_seqlens_q, "
                f"{cu_seqlens_q.shape[0] - 1}; got {cu_seqlens_k.shape[0] - 1}.",
            )
    _check_max_seqlen("max_seqlen_q", max_seqlen_q)
    _check_max_seqlen("max_seqlen_k", max_seqlen_k)


def check_batch_only(
    cu_seqlens_k: Tensor | None, max_seqlen_q: int | None, max_seqlen_k: int | None
) -> None:
    """Checks that the arguments of the packed layout are absent from a batch."""
    if cu_seqlens_k is None and max_seqlen_q is None and max_seqlen_k is None:
        return
    given = {
        "cu_seqlens_k": cu_seqlens_k,
        "max_seqlen_q": max_seqlen_q,
        "max_seqlen_k": max_seqlen_k,
    }
    for name, value in given.items():
        if value is not None:
            _fail(
                ValueError,
                f"{name} must come with cu_seqlens_q, which selects the packed layout; got {name} "
                "without it. Pass cu_seqlens_q too, or leave it out for a batch.",
            )


def _check_cu_seqlens(name: str, cu_seqlens: Tensor, q: Tensor) -> None:
    _require_tensor(name, cu_seqlens)
    if cu_seqlens.dtype != torch.int32:
        _fail(
            TypeError,
            f"{name} must be int32; got {cu_seqlens.dtype}. "
            f"Convert it with {name}.to(torch.int32).",
        )
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        _fail(
            ValueError,
            f"{name} must have shape (batch + 1,): 0 and then the running sum of the lengths; "
            f"got shape {tuple(cu_seqlens.shape)}.",
        )
    _require_device(name, cu_seqlens, q)


def _check_max_seqlen(name: str, max_seqlen: int | None) -> None:
    if max_seqlen is None:
        return
    # A compiler's symbol stands for an int.
    if not isinstance(max_seqlen, (int, torch.SymInt)):
        _fail(
            TypeError,
            f"{name} must be an int, the length of the longest sequence; got "
            f"{type(max_seqlen).__name__}. "
            "Compute it where the lengths are made, with int(lengths.max()).",
        )
    # An exported graph may compute it, and does not know it then.
    if not torch.compiler.is_compiling() and max_seqlen < 0:
        _fail(ValueError, f"{name} must be at least 0; got {max_seqlen}.")


def check_cu_seqlens_on_cpu(q: Tensor, k: Tensor, options: Options) -> None:
    """Checks the values of both cumulative lengths, if there are any and they can be read."""
    cu_seqlens_q, cu_seqlens_k = options.cu_seqlens_q, options.cu_seqlens_k
    if cu_seqlens_q is None or cu_seqlens_k is None or not can_be_read(cu_seqlens_q):
        return
    check_cu_seqlens_values("cu_seqlens_q", cu_seqlens_q, q.shape[0], options.max_seqlen_q)
    check_cu_seqlens_values("cu_seqlens_k", cu_seqlens_k, k.shape[0], options.max_seqlen_k)


def check_cu_seqlens_values(
    name: str, cu_seqlens: Tensor, total: int, max_seqlen: int | None
) -> int:
    """Checks cumulative lengths on the CPU, where reading them costs next to nothing.

    Returns:
        The last of them: the number of rows that belong to sequences.

    Raises:
        ValueError: they do not start at 0, decrease, end beyond the ``total`` rows of the
            tensor, or a sequence is longer than ``max_seqlen`` (None: any length).
    """
    values: list[int] = cu_seqlens.tolist()
    lengths = list(map(operator.sub, values[1:], values))
    fits = (
        values[0] == 0
        and values[-1] <= total
        and min(lengths, default=0) >= 0
        and (max_seqlen is None or max(lengths, default=0) <= max_seqlen)
    )
    if not fits:
        _explain_cu_seqlens(name, values, total, max_seqlen)
    return values[-1]


def _explain_cu_seqlens(name: str, values: list[int], total: int, max_seqlen: int | None) -> None:
    """Raises for the first value that breaks a rule."""
    if values[0] != 0:
        _fail(ValueError, f"{name} must start with 0; got {values[0]}.")
    for index, (start, end) in enumerate(itertools.pairwise(values)):
        if end < start:
            _fail(
                ValueError,
                f"{name} must not decrease; got {start} and then {end} at index {index + 1}. "
                "It is the running sum of the lengths, starting with 0.",
            )
        if max_seqlen is not None and end - start > max_seqlen:
            _fail(
                ValueError,
                f"max_seqlen{name.removeprefix('cu_seqlens')} must be at least the longest "
                f"sequence; got {max_seqlen}, and sequence {index} has {end - start} rows.",
            )
    if values[-1] > total:
        _fail(
            ValueError,
            f"{name} must end within the tensor's {total} rows; got {values[-1]} as its last "
            "value.",
        )


def check_key_padding_mask(mask: Tensor, k: Tensor, packed: bool) -> None:
    """Checks the key padding mask of a batch."""
    _require_tensor("key_padding_mask", mask)
    if packed:
        _fail(
            ValueError,
            "key_padding_mask must be None in the packed layout, which has no padding; got a mask "
            f"of shape {tuple(mask.shape)}. Leave the padding out of k, v and cu_seqlens_k.",
        )
    if mask.dtype != torch.bool:
        _fail(
            TypeError,
            f"key_padding_mask must be bool, True = attend; got {mask.dtype}. "
            "A 0/1 mask converts with mask.bool(), an additive mask belongs in bias.",
        )
    if mask.shape != k.shape[:2]:
        _fail(
            ValueError,
            f"key_padding_mask must have shape (batch, seqlen_k) = {tuple(k.shape[:2])}; got "
            f"{tuple(mask.shape)}. A mask of scores, (..., seqlen_q, seqlen_k), belongs in bias "
            "as 0 and -inf.",
        )
    _require_device("key_padding_mask", mask, k)


def check_bias(bias: Tensor, q: Tensor, full_shape: tuple[int, int, int, int]) -> Tensor:
    """Returns the bias with four dimensions, each 1 or that of ``full_shape``."""
    _require_tensor("bias", bias)
    if not bias.dtype.is_floating_point:
        _fail(
            TypeError,
            f"bias must be a floating-point tensor, added to the scores; got {bias.dtype}. "
            "A bool mask of scores becomes torch.where(mask, 0.0, float('-inf')).",
        )
    _require_device("bias", bias, q)
    fits = bias.ndim <= 4 and all(
        size == 1 or size == full
        for size, full in zip(bias.shape, full_shape[4 - bias.ndim :], strict=True)
    )
    if not fits:
        _fail(
            ValueError,
            "bias must broadcast to (batch, num_heads, seqlen_q, seqlen_k) = "
            f"{full_shape}; got shape {tuple(bias.shape)}.",
        )
    return bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape))


def check_alibi_slopes(slopes: Tensor, q: Tensor, batch_size: int) -> Tensor:
    """Returns the slopes as (1 or batch, num_heads)."""
    _require_tensor("alibi_slopes", slopes)
    if not slopes.dtype.is_floating_point:
        _fail(TypeError, f"alibi_slopes must be floating-point; got {slopes.dtype}.")
    _require_device("alibi_slopes", slopes, q)
    num_heads = q.shape[-2]
    if tuple(slopes.shape) not in ((num_heads,), (batch_size, num_heads)):
        _fail(
            ValueError,
            f"alibi_slopes must have shape (num_heads,) = ({num_heads},) or (batch, num_heads) = "
            f"({batch_size}, {num_heads}); got {tuple(slopes.shape)}.",
        )
    if slopes.requires_grad:
        _fail(
            ValueError,
            "alibi_slopes must not require a gradient; learn a bias instead, or pass "
            "alibi_slopes.detach().",
        )
    return slopes.reshape(-1, num_heads)


def _require_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _fail(TypeError, f"{name} must be a number; got {type(value).__name__}.")


def check_dropout_p(dropout_p: float) -> None:
    """Checks the probability of dropping an attention weight."""
    if type(dropout_p) is float and 0.0 <= dropout_p <= 1.0:
        return
    _require_number("dropout_p", dropout_p)
    if not 0.0 <= dropout_p <= 1.0:
        _fail(
            ValueError,
            f"dropout_p must be in [0, 1], the probability of dropping; got {dropout_p}.",
        )


def check_softcap(softcap: float) -> None:
    """Checks the bound of the scores."""
    if type(softcap) is float and 0.0 <= softcap < math.inf:
        return
    _require_number("softcap", softcap)
    if not 0.0 <= softcap < math.inf:
        _fail(ValueError, f"softcap must be 0 (off) or positive and finite; got {softcap}.")


def check_softmax_scale(softmax_scale: float) -> None:
    """Checks the factor of the scores."""
    if type(softmax_scale) is float and -math.inf < softmax_scale < math.inf:
        return
    _require_number("softmax_scale", softmax_scale)
    if not -math.inf < softmax_scale < math.inf:
        _fail(ValueError, f"softmax_scale must be finite; got {softmax_scale}.")


def check_window(window: tuple[int, int], causal: bool) -> tuple[int, int]:
    """Returns (left, right) with -1 for "unbounded" and causality folded into the right bound."""
    pair = tuple(window) if isinstance(window, (tuple, list)) else ()
    # Not all() of a generator, which takes longer than the rest.
    fits = len(pair) == 2 and isinstance(pair[0], int) and isinstance(pair[1], int)
    if not fits or pair[0] < -1 or pair[1] < -1:
        _fail(
            ValueError,
            "window must be (left, right), two integers of at least -1, -1 = unbounded; got "
            f"{window!r}.",
        )
    left, right = (-1 if bound >= _UNBOUNDED else bound for bound in pair)
    return (left, 0) if causal else (left, right)
