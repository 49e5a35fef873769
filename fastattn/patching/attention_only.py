"""Any Transformers model that calls the attention interface: attention is served, padding stays."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastattn.integrations.transformers import (
    NAME,
    calls_attention_interface,
    layer_calls_attention_interface,
)
from fastattn.patching import families
from fastattn.patching.changes import change_config, has_hook, keep_hook
from fastattn.patching.registry import Target, stock_name
from fastattn.patching.report import LEFT, REPLACED, LayerReport

SERVED = "runs fastattn.attention"
DECODES = "not unpadded: a decoder's masks and caches are laid out for the padded batch"


def patch_body(target: Target) -> list[LayerReport]:
    """Switches the body to ``attn_implementation="fastattn"``, if it can be switched."""
    kind = type(target.body).__name__
    if not calls_attention_interface(type(target.body)):
        return target.report_attention(LEFT, f"{kind} does not call the attention interface")
    reason = _not_served(target)
    if reason is not None:
        return target.report_attention(LEFT, reason)
    attention = switch_attention(target)
    if target.unpad is False:
        why = "unpad=False"
    elif _decodes_what_is_encoded(target.body):
        return [LayerReport(target.name, kind, LEFT, DECODES), *attention]
    elif families.needs_newer(target.body):
        why = f"{kind} needs a newer Transformers for that"
    else:
        why = f"not yet supported for {kind}"
    return [LayerReport(target.name, kind, LEFT, f"encoder not unpadded: {why}"), *attention]


def _decodes_what_is_encoded(body: Any) -> bool:
    """Whether a body is the decoder of an encoder-decoder, be it alone."""
    beside = getattr(body.config, "is_encoder_decoder", False)
    named = type(body).__name__.endswith("Decoder")
    return getattr(body.config, "is_decoder", False) or (beside and named)


def _not_served(target: Target) -> str | None:
    """Returns why the attention function would refuse every call of this body, or None."""
    config = target.body.config
    if any(getattr(layer, "sinks", None) is not None for _, layer in target.attention):
        return "attention sinks are not served"
    value_dim = getattr(config, "v_head_dim", None)
    if not value_dim:
        return None  # and where layers differ, a config gives no one head_dim
    key_dim = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
    if key_dim and value_dim != key_dim:
        return f"values of another head_dim than keys, {value_dim} and {key_dim}, are not served"
    return None


def switch_attention(target: Target) -> list[LayerReport]:
    """Makes the body's attention layers and masks go through fastattn.

    Returns:
        An entry for each attention layer.
    """
    change_config(target.body, target.holders_of_config, NAME)
    if not has_hook(target.body, "weights"):
        handle = target.body.register_forward_pre_hook(_hand_down_the_wish, with_kwargs=True)
        keep_hook(target.body, "weights", handle)
        handle = target.body.register_forward_hook(_check_weights, with_kwargs=True)
        keep_hook(target.body, "returned weights", handle)
    return [_report(name, layer) for name, layer in target.attention]


def _wants_weights(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a body asks for attention weights, itself or by the config."""
    if body.config._attn_implementation != NAME:
        return False
    wanted = kwargs.get("output_attentions")
    return bool(getattr(body.config, "output_attentions", False) if wanted is None else wanted)


def _hand_down_the_wish(
    body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a body: makes of a wish in the config one that attention layers hear of."""
    if _wants_weights(body, args, kwargs):
        return args, {**kwargs, "output_attentions": True}
    return None


def _check_weights(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
    """After a body: raises if weights were asked for and are not there.

    Most models hand the wish down to their attention layers. Some keep it to themselves, and would
    return no weights where there should be some.
    """
    if not _wants_weights(body, args, kwargs):
        return
    values = outputs if isinstance(outputs, tuple) else outputs.to_tuple()
    tuples = [x for x in values if isinstance(x, tuple) and x]
    if any(all(isinstance(y, Tensor) and y.ndim == 4 for y in x) for x in tuples):
        return
    kind = type(body).__name__
    raise ValueError(
        f"fastattn: output_attentions must be False for {kind}, because it does not tell its "
        "attention layers; got True. For these calls use fastattn.unpatch(model) and "
        'model.set_attn_implementation("eager").'
    )


def _report(name: str, layer: Any) -> LayerReport:
    """Says whether an attention layer looks up the implementation that was set."""
    kind = stock_name(layer)
    if not layer_calls_attention_interface(type(layer)):
        return LayerReport(name, kind, LEFT, "computes attention with code of its own")
    implementation = getattr(getattr(layer, "config", None), "_attn_implementation", None)
    if implementation == NAME:
        return LayerReport(name, kind, REPLACED, SERVED)
    return LayerReport(name, kind, LEFT, "does not hold the model's config")
