"""The operators ``fastattn::attention_fwd`` and ``fastattn::attention_bwd``.

Registered with ``torch.library``, so that autograd, fake tensors and ``torch.compile`` treat the
fused kernels as any other operator. Python allocates the results, a backend fills them.

As :mod:`fastattn.ops.calls` says, a plain eager call goes to the same functions past the operators,
by an ``autograd.Function`` of its own: it takes heads that come first without a view of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import _C, Tensor

from fastattn import backends
from fastattn.backends import cpu
from fastattn.ops.calls import empty_like, is_plain_call, past_functorch, register_for_dispatcher
from fastattn.ops.tangents import no_double_backward, refuse_tangents
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

# q, k, v, cu_seqlens_q, cu_seqlens_k, key_padding_mask, bias, alibi_slopes, seed
_NUM_TENSORS = 9
_BIAS_INDEX = 3  # among those after q, k, v

# Says which hooks on saved tensors are active; torch 2.6 has none such.
_saving_hooks = getattr(_C._autograd, "_top_saved_tensors_default_hooks", None)

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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: Options,
    seed: Tensor | None,
    backend: str,
    heads_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs the forward operator with the options of :func:`fastattn.attention`.

    Args:
        heads_first: q, k, v and out are (batch, heads, seqlen, head_dim).
    """
    (
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        key_padding_mask,
        bias,
        alibi_slopes,
        softmax_scale,
        softcap,
        window,
        dropout_p,
    ) = options
    tensors = (cu_seqlens_q, cu_seqlens_k, key_padding_mask, bias, alibi_slopes, seed)
    values = (
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        softcap,
        *window,
        dropout_p,
        backend,
    )
    # A compiler asks first, and traces nothing of the rest.
    if torch.compiler.is_compiling() or not is_plain_call(q, k, v, *tensors):
        refuse_tangents("attention", q, k, v, bias)
        if not heads_first:
            return _fwd_op(q, k, v, *tensors, *values)
        heads_second = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = _fwd_op(*heads_second, *tensors, *values)
        return heads_first_like(out, q), lse
    differentiable = torch.is_grad_enabled() and (
        q.requires_grad
        or k.requires_grad
        or v.requires_grad
        or (bias is not None and bias.requires_grad)
    )
    if differentiable:
        return _apply_eager_attention(q, k, v, bias, tensors, values, heads_first)
    return _eager_fwd(q, k, v, tensors, values, heads_first)


def heads_first_like(out: Tensor, q: Tensor) -> Tensor:
    """(batch, seqlen, heads, head_dim) -> heads first, contiguous if q is: callers may view it."""
    out = out.transpose(1, 2)
    return out.contiguous() if q.is_contiguous() else out


def _empty_outputs(q: Tensor, cu_seqlens_q: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns out and lse, to be filled."""
    if cu_seqlens_q is None:
        batch_size, seqlen_q, num_heads, _ = q.shape
        return empty_like(q), _empty_lse((batch_size, num_heads, seqlen_q), q)
    return empty_like(q), _empty_lse((q.shape[1], q.shape[0]), q)


def _empty_lse(shape: Sequence[int], q: Tensor) -> Tensor:
    return torch.empty(shape, dtype=statistics_dtype(q.dtype), device=q.device)


def _empty_grads(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, bias_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Returns dq, dk, dv and dbias, to be filled."""
    dbias = empty_like(bias) if bias_grad and bias is not None else None
    return empty_like(q), empty_like(k), empty_like(v), dbias


def _empty_heads_first(x: Tensor) -> Tensor:
    """The strides of x without gaps, where kernels can write to these."""
    empty = torch.empty_like(x)
    return empty if empty.stride()[-1] == 1 else empty_like(x)


def _attention_fwd(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    out, lse = _empty_outputs(q, options[0])
    backends.get(options[-1]).attention_fwd(out, lse, q, k, v, *options[:-1])
    return out, lse


@torch.library.register_fake("fastattn::attention_fwd")
def _attention_fwd_fake(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q, options[0])


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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    dq, dk, dv, dbias = _empty_grads(q, k, v, options[_BIAS_INDEX], bias_grad)
    backends.get(options[-1]).attention_bwd(
        dq, dk, dv, dbias, dout, dlse, q, k, v, out, lse, *options[:-1]
    )
    return dq, dk, dv, dbias


def _four_tensors(
    dq: Tensor, dk: Tensor, dv: Tensor, dbias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the operator returns, which cannot be None: dbias is empty if it is not asked for."""
    if dbias is None:
        dbias = torch.empty(0, dtype=statistics_dtype(dq.dtype), device=dq.device)
    return dq, dk, dv, dbias


def _attention_bwd_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _four_tensors(*_attention_bwd(*arguments))


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
    return _four_tensors(*_empty_grads(q, k, v, options[_BIAS_INDEX], bias_grad))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:_NUM_TENSORS], *output)
    ctx.values = inputs[_NUM_TENSORS:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, *tensors, out, lse = ctx.saved_tensors
    bias_grad = ctx.needs_input_grad[3 + _BIAS_INDEX]
    dq, dk, dv, dbias = _gradients(dout, dlse, (q, k, v, out, lse), bias_grad, tensors, ctx.values)
    rest: list[Tensor | None] = [None] * (len(tensors) + len(ctx.values))
    if bias_grad:
        rest[_BIAS_INDEX] = dbias
    return dq, dk, dv, *rest


def _gradients(
    dout: Tensor | None,
    dlse: Tensor | None,
    saved: Sequence[Tensor],  # q, k, v, out, lse
    bias_grad: bool,
    tensors: Sequence[Tensor | None],
    values: tuple[Any, ...],
    saved_is_plain: bool = False,
    heads_first: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Runs the backward operator.

    Args:
        saved_is_plain: nobody can have replaced the saved tensors, which were plain.
        heads_first: dout, all that was saved but lse, and the gradients have their heads first.
    """
    if dout is None:
        dout = torch.zeros_like(saved[3])
    through_dispatcher = (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()  # the gradient may be differentiated again
        or not (
            is_plain_call(dout, dlse)
            if saved_is_plain
            else is_plain_call(dout, dlse, *saved, *tensors)
        )
    )
    if not heads_first:
        run: Any = _bwd_op if through_dispatcher else _attention_bwd
        return run(dout, dlse, *saved, bias_grad, *tensors, *values)
    if not through_dispatcher:
        return _heads_first_bwd(dout, dlse, saved, bias_grad, tensors, values)
    *saved, lse = saved
    rows = (x.transpose(1, 2) for x in (dout, *saved))
    *grads, dbias = _bwd_op(next(rows), dlse, *rows, lse, bias_grad, *tensors, *values)
    dq, dk, dv = (x.transpose(1, 2) for x in grads)
    return dq, dk, dv, dbias


_fwd_op = register_for_dispatcher(
    "fastattn::attention_fwd", _attention_fwd, _backward, _setup_context
)


def _eager_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: tuple[Tensor | None, ...],
    values: tuple[Any, ...],
    heads_first: bool,
) -> tuple[Tensor, Tensor]:
    """The forward operator, past the dispatcher."""
    if not heads_first:
        return _attention_fwd(q, k, v, *tensors, *values)
    out, lse = _empty_heads_first(q), _empty_lse(q.shape[:3], q)
    *numbers, backend = values
    if backend == cpu.NAME:
        cpu.attention_fwd(out, lse, q, k, v, *tensors, *numbers, heads_first=True)
    else:
        rows, q, k, v = (x.transpose(1, 2) for x in (out, q, k, v))
        backends.get(backend).attention_fwd(rows, lse, q, k, v, *tensors, *numbers)
    return out, lse


def _heads_first_bwd(
    dout: Tensor,
    dlse: Tensor | None,
    saved: Sequence[Tensor],  # q, k, v, out, lse
    bias_grad: bool,
    tensors: Sequence[Tensor | None],
    values: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The backward operator, past the dispatcher, for tensors with their heads first."""
    q, k, v, out, lse = saved
    dq, dk, dv = _empty_heads_first(q), _empty_heads_first(k), _empty_heads_first(v)
    bias = tensors[_BIAS_INDEX]
    dbias = empty_like(bias) if bias_grad and bias is not None else None
    *numbers, backend = values
    options = (*tensors, *numbers)
    if backend == cpu.NAME:
        cpu.attention_bwd(
            dq, dk, dv, dbias, dout, dlse, q, k, v, out, lse, *options, heads_first=True
        )
    else:
        grads = (x.transpose(1, 2) for x in (dq, dk, dv))
        rows = (x.transpose(1, 2) for x in (dout, q, k, v, out))
        backends.get(backend).attention_bwd(*grads, dbias, next(rows), dlse, *rows, lse, *options)
    return dq, dk, dv, dbias


class _EagerAttention(torch.autograd.Function):
    """The forward operator and its gradient, past the dispatcher.

    What never has a gradient comes in two tuples: autograd looks at each argument that is not. For
    the same reason heads_first is not a matter of transposed arguments: autograd would take 15 us
    for the four views and their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        tensors: tuple[Tensor | None, ...],
        values: tuple[Any, ...],
        heads_first: bool,
    ) -> tuple[Tensor, Tensor]:
        out, lse = _eager_fwd(q, k, v, tensors, values, heads_first)
        ctx.save_for_backward(q, k, v, out, lse, *tensors)
        ctx.values, ctx.heads_first = values, heads_first
        # Hooks may give back other tensors than were saved.
        ctx.hooked = _saving_hooks is None or _saving_hooks(True) is not None
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        bias_grad = ctx.needs_input_grad[3]
        dq, dk, dv, dbias = _gradients(
            dout,
            dlse,
            (q, k, v, out, lse),
            bias_grad,
            tensors,
            ctx.values,
            saved_is_plain=not ctx.hooked,
            heads_first=ctx.heads_first,
        )
        return dq, dk, dv, dbias if bias_grad else None, None, None, None


_apply_eager_attention = past_functorch(_EagerAttention)


_bwd_op = register_for_dispatcher(
    "fastattn::attention_bwd", _attention_bwd_op, no_double_backward("attention")
)
