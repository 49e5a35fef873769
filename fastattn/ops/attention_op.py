"""The operators ``fastattn::attention_fwd`` and ``fastattn::attention_bwd``.

Registered with ``torch.library``, so that autograd, fake tensors and ``torch.compile`` treat the
fused kernels as any other operator. Python allocates the results, a backend fills them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastattn import backends
from fastattn.reference import statistics_dtype

if TYPE_CHECKING:
    from fastattn.ops.attention import Options

# What both operators take after their own tensors.
_OPTIONS_SCHEMA = (
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? key_padding_mask, Tensor? bias, "
    "Tensor? alibi_slopes, Tensor? seed, SymInt? max_seqlen_q, SymInt? max_seqlen_k, "
    "float softmax_scale, float softcap, SymInt window_left, SymInt window_right, "
    "float dropout_p, str backend"
)

torch.library.define(
    "fastattn::attention_fwd",
    f"(Tensor q, Tensor k, Tensor v, {_OPTIONS_SCHEMA}) -> (Tensor, Tensor)",
)
torch.library.define(
    "fastattn::attention_bwd",
    "(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"bool bias_grad, {_OPTIONS_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)


def attention_op(
    q: Tensor, k: Tensor, v: Tensor, options: Options, seed: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Calls the forward operator with the options of :func:`fastattn.attention`."""
    return torch.ops.fastattn.attention_fwd(
        q,
        k,
        v,
        options.cu_seqlens_q,
        options.cu_seqlens_k,
        options.key_padding_mask,
        options.bias,
        options.alibi_slopes,
        seed,
        options.max_seqlen_q,
        options.max_seqlen_k,
        options.softmax_scale,
        options.softcap,
        options.window[0],
        options.window[1],
        options.dropout_p,
        backend,
    )


def _empty_outputs(q: Tensor, cu_seqlens_q: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns out and lse, to be filled."""
    if cu_seqlens_q is None:
        batch_size, seqlen_q, num_heads, _ = q.shape
        lse_shape = [batch_size, num_heads, seqlen_q]
    else:
        lse_shape = [q.shape[1], q.shape[0]]
    return q.new_empty(q.shape), q.new_empty(lse_shape, dtype=statistics_dtype(q.dtype))


def _empty_grads(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, bias_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns dq, dk, dv and dbias, to be filled; dbias is empty if it is not asked for."""
    if bias_grad and bias is not None:
        dbias = bias.new_empty(bias.shape)
    else:
        dbias = q.new_empty([0], dtype=statistics_dtype(q.dtype))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


@torch.library.impl("fastattn::attention_fwd", "default")
def _attention_fwd(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *call, backend = options
    out, lse = _empty_outputs(q, call[0])
    backends.get(backend).attention_fwd(out, lse, q, k, v, *call)
    return out, lse


@torch.library.register_fake("fastattn::attention_fwd")
def _attention_fwd_fake(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q, options[0])


@torch.library.impl("fastattn::attention_bwd", "default")
def _attention_bwd(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias_grad: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *call, backend = options
    dq, dk, dv, dbias = _empty_grads(q, k, v, call[3], bias_grad)
    backends.get(backend).attention_bwd(
        dq, dk, dv, dbias if bias_grad else None, dout, dlse, q, k, v, out, lse, *call
    )
    return dq, dk, dv, dbias


@torch.library.register_fake("fastattn::attention_bwd")
def _attention_bwd_fake(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias_grad: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_grads(q, k, v, options[3], bias_grad)


_NUM_TENSOR_OPTIONS = 6  # cu_seqlens_q, cu_seqlens_k, key_padding_mask, bias, alibi_slopes, seed
_BIAS_INDEX = 3 + 3  # q, k, v, cu_seqlens_q, cu_seqlens_k, key_padding_mask, bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    num_tensors = 3 + _NUM_TENSOR_OPTIONS
    ctx.save_for_backward(*inputs[:num_tensors], *output)
    ctx.values = inputs[num_tensors:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    *inputs, out, lse = ctx.saved_tensors
    q, k, v, *tensors = inputs
    bias_grad = ctx.needs_input_grad[_BIAS_INDEX]
    if dout is None:
        dout = torch.zeros_like(out)
    dq, dk, dv, dbias = torch.ops.fastattn.attention_bwd(
        dout, dlse, q, k, v, out, lse, bias_grad, *tensors, *ctx.values
    )
    num_rest = len(tensors) + len(ctx.values)
    rest: list[Tensor | None] = [None] * num_rest
    if bias_grad:
        rest[_BIAS_INDEX - 3] = dbias
    return dq, dk, dv, *rest


torch.library.register_autograd("fastattn::attention_fwd", _backward, setup_context=_setup_context)


def _no_double_backward(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "attention: the gradient of a gradient must be taken on the reference backend; got one "
        'through a fused kernel. Call attention(..., backend="reference").'
    )


torch.library.register_autograd("fastattn::attention_bwd", _no_double_backward)
