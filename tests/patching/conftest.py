"""Small BERT-like models with random weights, padded batches for them, and what a step gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor, nn

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

SEQLEN = 13
# Head -> the labels it computes a loss from.
HEADS = {
    "BertModel": (),
    "BertForSequenceClassification": ("labels",),
    "BertForTokenClassification": ("labels",),
    "BertForQuestionAnswering": ("start_positions", "end_positions"),
    "BertForMultipleChoice": ("labels",),
    "BertForMaskedLM": ("labels",),
    "BertForNextSentencePrediction": ("labels",),
    "BertForPreTraining": ("labels", "next_sentence_label"),
}
# The beginning of the names of a family's classes -> the id of its padding token.
FAMILIES = {
    "Bert": 0,
    "Roberta": 1,
    "XLMRoberta": 1,
    "Camembert": 1,
    "Electra": 0,
    "Data2VecText": 1,
    **(
        {
            "DistilBert": 0,
            "Albert": 0,
            "LayoutLM": 0,
            "Esm": 1,
            "ModernBert": 0,
            "MPNet": 1,
            "DebertaV2": 0,
        }
        if HAS_ATTENTION_INTERFACE
        else {}
    ),
}
_ENDS = {
    "Model": (),
    "ForSequenceClassification": ("labels",),
    "ForTokenClassification": ("labels",),
    "ForQuestionAnswering": ("start_positions", "end_positions"),
    "ForMultipleChoice": ("labels",),
    "ForMaskedLM": ("labels",),
    "ForCausalLM": ("labels",),
}
# The heads of all families but BERT, and the one of BERT that scores a row by the next label.
FAMILY_HEADS = {
    **{
        family + end: labels
        for family in list(FAMILIES)[1:]
        for end, labels in _ENDS.items()
        if hasattr(transformers, family + end)
    },
    "BertLMHeadModel": ("labels",),
    "ElectraForPreTraining": ("labels",),
    **(
        {"AlbertForPreTraining": ("labels", "sentence_order_label")}
        if HAS_ATTENTION_INTERFACE
        else {}
    ),
}
_DISTILBERT_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_act": "activation",
}
_OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "DistilBert": {"qa_dropout": 0.0, "seq_classif_dropout": 0.0},
    # Both kinds of layers, the one with a window that is shorter than the sequences.
    "ModernBert": {
        "local_attention": 6,
        "layer_types": ["full_attention", "sliding_attention"],
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    # An embedding of another size than the hidden states.
    "Electra": {"embedding_size": 32, "summary_last_dropout": 0.0},
    # The published models' activation is another one, which is not fused.
    "Albert": {"embedding_size": 32, "classifier_dropout_prob": 0.0, "hidden_act": "gelu"},
    # What the published models have, here and below.
    "DebertaV2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "cls_dropout": 0.0,
    },
    "MPNet": {"pad_token_id": 1},
    "Esm": {
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "mask_token_id": 3,
        "pad_token_id": 1,
    },
}
# What configs call the settings of BERT's.
_NAMES = {
    "DistilBert": _DISTILBERT_NAMES,
    "ModernBert": {
        "hidden_dropout_prob": "mlp_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "hidden_act": "hidden_activation",
    },
}
PADDINGS = ("right", "left", "interior", "none", "absent")


class Step(NamedTuple):
    """What one forward and backward pass gives."""

    loss: Tensor
    outputs: dict[str, Tensor]  # rows of padding are zero
    grads: dict[str, Tensor]


def _family(head: str) -> str:
    """Returns the family of a class, by name."""
    return max((x for x in FAMILIES if head.startswith(x)), key=len)


def _make_bert(head: str, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """Makes a model of 2 layers; the same weights for the same arguments."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=120,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    settings |= config
    family = _family(head)
    names = _NAMES.get(family, {})
    settings = {names.get(name, name): x for name, x in settings.items()}
    settings = {**_OWN_SETTINGS.get(family, {}), **settings}
    model_config = getattr(transformers, f"{family}Config")(**settings)
    # Some compute their eager softmax in float32, whatever the model's dtype.
    in_float64 = dtype == torch.float64 and family in ("LayoutLM", "Esm", "ModernBert")
    model_config._attn_implementation = "sdpa" if in_float64 else "eager"
    model = getattr(transformers, head)(model_config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Trained models have biases, and attention that prefers some keys.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).train()


def _make_mask(padding: str, batch_size: int = 4, seqlen: int = SEQLEN) -> Tensor | None:
    """Makes a (batch, seqlen) mask of 0 and 1; None if padding is "absent"."""
    if padding == "absent":
        return None
    mask = torch.ones(batch_size, seqlen, dtype=torch.long)
    if padding == "interior":
        mask[0, 3:6] = 0
        mask[1, [2, 5, 6, 11, 12]] = 0
    elif padding != "none":
        for row, length in zip(mask, (seqlen, 5, 9, 1), strict=False):
            row[length:] = 0
    return mask.flip(1) if padding == "left" else mask


def _make_batch(head: str, padding: str = "right", labels: bool = True) -> dict[str, Any]:
    """Makes the inputs of a head. Labels of padding rows are -100, as collators make them."""
    family = _family(head)
    generator = torch.Generator().manual_seed(3)
    mask = _make_mask(padding)
    input_ids = torch.randint(1, 120, (4, SEQLEN), generator=generator)
    token_types = torch.randint(0, 2, (4, SEQLEN), generator=generator)
    rows = torch.randint(0, 2, (4, SEQLEN), generator=generator)
    if mask is not None:
        rows = rows.masked_fill(mask == 0, -100)
    if mask is not None and FAMILIES[family]:
        # These count positions from the tokens that are not padding.
        input_ids = input_ids.masked_fill(mask == 0, FAMILIES[family])
    batch: dict[str, Any] = dict(input_ids=input_ids, attention_mask=mask)
    if family not in ("DistilBert", "Esm", "ModernBert", "MPNet"):
        batch["token_type_ids"] = token_types
    if family == "LayoutLM":
        corner = torch.randint(0, 900, (4, SEQLEN, 2), generator=generator)
        batch["bbox"] = torch.cat([corner, corner + 9], dim=-1)
    classes = torch.tensor([0, 1, 1, 0])
    made = {
        "labels": rows if head.endswith(_ROW_HEADS) else classes,
        "next_sentence_label": classes,
        "sentence_order_label": classes,
        "start_positions": torch.tensor([1, 2, 3, 0]),
        "end_positions": torch.tensor([2, 3, 4, 0]),
    }
    if labels:
        batch |= {name: made[name] for name in (HEADS | FAMILY_HEADS)[head]}
    if head.endswith("ForMultipleChoice"):
        batch = {
            name: x.view(2, 2, SEQLEN) if x is not None and x.ndim == 2 else x
            for name, x in batch.items()
        }
        batch |= {"labels": torch.tensor([0, 1])} if labels else {}
    return batch


_ROW_HEADS = (
    "ForTokenClassification",
    "ForMaskedLM",
    "ForPreTraining",
    "ForCausalLM",
    "LMHeadModel",
)


def _run_step(model: nn.Module, batch: dict[str, Any], **forward: Any) -> Step:
    """Runs the model forward and backward, with the model's own loss if it has one."""
    model.zero_grad()
    results = model(**batch, **forward)
    mask = batch["attention_mask"]
    if mask is not None and mask.ndim == 3:
        mask = mask.flatten(0, 1)  # the choices of a multiple-choice batch
    outputs: dict[str, Tensor] = {}
    for name, value in results.items():
        values = value if isinstance(value, tuple) else (value,)
        for index, x in enumerate(values):
            if mask is not None and x.shape[:2] == mask.shape:
                x = x * (mask != 0).view(*mask.shape, *[1] * (x.ndim - 2))
            outputs[f"{name}.{index}"] = x
    loss = results.get("loss")
    if loss is None:
        # Weights of all signs and sizes: every row, and every column, counts.
        loss = sum(
            (x * torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x)).sum()
            for name, x in outputs.items()
            if not name.startswith("hidden_states")
        )
    loss.backward()
    grads = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    return Step(loss.detach(), {name: x.detach() for name, x in outputs.items()}, grads)


def _assert_close(ours: Step, stock: Step, truth: Step | None = None) -> None:
    """Compares two steps: to float64 rounding, or with the errors against a truth.

    With a truth, ours may be off by 2 (gradients: 3) times what stock is, plus a floor of a few
    roundings. Both must have gradients for the same parameters.
    """
    assert ours.grads.keys() == stock.grads.keys()
    assert ours.outputs.keys() == stock.outputs.keys()
    largest_grad = max(float(x.abs().max()) for x in stock.grads.values())
    for kind, allowed_ratio in (("outputs", 2.0), ("grads", 3.0)):
        for name, x in getattr(ours, kind).items():
            expected = getattr(truth or stock, kind)[name].double()
            scale = max(float(expected.abs().max()), largest_grad if kind == "grads" else 0.0)
            floor = 32 * torch.finfo(x.dtype).eps * scale
            error = float((x.double() - expected).abs().max())
            stock_error = float((getattr(stock, kind)[name].double() - expected).abs().max())
            allowed = allowed_ratio * stock_error + floor
            assert error <= allowed, f"{kind} {name}: {error:.3g}, allowed {allowed:.3g}"


@pytest.fixture
def make_bert() -> Callable[..., Any]:
    """make_bert(head, dtype, **config) -> model in training mode, on eager attention."""
    return _make_bert


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Any]]:
    """make_batch(head, padding, labels) -> keyword arguments of the model."""
    return _make_batch


@pytest.fixture
def make_mask() -> Callable[..., Tensor | None]:
    """make_mask(padding, batch_size, seqlen) -> (batch, seqlen) of 0 and 1."""
    return _make_mask


@pytest.fixture
def run_step() -> Callable[..., Step]:
    """run_step(model, batch, **forward) -> Step."""
    return _run_step


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """assert_close(ours, stock, truth) -> None."""
    return _assert_close


def _all_served(report: fastattn.PatchReport) -> bool:
    return all(x.reason.endswith("needs Transformers 5") for x in report.left)


@pytest.fixture
def all_served() -> Callable[[fastattn.PatchReport], bool]:
    """all_served(report) -> whether all is replaced that can be in this version of Transformers."""
    return _all_served


@pytest.fixture(params=list(HEADS))
def head(request: pytest.FixtureRequest) -> str:
    """Name of each BERT class."""
    return request.param


@pytest.fixture(params=list(FAMILY_HEADS))
def family_head(request: pytest.FixtureRequest) -> str:
    """Name of each class of the other families."""
    return request.param


@pytest.fixture(params=list(FAMILIES)[1:])
def family(request: pytest.FixtureRequest) -> str:
    """The beginning of the class names of each family but BERT."""
    return request.param


@pytest.fixture(params=list(FAMILIES))
def any_family(request: pytest.FixtureRequest) -> str:
    """The beginning of the class names of each family."""
    return request.param


@pytest.fixture(params=PADDINGS)
def padding(request: pytest.FixtureRequest) -> str:
    """Each way a batch can be padded."""
    return request.param
