"""BERT's relatives: patched, they give what the stock models give, and are served as BERT is."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from inspect import signature
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE, FirstRowsLayer, UnpaddedEncoder
from fastattn.patching import families
from fastattn.patching.fusions import FUSIONS
from fastattn.patching.registry import attention_layers

BOTH = dict(attention_probs_dropout_prob=0.1, hidden_dropout_prob=0.1)
# Families whose last layer computes all rows for every head.
ALL_ROWS = ("Albert", "ModernBert", "MPNet", "DebertaV2")
PADDED = ("right", "left", "interior", "none", "absent")
needs_interface = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="these have an attention interface from Transformers 5 on"
)


def body_of(model: nn.Module) -> Any:
    """The model without a head inside a model."""
    return next(x for x in model.modules() if families.of(x) is not None)


def encoder_of(model: nn.Module) -> Any:
    """The encoder inside a model."""
    body = body_of(model)
    return families.of(body).encoder(body)


def widths_of(model: nn.Module, batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of the hidden states that reach each layer in one step."""
    shapes: list[tuple[int, ...]] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: shapes.append(tuple((*args, *kwargs.values())[0].shape[:2])),
            with_kwargs=True,
        )
        for _, layer in attention_layers(body_of(model))
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return shapes


def test_float64_is_equal_to_rounding(
    make_bert, make_batch, run_step, assert_close, all_served, family_head
):
    stock, ours = (make_bert(family_head, torch.float64) for _ in range(2))
    assert all_served(fastattn.patch(ours))
    for padding, hidden in itertools.product(PADDED, (False, True)):
        batch = make_batch(family_head, padding)
        if family_head == "ElectraForPreTraining":
            batch["labels"] = batch["labels"].clamp(min=0)  # it does not know -100
        forward = {"output_hidden_states": True} if hidden else {}
        expected = run_step(stock, batch, **forward)
        assert_close(run_step(ours, batch, **forward), expected)


def test_float32_is_as_accurate_as_stock(
    make_bert, make_batch, run_step, assert_close, family_head
):
    models = make_bert(family_head, torch.float64), make_bert(family_head), make_bert(family_head)
    fastattn.patch(models[2])
    for padding in ("right", "left"):
        truth, stock, ours = (run_step(x, make_batch(family_head, padding)) for x in models)
        assert_close(ours, stock, truth)


def test_padding_is_removed(make_bert, make_batch, family_head):
    model = make_bert(family_head)
    fastattn.patch(model)
    total = int(make_batch(family_head)["attention_mask"].sum())
    asks = family_head.endswith("QuestionAnswering")
    assert set(widths_of(model, make_batch(family_head))) == {(4, 13) if asks else (1, total)}
    assert set(widths_of(model, make_batch(family_head, labels=False))) == {(1, total)}


@pytest.mark.parametrize("fuse", [False, *FUSIONS, ("qkv", "first_rows")], ids=str)
@pytest.mark.parametrize("end", ["ForSequenceClassification", "ForTokenClassification"])
def test_every_choice_gives_the_same_results(
    make_bert, make_batch, run_step, assert_close, family, end, fuse
):
    stock, ours = (make_bert(family + end, torch.float64) for _ in range(2))
    report = fastattn.patch(ours, fuse=fuse)
    names = {fuse} if isinstance(fuse, str) else set(fuse or ())
    reasons = {x.reason for x in report.replaced}
    has_norm, has_gelu = family not in ("Esm", "ModernBert"), family != "ModernBert"
    assert (FUSIONS["layer_norm"] in reasons) == ("layer_norm" in names and has_norm)
    assert (FUSIONS["gelu"] in reasons) == ("gelu" in names and has_gelu)
    first_rows = (
        {"qkv", "first_rows"} <= names
        and HAS_ATTENTION_INTERFACE
        and end == "ForSequenceClassification"
        and family not in ALL_ROWS
    )
    assert (FUSIONS["first_rows"] in reasons) == first_rows
    for padding in ("right", "absent"):
        batch = make_batch(family + end, padding)
        assert_close(run_step(ours, batch), run_step(stock, batch))


@needs_interface
@pytest.mark.parametrize("end", ["ForSequenceClassification", "ForMultipleChoice"])
def test_heads_for_sequences_read_first_rows(make_bert, make_batch, family, end):
    if family in ALL_ROWS or not hasattr(transformers, family + end):
        pytest.skip("its layers compute all rows, or it has no such head")
    model = make_bert(family + end)
    fastattn.patch(model)
    rows = []
    last = encoder_of(model).layer[-1]
    assert isinstance(last, FirstRowsLayer)
    finish = type(last).finish

    def record(self: Any, context: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[1])
        return finish(self, context, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(last), "finish", record)
        model(**make_batch(family + end))
        assert rows == [4]
        model(**make_batch(family + end, "left"))  # begins with padding, which the head reads
        model(**make_batch(family + end), output_hidden_states=True)
    assert 4 not in rows[1:]


def test_a_bare_body_keeps_padding_that_a_head_may_read(make_bert, make_batch, family):
    """A head may be added to a body that is patched already."""
    head = family + "ForSequenceClassification"
    stock, ours = (make_bert(head, torch.float64).eval() for _ in range(2))
    fastattn.patch(ours.base_model)
    batch = make_batch(head, "left")
    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits)
    fastattn.patch(ours)
    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits)
    fastattn.patch(ours.base_model)
    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits)
    fastattn.unpatch(ours)
    assert not isinstance(encoder_of(ours), UnpaddedEncoder)


class MeanHead(nn.Module):
    """Reads every row, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.out(features.mean(dim=1))


@pytest.mark.parametrize("late", [False, True])
def test_a_head_of_ones_own_may_read_padding(make_bert, make_batch, late):
    head = "RobertaForSequenceClassification"
    stock, ours = (make_bert(head, torch.float64).eval() for _ in range(2))
    stock.classifier = MeanHead().double()
    batch = make_batch(head, "none" if late else "right")
    if late:
        fastattn.patch(ours)
    ours.classifier = copy.deepcopy(stock.classifier)
    if not late:
        report = fastattn.patch(ours)
        assert [x.reason for x in report.left] == [
            "not unpadded: MeanHead may read rows of padding"
        ]
    torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits)


@pytest.mark.parametrize("summary_type", ["last", "mean", "cls_index"])
def test_summaries_of_electra_that_read_padding(
    make_bert, make_batch, run_step, assert_close, summary_type
):
    head = "ElectraForMultipleChoice"
    stock, ours = (make_bert(head, torch.float64, summary_type=summary_type) for _ in range(2))
    report = fastattn.patch(ours)
    assert [x.reason for x in report.left] == [
        "not unpadded: ElectraSequenceSummary may read rows of padding"
    ]
    assert_close(run_step(ours, make_batch(head)), run_step(stock, make_batch(head)))


def test_dropout_follows_the_seed(make_bert, make_batch, run_step, family):
    head = family + "ForSequenceClassification"
    model = make_bert(head, **BOTH)
    fastattn.patch(model)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(run_step(model, make_batch(head)).loss)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    stock = make_bert(head, **BOTH).eval()
    torch.testing.assert_close(
        model.eval()(**make_batch(head)).logits, stock(**make_batch(head)).logits
    )


def test_padded_and_packed_drop_the_same_weights(
    make_bert, make_batch, run_step, assert_close, family
):
    head = family + "ForMaskedLM"
    attention = dict(attention_probs_dropout_prob=0.1)
    packed, padded = (make_bert(head, torch.float64, **attention) for _ in range(2))
    fastattn.patch(packed)
    fastattn.patch(padded, unpad=False)
    steps = []
    for model in (packed, padded):
        for name, part in model.named_modules():
            if name.endswith("out_drop"):
                part.p = 0.0  # ModernBERT's dropout of hidden states, by the same setting
        torch.manual_seed(7)
        steps.append(run_step(model, make_batch(head)))
    assert_close(*steps)


@pytest.mark.parametrize("padding", ["right", "left", "interior"])
def test_embeddings_and_positions_of_ones_own(
    make_bert, make_batch, run_step, assert_close, family, padding
):
    head = family + "ForTokenClassification"
    stock, ours = (make_bert(head, torch.float64) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch(head, padding)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = {"position_ids": (mask.cumsum(1) + 1) * mask}
    # Embeddings and their positions are given in a call each, because ESM drops tokens by their id.
    for given in (
        positions,
        {"input_ids": None, "inputs_embeds": stock.get_input_embeddings()(ids).detach()},
    ):
        if "position_ids" not in signature(body_of(stock).forward).parameters:
            given.pop("position_ids", None)
        assert_close(run_step(ours, batch | given), run_step(stock, batch | given))
        # LayoutLM has a pooler under every head.
        kept = (family, padding) in (
            ("LayoutLM", "left"),
            ("ModernBert", "interior"),
            ("MPNet", "interior"),
            ("DebertaV2", "interior"),
        )
        expected = tuple(ids.shape) if kept else (1, int(mask.sum()))
        assert set(widths_of(ours, batch | given)) == {expected}


@pytest.mark.parametrize("end", ["ForSequenceClassification", "ForMaskedLM"])
def test_unpatch_and_pickle(make_bert, make_batch, family, end):
    model = make_bert(family + end).eval()
    classes = [type(x) for x in model.modules()]
    keys = list(model.state_dict())
    fastattn.patch(model)
    assert [type(x) for x in model.modules()] != classes
    assert list(model.state_dict()) == keys
    batch = make_batch(family + end)
    expected = model(**batch).logits
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins.append(torch.load(buffer, weights_only=False))
    for twin in (*twins, model):
        assert torch.equal(twin(**batch).logits, expected)
        fastattn.unpatch(twin)
        assert [type(x) for x in twin.modules()] == classes
        assert not any(x._forward_pre_hooks for x in twin.modules())
        assert twin.config._attn_implementation == "eager"


def test_gradient_checkpointing(make_bert, make_batch, run_step, family):
    head = family + "ForSequenceClassification"
    if not getattr(transformers, head).supports_gradient_checkpointing:
        pytest.skip("its stock model has none")
    steps = []
    for checkpointing in (False, True):
        model = make_bert(head, **BOTH)
        fastattn.patch(model)
        if checkpointing:
            # Its name from Transformers 5.20 on.
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
        torch.manual_seed(1)
        steps.append(run_step(model, make_batch(head)))
    for name, x in steps[0].grads.items():
        assert torch.equal(x, steps[1].grads[name]), name


@needs_interface
def test_another_attention_while_patched(make_bert, make_batch, family):
    """Choosing eager attention gives that, padding included, until it is chosen back."""
    head = family + "ForSequenceClassification"
    model = make_bert(head).eval()
    expected = model(**make_batch(head)).logits
    fastattn.patch(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**make_batch(head)).logits, expected)
    assert len(model(**make_batch(head), output_attentions=True).attentions) == 2


@needs_interface
@pytest.mark.parametrize(
    "family", ["Roberta", "XLMRoberta", "Camembert", "Electra", "Data2VecText"]
)
def test_decoders_get_attention_and_fused_layers(make_bert, make_mask, family):
    stock, ours = (
        make_bert(family + "ForCausalLM", torch.float64, is_decoder=True).eval() for _ in range(2)
    )
    report = fastattn.patch(ours)
    assert [x.reason for x in report.left] == [
        "not unpadded: a decoder's masks and caches are laid out for the padded batch"
    ]
    ids, mask = torch.randint(5, 120, (4, 13)), make_mask("left")
    rows = mask.bool()
    batch = dict(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(ours(**batch).logits[rows], stock(**batch).logits[rows])
    settings = dict(attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(ours.generate(ids, **settings), stock.generate(ids, **settings))


@needs_interface
@pytest.mark.parametrize("what", ["hook", "wrapped", "replaced"])
def test_other_peoples_modules_in_distilbert_are_called(
    make_bert, make_batch, run_step, assert_close, what
):
    head, calls = "DistilBertForSequenceClassification", []

    def change(layer: nn.Module) -> None:
        if what == "hook":
            layer.register_forward_hook(lambda *_: calls.append(layer))
            return
        stock_forward = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            calls.append(layer)
            return stock_forward(*args, **kwargs)

        if what == "wrapped":
            layer.forward = forward
        else:
            own = type("Own", (type(layer),), {"forward": lambda self, *a, **k: forward(*a, **k)})
            layer.__class__ = own

    models = [make_bert(head, torch.float64) for _ in range(2)]
    fastattn.patch(models[1])
    for model in models:
        block = model.distilbert.transformer.layer[0]
        for part in (block.attention, block.ffn, block.ffn.lin1, block.ffn.lin2, block.ffn.dropout):
            change(part)
        change(block.output_layer_norm)
        change(block.attention.out_lin)
    expected = run_step(models[0], make_batch(head))
    assert len(calls) == 7
    assert_close(run_step(models[1], make_batch(head)), expected)
    assert len(calls) == 14


@pytest.mark.parametrize("end", ["ForSequenceClassification", "ForMaskedLM"])
def test_bf16_autocast(make_bert, make_batch, run_step, family, end):
    stock, ours = make_bert(family + end), make_bert(family + end)
    fastattn.patch(ours)
    batch = make_batch(family + end)
    truth = run_step(stock, batch)
    with torch.autocast("cpu", torch.bfloat16):
        steps = run_step(stock, batch), run_step(ours, batch)
    # Rounding to 8 bits at every step: compare as a whole, not number by number.
    stock_error, error = (
        sum(float((x.grads[name] - g).square().sum()) for name, g in truth.grads.items())
        for x in steps
    )
    assert error <= 2 * stock_error


@pytest.mark.filterwarnings("ignore")  # torch.compile's own, about graph breaks and deprecations
@pytest.mark.parametrize("name", ["Roberta", "DistilBert"])
def test_torch_compile(make_bert, make_batch, name):
    if not HAS_ATTENTION_INTERFACE:
        pytest.skip("as BERT's test in Transformers 4.x")
    head = name + "ForSequenceClassification"
    stock, ours = (make_bert(head, num_hidden_layers=1) for _ in range(2))
    fastattn.patch(ours)
    compiled = torch.compile(ours, backend="eager")
    for padding in ("right", "none"):
        batch = make_batch(head, padding)
        torch.testing.assert_close(compiled(**batch).loss, stock(**batch).loss)
    compiled(**batch).loss.backward()
