"""Any Transformers model that calls the attention interface: attention is served, padding stays."""

from __future__ import annotations

from fastattn.errors import PatchError
from fastattn.integrations.transformers import NAME
from fastattn.patching.changes import change_config
from fastattn.patching.registry import Target
from fastattn.patching.report import LEFT, REPLACED, LayerReport

SERVED = "runs fastattn.attention"


def patch_body(target: Target) -> list[LayerReport]:
    """Switches the body to ``attn_implementation="fastattn"``, if it can be switched."""
    reason = _not_switchable(target)
    if reason:
        return target.report_attention(LEFT, reason)
    switch_attention(target)
    kind = type(target.body).__name__
    why = "unpad=False" if target.unpad is False else f"not yet supported for {kind}"
    return [
        LayerReport(target.name, kind, LEFT, f"encoder not unpadded: {why}"),
        *target.report_attention(REPLACED, SERVED),
    ]


def switch_attention(target: Target) -> None:
    """Makes the body's attention layers and masks go through fastattn.

    Raises:
        PatchError: the config asks for attention weights.
    """
    config = target.body.config
    if getattr(config, "output_attentions", False):
        raise PatchError(
            "patch: config.output_attentions must be False, because attention weights are never "
            f"stored; got True for {type(target.body).__name__}. Set it to False, or leave the "
            "model unpatched."
        )
    change_config(target.body, target.holders_of_config, NAME)


def _not_switchable(target: Target) -> str | None:
    """Returns why the body's attention cannot be switched, or None."""
    kind = type(target.body).__name__
    if not getattr(target.body, "_supports_attention_backend", False):
        return f"{kind} does not call Transformers' attention interface"
    if getattr(target.body.config, "sub_configs", None):
        return f"{kind} has a config made of several; only its parts can be patched"
    return None
