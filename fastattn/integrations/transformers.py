"""``attn_implementation="fastattn"`` for Hugging Face Transformers.

    import fastattn
    from transformers import AutoModel

    model = AutoModel.from_pretrained("bert-base-uncased", attn_implementation="fastattn")

Importing this module registers two functions with Transformers under the name "fastattn": the
attention, and the maker of its masks. ``import fastattn`` sees to that once Transformers' models
are loaded, before or after it (:mod:`fastattn.integrations.autoregister`), so no further line is
needed; ``import fastattn.integrations.transformers`` does it by hand.

Nothing a model asks for is dropped. A mask that names padding keys becomes ``key_padding_mask``;
any other becomes ``bias``, exactly. Dropout, scaling, softcap, sliding windows, grouped heads and
position biases are passed on, and attention weights are returned to who asks for them. What cannot
be served, such as a head mask or attention sinks, is an error that says so.

BERT in Transformers 4.x has no attention interface: use :func:`fastattn.patch` there.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

import torch
import transformers
from torch import Tensor

from fastattn.compiling import constant_for_the_compiler
from fastattn.errors import BackendError
from fastattn.integrations.attention_weights import (
    attention_and_weights,
    attention_and_weights_of_packed,
)
from fastattn.ops.attention import attention
from fastattn.ops.checks import as_int, is_known
from fastattn.ops.padding import PackedLayout

NAME = "fastattn"
MINIMUM_VERSION = (4, 57)

# Keywords that models hand down to attention functions and that do not change what these compute.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "deterministic",
        "encoder_hidden_states",
        "ignore_index",  # of the loss, which heads hand to the model too
        "labels",  # which generate() hands to the encoder of a translation
        "length",  # what tokenizers return beside ids and mask, as the next ones
        "logits_to_keep",
        "num_items_in_batch",
        "offset_mapping",
        "output_hidden_states",
        "output_router_logits",
        "overflow_to_sample_mapping",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "seq_idx",
        "shift_labels",  # of the loss
        "special_tokens_mask",
        "target_dtype",
        "token_type_ids",
        "use_cache",
    }
)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | PackedLayout | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention function on :func:`fastattn.attention`.

    Args:
        module: the model's attention layer; only its ``is_causal`` is read.
        query: (batch, num_heads, seqlen_q, head_dim).
        key: (batch, num_heads_kv, seqlen_k, head_dim), not repeated for grouped heads.
        value: the shape of key.
        attention_mask, **options: as in :func:`attention_of_rows`.

    Returns:
        (batch, seqlen_q, num_heads, head_dim) and the weights, (batch, num_heads, seqlen_q,
        seqlen_k), or None if they are not wanted.

    Raises:
        ValueError, BackendError: as :func:`attention_of_rows` does.
    """
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return attention_of_batch(module, q, k, v, attention_mask, **options)


def attention_of_batch(
    module: torch.nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | PackedLayout | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`attention_of_rows` where q, k and v have a batch, of one with a PackedLayout."""
    if not isinstance(attention_mask, PackedLayout):
        return attention_of_rows(module, q, k, v, attention_mask, **options)
    out, weights = attention_of_rows(module, q[0], k[0], v[0], attention_mask, **options)
    return out[None], weights


def attention_of_rows(
    module: torch.nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | PackedLayout | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`attention_forward` for layers of our own, which have no use for transposed views.

    Args:
        module: the model's attention layer; only its ``is_causal`` is read.
        q: (batch, seqlen_q, num_heads, head_dim), or (total, num_heads, head_dim) for a
            PackedLayout.
        k: (batch, seqlen_k, num_heads_kv, head_dim), or (total, num_heads_kv, head_dim).
        v: the shape of k.
        attention_mask: None; a 4-D mask that broadcasts to (batch, num_heads, seqlen_q, seqlen_k),
            bool (True = attend) or added to the scores, which holds everything there is to mask;
            (batch, seqlen_k), not zero = token, where causality comes from ``is_causal``; or the
            PackedLayout of a batch without its padding.
        dropout: probability of dropping an attention weight; models pass 0 in evaluation.
        is_causal: whether a query sees no later keys, if the mask does not say. Default: the
            module's.
        sliding_window: keys a query sees, itself included, if the mask does not say.
        position_bias: added to the scores, broadcastable like a 4-D mask; gets a gradient.
        cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: sequences laid one after the other
            in a batch of one, as padding-free collators make them.
        output_attentions: whether the weights are wanted, as
            :mod:`fastattn.integrations.attention_weights` computes them.

    Returns:
        The shape of q, and the weights, (batch, num_heads, seqlen_q, seqlen_k), or None if they are
        not wanted.

    Raises:
        ValueError: something is asked for that this function cannot serve.
        BackendError: the model is being exported to ONNX, or traced.
    """
    _refuse_foreign_graphs()
    _refuse_what_is_not_served(kwargs)
    options: dict[str, Any] = {
        "dropout_p": dropout,
        "softmax_scale": scaling,
        "softcap": softcap or 0.0,
    }
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)

    if isinstance(attention_mask, PackedLayout):
        if position_bias is not None:
            options["bias"] = position_bias  # by sequence
        window = None if sliding_window is None else sliding_window - 1
        options |= {"causal": is_causal} if window is None else {"window": (window, window)}
        return _attend_packed(q, k, v, attention_mask, bool(output_attentions), options)
    if cu_seq_lens_q is not None and (attention_mask is None or attention_mask.ndim != 4):
        _refuse_with_packed(attention_mask, position_bias, q)
        refuse_attention_weights_of_packed(output_attentions)
        options |= {
            "cu_seqlens_q": _int32(cu_seq_lens_q),
            "cu_seqlens_k": _int32(cu_seq_lens_k),
            "max_seqlen_q": as_int(max_length_q),
            "max_seqlen_k": as_int(max_length_k),
        }
        given = (options["max_seqlen_k"], options["max_seqlen_q"], k.shape[1])
        longest = next(x for x in given if x is not None)
        options |= _window(sliding_window, is_causal, longest, longest)
        return attention(q[0], k[0], v[0], **options)[None], None

    num_keys = k.shape[1]
    if attention_mask is None or attention_mask.ndim == 2:
        # Causality is in the mask unless there is none, and one query, the newest, sees every key.
        is_causal = is_causal and q.shape[1] > 1
        if is_causal and attention_mask is None and k.shape[1] > q.shape[1]:
            # No mask means that the queries are the first positions: this is the filling of an
            # empty cache of fixed size, whose keys past the last query do not exist yet.
            k, v = k[:, : q.shape[1]], v[:, : q.shape[1]]
            if position_bias is not None:
                position_bias = position_bias[..., : q.shape[1]]
        options |= _window(sliding_window, is_causal, q.shape[1], k.shape[1])
    key_padding_mask, bias = _split_mask(attention_mask, position_bias, q, k)
    options |= {"key_padding_mask": key_padding_mask, "bias": bias}
    if output_attentions:
        out, weights = attention_and_weights(q, k, v, **options)
        unseen = num_keys - k.shape[1]  # a pad of nothing would be a copy, which out is not made of
        return out, torch.nn.functional.pad(weights, (0, unseen)) if unseen else weights
    return attention(q, k, v, **options), None


def _attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    output_attentions: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """:func:`attention_of_rows` of a patched encoder, whose batch has no padding.

    A window looks to both sides of the query. As in Transformers' flash attention, the layer's
    number counts the query itself.
    """
    if output_attentions:
        return attention_and_weights_of_packed(q, k, v, layout, **options)
    options |= {"cu_seqlens_q": layout.cu_seqlens, "max_seqlen_q": layout.max_seqlen}
    options["max_seqlen_k"] = layout.max_seqlen
    return attention(q, k, v, **options), None


def attention_mask(
    batch_size: int,
    *,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """Transformers' mask function: the mask :func:`attention_forward` gets.

    Args:
        batch_size: number of sequences.
        kv_length: number of keys, from ``kv_offset`` on.
        mask_function: which keys a query may see, padding apart.
        attention_mask: (batch, number of positions so far) bool, True = token; or None.
        allow_is_bidirectional_skip: whether the mask may be left out or kept small.

    Returns:
        For attention in both directions (batch, 1, 1, kv_length), bool, or None if there is no
        padding. Every other pattern is a full bool mask, or None if it is plainly causal, by the
        rules of Transformers' own mask for torch's attention. A model of unknown class gets the
        full mask of Transformers' eager attention, which every attention code understands.

    Raises:
        ValueError: the model computes attention with code of its own, which would not call
            :func:`attention_forward`.
    """
    kwargs |= {
        "batch_size": batch_size,
        "kv_length": kv_length,
        "kv_offset": kv_offset,
        "attention_mask": attention_mask,
    }
    if mask_function is not None:
        kwargs["mask_function"] = mask_function
    if not _is_known_to_call(type(kwargs.get("config"))):
        return _masking.eager_mask(**kwargs)
    bidirectional = mask_function is not None and mask_function is _BIDIRECTIONAL
    names_padding = attention_mask is None or attention_mask.ndim == 2
    if bidirectional and names_padding and allow_is_bidirectional_skip:
        return _key_padding(attention_mask, kv_length, kv_offset)
    return _masking.sdpa_mask(**kwargs)


def calls_attention_interface(model_class: type) -> bool:
    """Whether a Transformers model class leaves its attention to the registered functions.

    Setting ``attn_implementation`` on one that does not would change its masks and nothing else.
    """
    declared = ("_supports_attention_backend", "_supports_sdpa")
    if not any(getattr(model_class, flag, False) for flag in declared):
        return False
    # A model's file imports this name if and only if it looks attention functions up in it.
    files = {base.__module__ for base in model_class.__mro__} - {"transformers.modeling_utils"}
    return any(hasattr(sys.modules.get(file), "ALL_ATTENTION_FUNCTIONS") for file in files)


def layer_calls_attention_interface(layer_class: type) -> bool:
    """Whether an attention layer itself looks up the registered functions.

    A model that calls the interface may have other layers as well that compute attention alone.
    """
    methods = (
        inspect.unwrap(value)
        for base in layer_class.__mro__
        for value in vars(base).values()
        if inspect.isfunction(value)
    )
    return any("ALL_ATTENTION_FUNCTIONS" in method.__code__.co_names for method in methods)


def register() -> None:
    """Registers both functions with Transformers; again changes nothing."""
    transformers.AttentionInterface.register(NAME, attention_forward)
    _masking.AttentionMaskInterface.register(NAME, attention_mask)


@constant_for_the_compiler
def _is_known_to_call(config_class: type) -> bool:
    """Whether models with this config are known to call :func:`attention_forward`.

    Raises:
        ValueError: they are known not to.
    """
    classes = _model_classes(config_class)
    calling = [calls_attention_interface(cls) for cls in classes]
    if classes and not any(calling):
        raise ValueError(
            f"fastattn: {classes[0].__name__} must call Transformers' attention interface to run "
            "on fastattn; got a model that computes attention with code of its own. Load it with "
            'attn_implementation="eager".'
        )
    return bool(classes) and all(calling)


@functools.cache
def _model_classes(config_class: type) -> tuple[type, ...]:
    """Returns the model classes that Transformers knows for a config class."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    found = MODEL_MAPPING.get(config_class, ())
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def _require_version() -> None:
    """Raises ImportError, with both numbers, if Transformers is too old."""
    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if found < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise ImportError(
            f"fastattn: transformers must be {needed} or newer; got {transformers.__version__}. "
            f'Install it with pip install "transformers>={needed}".'
        )


def refuse_attention_weights_of_packed(wanted: Any) -> None:
    """Raises ValueError if the weights are wanted of a batch that was never padded."""
    if wanted:
        raise ValueError(
            "fastattn: output_attentions must be False for sequences given by cu_seq_lens_q, "
            "because there is no padded batch to lay the weights out in; got True. Pass a padded "
            "batch with its attention_mask."
        )


def _refuse_foreign_graphs() -> None:
    """Raises BackendError while a graph is made that cannot hold our operators."""
    if _makes_foreign_graph():
        raise BackendError(
            "fastattn: the model must be stock to be exported to ONNX or traced by torch.jit, "
            "which know none of fastattn's operators; got one that runs on fastattn. Use "
            'fastattn.unpatch(model) before, or model.set_attn_implementation("sdpa").'
        )


# Within torch.export, is_in_onnx_export() itself is False wherever it is.
@constant_for_the_compiler
def _makes_foreign_graph() -> bool:
    # A trace would also take the padding of its example for that of every batch.
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return tracing or torch.onnx.is_in_onnx_export()


def _refuse_what_is_not_served(kwargs: dict[str, Any]) -> None:
    """Raises if a keyword with a value could change the result and is not known here."""
    for name, value in kwargs.items():
        if value is None or value is False or name in _WITHOUT_EFFECT:
            continue
        raise ValueError(
            f"fastattn: {name} must be None, because this attention does not know it; got a "
            f"{type(value).__name__}. Leave it out, or use "
            'model.set_attn_implementation("eager").'
        )


def _refuse_with_packed(mask: Tensor | None, position_bias: Tensor | None, q: Tensor) -> None:
    """Raises if something comes with packed sequences that has no meaning there."""
    if mask is not None or position_bias is not None or q.shape[0] != 1:
        raise ValueError(
            "fastattn: cu_seq_lens_q must come with a batch of one and without a mask or position "
            f"bias; got a batch of {q.shape[0]}, mask: {mask is not None}, position bias: "
            f"{position_bias is not None}. Drop attention_mask from the packed batch."
        )


def _window(
    sliding_window: int | None, is_causal: bool, seqlen_q: int, seqlen_k: int
) -> dict[str, Any]:
    """Returns the options for a window that no mask has applied yet."""
    if sliding_window is None or sliding_window >= seqlen_k:
        return {"causal": is_causal}
    if not is_causal and seqlen_q > 1:
        raise ValueError(
            "fastattn: sliding_window must come with a mask or with causal attention; got "
            f"{sliding_window} for {seqlen_k} keys without either. Which side the window lies on "
            'is not defined; use model.set_attn_implementation("eager").'
        )
    return {"causal": is_causal, "window": (sliding_window - 1, -1)}


def _split_mask(
    mask: Tensor | None, position_bias: Tensor | None, q: Tensor, k: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the mask as (key_padding_mask, bias)."""
    batch_size, seqlen_k = k.shape[:2]
    if mask is None:
        return None, position_bias
    if mask.ndim == 2:
        return (mask != 0)[:, -seqlen_k:], position_bias
    if mask.ndim != 4:
        raise ValueError(
            "fastattn: attention_mask must be (batch, seqlen_k) or broadcast to (batch, num_heads, "
            f"seqlen_q, seqlen_k); got shape {tuple(mask.shape)}. Add the missing dimensions."
        )
    mask = mask[..., :seqlen_k]
    if mask.is_floating_point():
        return None, mask if position_bias is None else mask + position_bias
    if mask.dtype != torch.bool:
        raise ValueError(
            "fastattn: a 4-D attention_mask must be bool, True = attend, or floating-point, added "
            f"to the scores; got {mask.dtype}. Convert it with mask.bool()."
        )
    # A dimension of size 1, or expanded from one, holds one value for all heads or queries.
    same_for_all = all(mask.shape[dim] == 1 or mask.stride(dim) == 0 for dim in (1, 2))
    if same_for_all:
        return mask[:, 0, 0].expand(batch_size, seqlen_k), position_bias
    zero = torch.zeros((), dtype=torch.float32, device=mask.device)
    blocked = torch.where(mask, zero if position_bias is None else position_bias, float("-inf"))
    return None, blocked


def _key_padding(mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """(batch, positions so far) -> (batch, 1, 1, kv_length), or None if every key is a token."""
    if mask is None:
        return None
    missing = kv_offset + kv_length - mask.shape[1]
    if missing > 0:
        mask = torch.nn.functional.pad(mask, (0, missing))
    mask = mask[:, kv_offset : kv_offset + kv_length]
    # Reading the mask would break a compiled graph, and a mask of ones changes nothing but time.
    if is_known(mask) and bool(mask.all()):
        return None
    return mask[:, None, None, :]


def _int32(cu_seqlens: Tensor | None) -> Tensor | None:
    """Collators make int64; the kernels take int32."""
    return None if cu_seqlens is None else cu_seqlens.to(torch.int32)


_require_version()
from transformers import masking_utils as _masking  # noqa: E402  (absent from older versions)

# Transformers 4.x has no such function: its encoders do not make masks through this interface.
_BIDIRECTIONAL = getattr(_masking, "bidirectional_mask_function", None)
register()
