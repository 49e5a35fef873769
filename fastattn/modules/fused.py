"""The parts of an encoder layer that run fused, for every family that builds its layers like BERT.

    dense, dropout, + residual, LayerNorm     one product and one operator
    dense, gelu                               one product and one operator
    query, key, value                         one read of the hidden states, one cast under autocast

A part computes with its own submodules' parameters, so state_dicts, optimizers and whoever looks
for ``nn.Linear`` find what they know. Where a submodule does more than its class says, because it
has hooks, was replaced by an adapter's or a quantised layer, or is wrapped, that submodule is
called as it is; and where there are no kernels for a tensor's device, so is the whole stock part.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

from fastattn.modules.combined import Mixin
from fastattn.ops import gelu, layer_norm
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.hidden_checks import is_fused
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.ops.linear import linear, linears

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# Whose hooks are no one's that looks on.
_KNOWN = ("transformers.", "fastattn.patching.")


def is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether calling a module does what its class says and nothing more."""
    return type(module) is kind and is_called_for_its_class(module)


def is_watched(module: nn.Module) -> bool:
    """Whether there are hooks on a module, or on all modules, other than ours.

    Those by which Transformers records outputs do not count: they stay once they were needed, and
    whether they are in use now is known otherwise.
    """
    if torch.nn.modules.module._has_any_global_hook():
        return True
    for name in _HOOKS:  # a plain loop, because it is asked of 14 modules in each layer
        for hook in getattr(module, name, {}).values():
            if not getattr(hook, "__module__", "").startswith(_KNOWN):
                return True
    return False


def is_called_for_its_class(module: nn.Module) -> bool:
    """Whether a call does what the module's class says: no hook sees it, no wrapper is in place.

    Accelerate, for one, wraps ``forward`` to move weights.
    """
    return not is_watched(module) and "forward" not in module.__dict__


def fuses_norm(norm: Any, x: Tensor) -> bool:
    """Whether a LayerNorm of a sum with x does no more than that, and there are kernels for it."""
    return (
        is_plain(norm, nn.LayerNorm)
        and norm.bias is not None
        and is_fused(layer_norm.OP, x, norm.normalized_shape[-1])
    )


def serves_gelu(dense: Any, x: Tensor) -> bool:
    """Whether there are kernels for the GELU of a linear layer's output, on the device of x."""
    return is_fused(gelu.OP, x, getattr(dense, "out_features", x.shape[-1]))


def applied(dense: Any, x: Tensor) -> Tensor:
    """Returns the output of a linear layer, on the faster of torch's product and ours."""
    if is_plain(dense, nn.Linear):
        return linear(x, dense.weight, dense.bias)
    return dense(x)


def product(dense: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the output of a linear layer without its bias, and the bias.

    Of a layer that does more than that: its output, and None.
    """
    if is_plain(dense, nn.Linear):
        return linear(x, dense.weight), dense.bias
    return dense(x), None


def products(layers: tuple[Any, ...], x: Tensor) -> tuple[Tensor, ...]:
    """Returns the outputs of linear layers on one input."""
    if all(is_plain(layer, nn.Linear) for layer in layers):
        return linears(x, [layer.weight for layer in layers], [layer.bias for layer in layers])
    return tuple(layer(x) for layer in layers)


def computes_gelu(activation: Any) -> bool:
    """Whether an activation is the exact GELU, and not an approximation of it."""
    return type(activation) is GELUActivation and activation.act is F.gelu


def fuses_gelu(activation: Any, dense: Any, x: Tensor) -> bool:
    """Whether an activation of a linear layer's output is the exact GELU, and there are kernels."""
    return (
        computes_gelu(activation) and is_called_for_its_class(activation) and serves_gelu(dense, x)
    )


def drops_plainly(dropout: Any) -> bool:
    """Whether a module drops elements as :func:`dropout_add_layer_norm` does."""
    return is_plain(dropout, nn.Dropout) and dropout.p < 1.0


def add_norm(
    norm: Any, x: Tensor, x_bias: Tensor | None, residual: Tensor, p: float = 0.0
) -> Tensor:
    """LayerNorm of ``dropout(x + x_bias) + residual``, in one operator where there is one."""
    if fuses_norm(norm, x):
        return dropout_add_layer_norm(
            x, residual, norm.weight, norm.bias, norm.eps, p, x_bias=x_bias
        )
    x = x if x_bias is None else x + x_bias
    return norm(F.dropout(x, p) + residual)


class FusedOutput(Mixin):
    """The end of each half of a layer."""

    word: ClassVar = "Fused"
    dense: nn.Module
    dropout: nn.Dropout
    LayerNorm: nn.LayerNorm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """(..., in_features) and the residual (..., hidden) -> (..., hidden)."""
        norm, dropout = self.LayerNorm, self.dropout
        if not (drops_plainly(dropout) and fuses_norm(norm, hidden_states)):
            return super().forward(hidden_states, input_tensor)
        x, x_bias = product(self.dense, hidden_states)
        dropout_p = dropout.p if dropout.training else 0.0
        return dropout_add_layer_norm(
            x, input_tensor, norm.weight, norm.bias, norm.eps, dropout_p, x_bias=x_bias
        )


class FusedIntermediate(Mixin):
    """The middle of a layer's feed-forward part."""

    word: ClassVar = "Fused"
    activation_name: ClassVar = "intermediate_act_fn"
    dense: nn.Module
    intermediate_act_fn: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., hidden) -> (..., intermediate)."""
        if not fuses_gelu(self.intermediate_act_fn, self.dense, hidden_states):
            return super().forward(hidden_states)
        return bias_gelu(*product(self.dense, hidden_states))
