"""Which family's code patches a model.

A *body* is a Transformers model without a task head: BertModel, not BertForTokenClassification.
Bodies of the families that :mod:`fastattn.patching.families` describes go to
:mod:`fastattn.patching.bert`, all others to :mod:`fastattn.patching.attention_only`.

Both files have ``patch_body(target: Target) -> list[LayerReport]``, which changes the body, or
leaves it unchanged, and says which and why. It must be safe to call again on a patched body.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastattn.patching.changes import stock_class
from fastattn.patching.report import LayerReport

# The file that patches BERT and its relatives, which fastattn.patching.families lists.
LIKE_BERT = "fastattn.patching.bert"
DEFAULT = "fastattn.patching.attention_only"


@dataclass(frozen=True)
class Target:
    """A body inside the model that is patched."""

    name: str  # path of the body inside the model
    body: Any
    heads: tuple[Any, ...]  # the Transformers models around this body
    attention: tuple[tuple[str, nn.Module], ...]  # its attention layers and their paths
    unpad: bool | None
    fuse: frozenset[str]

    @property
    def holders_of_config(self) -> Iterator[nn.Module]:
        """The modules that may share the body's config."""
        yield from self.heads
        yield from self.body.modules()

    def report_attention(self, what: str, reason: str) -> list[LayerReport]:
        """Returns an entry for each attention layer."""
        return [LayerReport(name, stock_name(x), what, reason) for name, x in self.attention]


def targets(model: nn.Module, unpad: bool | None, fuse: frozenset[str]) -> list[Target]:
    """Returns the bodies inside a model that have attention layers of their own."""
    try:
        from transformers import PreTrainedModel
    except ImportError as error:
        raise ImportError(
            "patch: transformers must be installed, because it makes the models that are patched; "
            f'got {error}. Install it with pip install "fastattn[finetune]".'
        ) from error

    models = [(name, x) for name, x in model.named_modules() if isinstance(x, PreTrainedModel)]
    bodies = [(name, x) for name, x in models if x.base_model is x]
    found: list[Target] = []
    seen: set[nn.Module] = set()
    for name, body in reversed(bodies):  # a body inside another comes after it, so it is first here
        layers = [
            (".".join(part for part in (name, inner) if part), layer)
            for inner, layer in attention_layers(body)
            if layer not in seen
        ]
        seen.update(layer for _, layer in layers)
        if layers:
            heads = tuple(
                x for _, x in models if x is not body and any(y is body for y in x.modules())
            )
            found.append(Target(name, body, heads, tuple(layers), unpad, fuse))
    return found[::-1]


def patcher(body: nn.Module) -> Callable[[Target], list[LayerReport]]:
    """Returns the function that patches a body."""
    families = importlib.import_module("fastattn.patching.families")
    file = DEFAULT if families.of(body) is None else LIKE_BERT
    return importlib.import_module(file).patch_body


def attention_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the modules that compute attention: named so, with none named so inside."""
    named = [(name, layer) for name, layer in module.named_modules() if _is_named_attention(layer)]
    return [
        (name, layer)
        for name, layer in named
        if not any(_is_named_attention(inner) for inner in layer.modules() if inner is not layer)
    ]


def stock_name(layer: nn.Module) -> str:
    """Returns the name of the class a layer had before it was patched."""
    return stock_class(layer).__name__


def _is_named_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__
