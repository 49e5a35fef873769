"""``fastattn.explain_model``: which path each layer of a model takes for a batch, and why.

Nothing here restates a rule. One forward pass runs, and is watched in two places that change no
decision in it: every call of the attention operation (:func:`fastattn.ops.attention.watched`), and
every operator that reaches torch's dispatcher. Which module a call belongs to is read off the
frames of the call, because a hook on a module is a reason for it to run unfused. What
:func:`fastattn.patch` says of each layer comes from its report.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastattn import backends
from fastattn.errors import PatchError
from fastattn.ops import attention as op
from fastattn.patching import changes, registry
from fastattn.patching.patch import patched
from fastattn.patching.report import NUMBER, LayerReport

# Operators of torch that compute attention or its middle, and the words for them.
_STOCK = {
    "aten::_scaled_dot_product": "torch's scaled_dot_product_attention",
    "aten::_safe_softmax": "torch's scaled_dot_product_attention, by products and a softmax",
    "aten::_softmax": "the model's own products and softmax",
}
_FUSED = {
    "fastattn::layer_norm_fwd": "bias, dropout, residual and LayerNorm",
    "fastattn::gelu_fwd": "bias and GELU",
    "fastattn::hidden_dropout": "dropout",
}
_LINEARS = "fastattn::linears"


@dataclass(frozen=True)
class LayerPath:
    """What one attention layer, and the layer around it, did in the forward pass."""

    name: str  # path inside the model, as in model.named_modules()
    layer: str  # the layer's stock class
    attention: tuple[str, ...]  # what computed it, one entry for each kind of call
    beside: tuple[str, ...]  # fused operators in the layer around it, each kind once
    reasons: tuple[str, ...]  # why backends were passed over, and what the report of patch says


@dataclass(frozen=True)
class ModelExplanation:
    """The path of each attention layer. Print it."""

    title: str
    whole: tuple[LayerReport, ...]  # what patch says of modules around the attention layers
    notes: tuple[str, ...]
    layers: tuple[LayerPath, ...]

    def __str__(self) -> str:
        """Layers that differ in their number alone share an entry."""
        lines = [self.title]
        for (name, *rest), numbers in _together((x.name, x.what, x.reason) for x in self.whole):
            lines.append(f"  {': '.join([_with_numbers(name, numbers), *rest])}")
        lines += [f"  {note}" for note in self.notes]
        entries = ((x.name, x.layer, x.attention, x.beside, x.reasons) for x in self.layers)
        for (name, layer, attention, beside, reasons), numbers in _together(entries):
            lines += ["", f"{_with_numbers(name, numbers)}: {layer}"]
            lines += [f"  attention: {line}" for line in attention]
            if beside:
                lines.append(f"  fused beside it: {'; '.join(beside)}")
            lines += [f"  {line}" for line in reasons]
        return "\n".join(lines)


def _together(entries: Iterable[tuple[Any, ...]]) -> Iterable[tuple[tuple[Any, ...], list[str]]]:
    """Returns entries, of which the first field is a name, and the names that share each."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, *rest in entries:
        groups.setdefault((NUMBER.sub(".*", name), *rest), []).append(name)
    return groups.items()


def _with_numbers(pattern: str, names: list[str]) -> str:
    """Returns the name, or the pattern of several and "0-4, 6", or how many they are."""
    if len(names) == 1:
        return names[0] or "(model)"
    found = [NUMBER.findall(name) for name in names]
    if any(len(numbers) != 1 for numbers in found):
        return f"{pattern} ({len(names)} layers)"
    ends: list[list[int]] = []
    for number in sorted(int(numbers[0][1:]) for numbers in found):
        if ends and ends[-1][1] == number - 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    ranges = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)
    return f"{pattern} ({ranges})"


def explain_model(
    model: nn.Module,
    /,
    *,
    patch: bool = True,
    unpad: bool | None = None,
    fuse: bool | Iterable[str] = True,
    **batch: Any,
) -> ModelExplanation:
    """Says which path each layer of a model takes for a batch, and why, by running it once.

        print(fastattn.explain_model(model, input_ids=ids, attention_mask=mask))

    The pass takes no gradient, compiles nothing and runs in the model's present mode, training or
    not. Afterwards the model is patched or not as before, and torch's generators are where they
    were.

    Args:
        model: any module; for ``patch`` a Transformers model or a module that holds one.
        patch: patch the model for the pass. What is patched already stays as it is. False: explain
            the model as it is.
        unpad, fuse: as in :func:`fastattn.patch`.
        batch: the keyword arguments of the model's forward.

    Returns:
        A :class:`ModelExplanation`; print it.

    Raises:
        TypeError: model is not a module. Whatever the model raises for the batch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"explain_model: model must be a torch.nn.Module; got {type(model).__name__}. "
            "Pass the model itself, not its name."
        )
    reports: tuple[LayerReport, ...] = ()
    notes = []
    with contextlib.ExitStack() as stack:
        if patch:
            try:
                report = stack.enter_context(patched(model, unpad=unpad, fuse=fuse))
                reports = report.layers
            except PatchError as error:
                notes.append(f"not patched: {error}")
        watch = _watch(model, batch)
        layers = dict(registry.attention_layers(model))
        stock = {name: changes.stock_class(module).__name__ for name, module in layers.items()}
        kind = changes.stock_class(model).__name__
    attending = {_layer_of(name, layers) for name, _ in watch.calls} | set(layers)
    whole = [
        layer
        for layer in reports
        if layer.name not in layers and any(_is_above(layer.name, name) for name in attending)
    ]
    paths = [
        LayerPath(name, stock.get(name, "?"), *_path(name, layers, watch, reports))
        for name in sorted(attending, key=_in_order)
    ]
    shapes = ", ".join(f"{k} {tuple(x.shape)}" for k, x in batch.items() if isinstance(x, Tensor))
    mode = "training" if model.training else "evaluation"
    return ModelExplanation(f"{kind}, {mode}; {shapes}", tuple(whole), tuple(notes), tuple(paths))


@dataclass
class _Watch:
    """What was seen: names of modules, and what happened in them."""

    calls: list[tuple[str, tuple[str, tuple[str, ...]]]] = field(default_factory=list)
    stock: list[tuple[str, str]] = field(default_factory=list)
    fused: list[tuple[str, str]] = field(default_factory=list)


def _watch(model: nn.Module, batch: dict[str, Any]) -> _Watch:
    """Runs the model once and returns what was seen."""
    watch = _Watch()
    names = {id(module): name for name, module in model.named_modules()}

    def seen_attention(q: Tensor, k: Tensor, options: op.Options, backend: str) -> None:
        watch.calls.append((_current(names), _call_words(q, k, options, backend)))

    class Operators(TorchDispatchMode):
        """Looks at each operator and runs it."""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = func.name().partition(".")[0]
            for prefix, words in _STOCK.items():
                if name.startswith(prefix) and not name.endswith("backward"):
                    watch.stock.append((_current(names), words))
            if name in _FUSED:
                watch.fused.append((_current(names), _FUSED[name]))
            elif name == _LINEARS:
                joint = f"{len(args[1])} projections in one product"
                one = "float32 products of fastattn"
                watch.fused.append((_current(names), joint if len(args[1]) > 1 else one))
            return func(*args, **(kwargs or {}))

    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[d.index for d in devices]),
        torch.compiler.set_stance("force_eager"),
        op.watched(seen_attention),
        Operators(),
    ):
        model(**batch)
    return watch


def _current(names: dict[int, str]) -> str:
    """Returns the name of the innermost module whose method is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            return names[id(owner)]
        frame = frame.f_back
    return ""


def _call_words(
    q: Tensor, k: Tensor, options: op.Options, backend: str
) -> tuple[str, tuple[str, ...]]:
    """Returns what a call of the operation computed, and why not by another backend."""
    call = backends.describe(q, k, options)
    if options.cu_seqlens_q is None:
        rows = f"batch of {q.shape[0]} x {q.shape[1]} rows"
        if k.shape[1] != q.shape[1]:
            rows += f", {k.shape[1]} keys"
        if options.key_padding_mask is not None:
            rows += ", padding masked"
    else:
        sequences = len(options.cu_seqlens_q) - 1
        rows = f"{q.shape[0]} rows of {sequences} sequences, without padding"
        if q.shape[0] == sequences < k.shape[0]:
            rows = f"the first row of each of {sequences} sequences, {k.shape[0]} keys"
    names = [name for name in call.options if name != "key_padding_mask"]
    dtype = str(call.dtype).removeprefix("torch.")
    parts = [f"fastattn, backend {backend}", rows, dtype, f"head_dim {call.head_dim}", *names]
    reasons = backends.explanation(call, backend).reasons
    return ", ".join(parts), tuple(
        f"not {name}: {reason}" for name, found in reasons.items() for reason in found
    )


def _path(
    name: str,
    layers: dict[str, nn.Module],
    watch: _Watch,
    reports: Iterable[LayerReport],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Returns attention, beside and reasons of a :class:`LayerPath`."""
    calls = [call for where, call in watch.calls if _layer_of(where, layers) == name]
    attention = [words for words, _ in calls]
    if not attention:
        attention = [words for where, words in watch.stock if _layer_of(where, layers) == name]
    reasons = [reason for _, found in calls for reason in found]
    reasons += [f"patch: {x.what}: {x.reason}" for x in reports if x.name == name]
    around = _around(name)
    beside = [words for where, words in watch.fused if around and _around(where) == around]
    return _once(attention) or ("none in this pass",), _once(beside), _once(reasons)


def _once(words: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def _layer_of(where: str, layers: dict[str, nn.Module]) -> str:
    """Returns the attention layer in which, or right around which, a module lies."""
    for name in layers:
        if where == name or _is_above(name, where):
            return name
    inside = [name for name in layers if _is_above(where, name) and _around(name) == _around(where)]
    return inside[0] if len(inside) == 1 else where


def _is_above(name: str, other: str) -> bool:
    return other != name and (not name or other.startswith(f"{name}."))


def _around(name: str) -> str:
    """Returns the path up to the last number in it: the encoder layer that a module is part of."""
    ends = [number.end() for number in NUMBER.finditer(name)]
    return name[: ends[-1]] if ends else ""


def _in_order(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]
