"""``fastattn.patch``, ``unpatch`` and ``patched``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from fastattn.errors import PatchError
from fastattn.patching import changes, registry
from fastattn.patching.fusions import chosen
from fastattn.patching.report import LEFT, LayerReport, PatchReport


def patch(
    model: nn.Module, *, unpad: bool | None = None, fuse: bool | Iterable[str] = True
) -> PatchReport:
    """Makes a Transformers model run on fastattn, in place, with the same results.

    BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT, data2vec-text, ALBERT, ModernBERT, ESM,
    LayoutLM, MPNet and DeBERTa-v2, alone, under any of their heads or inside another module, get
    fused attention and layers, and padding is removed once around the whole encoder. So do the
    encoders of BART, Marian and T5, whose decoders get the attention, as do other models that call
    Transformers' attention interface. Only this model object changes: no class, no function and no
    other model. Parameters and state_dict keys stay, so optimizers, checkpoints and
    ``save_pretrained`` do too. Patching again changes nothing.

    For the models that are named, what differs from stock: rows of padding in the last hidden
    state, in ``hidden_states`` and in logits per token are those of zero states; forward hooks on
    the layers see (1, total tokens, hidden); attention weights, where asked for, are zero in rows
    of padding that was removed; dropout draws other random bits, by the rule in
    :mod:`fastattn.dropout`. Hidden states of a batch whose padding was removed, and all of
    ModernBERT's, are copies, through which a loss of their own has its gradients; another loss has
    none by them.

    Args:
        model: a Transformers model, or a module that holds one, also one wrapped by PEFT. Patch
            before wrapping a model with FSDP or ``torch.compile``.
        unpad: None removes padding wherever no result depends on padding rows and keeps it in a
            batch where one does: a pooler, or a head for sequences, of a sequence that begins with
            padding, losses over rows of padding (question answering; labels other than -100), and
            padding inside a sequence where distances are counted (ModernBERT, MPNet, DeBERTa-v2,
            T5). True removes it there as well, but for the last. False never does.
        fuse: the parts of a layer beside attention that are fused: True for all of them, False for
            none, or names. "qkv": the query, key and value projections; "layer_norm": bias,
            dropout, residual and LayerNorm; "gelu": bias and GELU; "linear": products on the faster
            of torch's kernel and ours, where no other part has them; "first_rows": under a head for
            sequences, the last layer computes the row that the head reads, and no other. It
            computes all rows when hidden states are asked for, or a hook sees them.

    Returns:
        A report of each layer, replaced or left, and why. ``print(report)`` shows a table.

    Raises:
        TypeError: model is not a module.
        ValueError: fuse holds an unknown name.
        PatchError: nothing can be patched, or the model is patched already with other choices.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"patch: model must be a torch.nn.Module; got {type(model).__name__}. "
            "Pass the model itself, not its name or a pipeline."
        )
    fusions = chosen(fuse)
    before = _changed(model)
    try:
        report = _patch(model, unpad, fusions)
        if not report.replaced:
            reasons = "; ".join(sorted({layer.reason for layer in report.layers}))
            raise PatchError(
                f"patch: {type(model).__name__} must hold a model that fastattn knows, such as a "
                f"BertModel; got {reasons or 'no Transformers model in it'}. Leave it unpatched, "
                "or call fastattn.attention in its attention layer."
            )
    except BaseException:
        _restore(model, before)
        raise
    return report


def _patch(model: nn.Module, unpad: bool | None, fuse: frozenset[str]) -> PatchReport:
    """Patches what can be patched; reports each layer."""
    layers = []
    for target in registry.targets(model, unpad, fuse):
        layers += registry.patcher(target.body)(target)
    seen = {layer.name for layer in layers}
    layers += [
        LayerReport(name, type(layer).__name__, LEFT, "not part of a Transformers model")
        for name, layer in registry.attention_layers(model)
        if name not in seen
    ]
    return PatchReport(tuple(layers))


def unpatch(model: nn.Module) -> None:
    """Takes back every change that :func:`patch` made to a model or to any module in it.

    Classes, functions, hooks and config objects are the very same as before. What was set on a
    patched model's config in the meantime is kept. A model that is not patched stays as it is.

    Raises:
        PatchError: something else has changed the class of a patched module since; nothing is
            undone.
    """
    _restore(model, before=set())


@contextmanager
def patched(
    model: nn.Module, *, unpad: bool | None = None, fuse: bool | Iterable[str] = True
) -> Iterator[PatchReport]:
    """Patches a model for the length of a ``with`` block.

        with fastattn.patched(model) as report:
            ...

    Modules that were patched before stay patched after. Arguments and errors are those of
    :func:`patch`.
    """
    before = _changed(model)
    report = patch(model, unpad=unpad, fuse=fuse)
    try:
        yield report
    finally:
        _restore(model, before)


def _changed(model: nn.Module) -> set[nn.Module]:
    return {module for module in model.modules() if changes.is_changed(module)}


def _restore(model: nn.Module, before: set[nn.Module]) -> None:
    """Restores the modules that were not changed before; all or none."""
    named = [(name, x) for name, x in model.named_modules() if x not in before]
    for name, module in named:
        changes.check_restorable(name, module)
    for _, module in named:
        changes.restore(module)
