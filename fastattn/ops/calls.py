"""How a call of an operator reaches the function that does its work.

An operator written in Python costs 12 us a call on its way through torch's dispatcher, and 85 us
more with a gradient (AMD EPYC, torch 2.13, 2026-11-24), more than short sequences themselves take.
So a plain eager call, which nobody but autograd could be watching, goes to the same functions by an
``autograd.Function``. Any other call, as in a compiled, exported, traced or profiled model, goes to
the operators.

Under the transforms of ``torch.func``, which ask for more than ``torch.library.register_autograd``
gives, the same functions make an ``autograd.Function`` that ``torch.func.grad`` takes and that
``torch.vmap`` runs as it does the operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import _C, Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function


def is_plain_call(first: Tensor, *others: Tensor | None) -> bool:
    """Whether an eager call may go past the dispatcher: only autograd would see it there.

    It may not while a mode of torch is active (fake tensors, tracing, functorch, profiling,
    selective checkpointing), nor if a tensor is more than memory (a subclass, a negated view).
    """
    if (
        has_torch_function((first, *others))  # an active mode, or a subclass other than Parameter
        or _C._len_torch_dispatch_stack()
        or is_transforming()
        or _C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or _C._autograd._profiler_enabled()
    ):
        return False
    plain_keys = _plain_keys(first.device)
    for x in (first, *others):
        if x is not None and _C._dispatch_keys(x).raw_repr() not in plain_keys:
            return False
    return True


@functools.cache
def _plain_keys(device: torch.device) -> frozenset[int]:
    """Returns the dispatch keys of a tensor that is memory and nothing more."""
    keys = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            keys.add(_C._dispatch_keys(torch.empty(0, device=device)).raw_repr())
    return frozenset(keys)


def is_transforming() -> bool:
    """Whether a call is inside a transform of ``torch.func``."""
    return _C._functorch.peek_interpreter_stack() is not None


def is_mapped(x: Tensor) -> bool:
    """Whether a tensor is one for each element that ``torch.vmap`` maps over."""
    if not is_transforming():
        return False
    while _C._functorch.is_gradtrackingtensor(x):
        x = _C._functorch.get_unwrapped(x)
    mapped: bool = _C._functorch.is_batchedtensor(x)
    return mapped


def register(
    name: str,
    run: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Registers how an operator is computed and differentiated.

    Args:
        name: of an operator that is defined, the first of whose arguments is a tensor.
        run: what it runs.
        backward, setup_context: as for ``torch.library.register_autograd``.

    Returns:
        The function by which to call it, with arguments by position.
    """
    through_dispatcher = register_for_dispatcher(name, run, backward, setup_context)
    return plain_or(through_dispatcher, _function(name, run, backward, setup_context))


def register_for_dispatcher(
    name: str,
    run: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """As :func:`register`, but calls by what is returned are never past the dispatcher."""
    torch.library.impl(name, "default", run)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    namespace, op_name = name.split("::")
    op = getattr(getattr(torch.ops, namespace), op_name)
    transformable = _function(name, lambda *args: op(*args), backward, setup_context)
    transformable.generate_vmap_rule = True

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or not is_transforming():
            return op(*args)
        return transformable.apply(*args)

    return call


def _function(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None,
) -> Any:
    """Returns an ``autograd.Function`` of these methods."""
    methods = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context or _nothing_to_save),
        "backward": staticmethod(backward),
    }
    return type(name, (torch.autograd.Function,), methods)


def plain_or(otherwise: Callable[..., Any], function: Any) -> Callable[..., Any]:
    """Returns a function that serves plain calls by an ``autograd.Function``, any other otherwise.

    Args:
        otherwise: called with the same arguments, the first of which is a tensor.
        function: without a context in its ``forward``, which alone runs where nothing has a
            gradient.
    """
    apply = past_functorch(function)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():  # a compiler traces nothing of the rest
            return otherwise(*args)
        tensors = [x for x in args if isinstance(x, Tensor)]
        if not is_plain_call(*tensors):
            return otherwise(*args)
        return apply(*args) if needs_gradient(*tensors) else function.forward(*args)

    return call


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd has to record what is computed from some tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def past_functorch(function: Any) -> Any:
    """Returns ``function.apply`` of an ``autograd.Function``, for plain calls.

    It is without torch's Python around it, which looks for the wrappers of functorch for 1.6 us: a
    plain call has none.
    """
    return super(torch.autograd.Function, function).apply


def _nothing_to_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def empty_like(x: Tensor) -> Tensor:
    """A contiguous tensor to be filled, in half the time of ``x.new_empty(x.shape)``."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)
