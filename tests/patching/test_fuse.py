"""The fused parts of BERT's layers: alone and together, beside other people's modules, and off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE
from fastattn.patching.fusions import FUSIONS

HEAD = "BertForSequenceClassification"
CHOICES: tuple[Any, ...] = (False, *FUSIONS, ("qkv", "first_rows"))
needs_interface = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="rows are left out from Transformers 5 on"
)


class LargestRows(TorchDispatchMode):
    """Records the rows that go through products with a weight of a given width, in order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left, right = args[-2:]
            if right.shape[1] == self.width:
                self.rows.append(left.shape[0])
        return func(*args, **(kwargs or {}))


def enable_checkpointing(model: Any) -> None:
    """Under the name that it has in this version of Transformers."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)()


def rows_of_feed_forward(model: nn.Module, batch: dict[str, Any], **forward: Any) -> list[int]:
    """The rows that each layer's feed-forward part computes."""
    with LargestRows(width=96) as record, torch.no_grad():
        model(**batch, **forward)
    return record.rows


@pytest.mark.parametrize("fuse", CHOICES, ids=str)
def test_every_choice_gives_the_same_results(
    make_bert, make_batch, run_step, assert_close, head, padding, fuse
):
    stock, ours = make_bert(head, torch.float64), make_bert(head, torch.float64)
    fastattn.patch(ours, fuse=fuse)
    batch = make_batch(head, padding)
    for forward in ({}, {"output_hidden_states": True}):
        assert_close(run_step(ours, batch, **forward), run_step(stock, batch, **forward))


@pytest.mark.parametrize("fuse", CHOICES, ids=str)
def test_the_report_says_what_was_not_chosen(make_bert, fuse):
    names = {fuse} if isinstance(fuse, str) else set(fuse or ())
    report = fastattn.patch(make_bert(HEAD), fuse=fuse)
    kinds = {x.layer for x in report.replaced}
    assert ({"BertOutput", "BertSelfOutput"} <= kinds) == ("layer_norm" in names)
    assert ("BertIntermediate" in kinds) == ("gelu" in names)
    if HAS_ATTENTION_INTERFACE:
        assert ("BertLayer" in kinds) == ({"qkv", "first_rows"} <= names)
    assert "BertSelfAttention" in kinds
    assert not report.ok
    assert fastattn.patch(make_bert(HEAD)).ok


@needs_interface
@pytest.mark.parametrize("padding", ["right", "interior", "none", "absent"])
def test_a_classifier_computes_the_rows_it_reads(make_bert, make_batch, padding):
    model, batch = make_bert(HEAD, torch.float64), make_batch(HEAD, padding)
    fastattn.patch(model)
    mask = batch["attention_mask"]
    total = batch["input_ids"].numel() if mask is None else int(mask.sum())
    assert rows_of_feed_forward(model, batch) == [total, 4]
    enable_checkpointing(model)
    assert rows_of_feed_forward(model, batch) == [total, 4]


@needs_interface
def test_all_rows_are_computed_where_they_are_seen(make_bert, make_batch):
    model, batch = make_bert(HEAD, torch.float64), make_batch(HEAD)
    fastattn.patch(model)
    total = int(batch["attention_mask"].sum())
    whole, part = [total, total], [total, 4]
    assert rows_of_feed_forward(model, batch) == part
    assert rows_of_feed_forward(model, batch, output_hidden_states=True) == whole
    assert rows_of_feed_forward(model, batch) == part
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    assert rows_of_feed_forward(model.bert, inputs) == whole
    model.config.output_hidden_states = model.bert.config.output_hidden_states = True
    assert rows_of_feed_forward(model, batch) == whole
    model.config.output_hidden_states = model.bert.config.output_hidden_states = False
    last = model.bert.encoder.layer[-1]
    for seen in (model.bert, model.bert.encoder, last, last.output.dense, model.bert.pooler):
        handle = seen.register_forward_hook(lambda module, args, output: None)
        assert rows_of_feed_forward(model, batch) == whole
        handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    assert rows_of_feed_forward(model, batch) == whole
    handle.remove()
    batch["attention_mask"][2] = 0  # a sequence of padding alone
    assert rows_of_feed_forward(model, batch)[1] > 4
    fastattn.unpatch(model)
    assert rows_of_feed_forward(model, batch) == [4 * 13] * 2


def test_heads_that_read_every_row_get_every_row(make_bert, make_batch):
    model, batch = make_bert("BertForTokenClassification", torch.float64), make_batch(HEAD)
    fastattn.patch(model)
    del batch["labels"]
    total = int(batch["attention_mask"].sum())
    assert rows_of_feed_forward(model, batch) == [total, total]


@pytest.mark.parametrize("what", ["subclass", "hook", "wrapped"])
def test_other_peoples_modules_are_called(make_bert, make_batch, run_step, assert_close, what):
    """An adapter in a layer's place, a hook on it, or a wrapper around its forward."""
    calls = []

    class Adapter(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(self)
            return super().forward(x) * 1.5

    def change(layer: nn.Linear) -> None:
        if what == "subclass":
            layer.__class__ = Adapter
        elif what == "hook":
            layer.register_forward_hook(lambda module, args, out: calls.append(module) or out * 1.5)
        else:
            stock_forward = layer.forward
            layer.forward = lambda x: calls.append(layer) or stock_forward(x) * 1.5

    models = make_bert(HEAD, torch.float64), make_bert(HEAD, torch.float64)
    fastattn.patch(models[1])
    for model in models:
        layer = model.bert.encoder.layer[0]
        parts = (layer.attention.self.key, layer.attention.output.dense, layer.intermediate.dense)
        for part in (*parts, layer.output.dense):
            change(part)
    expected = run_step(models[0], make_batch(HEAD))
    assert len(calls) == 4
    assert_close(run_step(models[1], make_batch(HEAD)), expected)
    assert len(calls) == 8


def test_other_activations_are_left(make_bert, make_batch, run_step, assert_close):
    models = [make_bert(HEAD, torch.float64, hidden_act="gelu_new") for _ in range(2)]
    report = fastattn.patch(models[1])
    reasons = {x.reason for x in report.left if "Transformers 5" not in x.reason}
    assert reasons == {"not fused: its activation, NewGELUActivation, is not the exact GELU"}
    assert_close(*(run_step(model, make_batch(HEAD)) for model in models))


def test_hidden_dropout_follows_the_seed_and_stops_in_evaluation(make_bert, make_batch):
    model, batch = make_bert(HEAD, hidden_dropout_prob=0.3), make_batch(HEAD)
    fastattn.patch(model)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(**batch).logits

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    model.eval()
    assert torch.equal(logits(1), logits(2))
    assert torch.allclose(logits(1), make_bert(HEAD).eval()(**batch).logits, atol=1e-5)


def test_hidden_dropout_keeps_the_mean(make_bert):
    """A layer's end, without its LayerNorm: the mean over many masks is that of no mask."""
    model = make_bert("BertModel", torch.float64, hidden_dropout_prob=0.3)
    fastattn.patch(model)
    part = model.encoder.layer[0].output
    with torch.no_grad():
        part.dense.weight.normal_()
    x = torch.ones(20_000, 96, dtype=torch.float64)
    residual = 1e6 * torch.linspace(-1, 1, 64, dtype=torch.float64).expand(20_000, 64)
    # Beside so large a residual the LayerNorm is the same linear map for every row.
    with torch.no_grad():
        sums = part(x, residual)
        expected = part.eval()(x[:1], residual[:1])
    deviation = (sums.mean(0) - expected[0]) / (sums.std(0) / 20_000**0.5)
    assert deviation.abs().max() < 5


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_as_accurate_as_stock(make_bert, make_batch, run_step, head, autocast):
    truth = run_step(make_bert(head, torch.float64), make_batch(head))
    steps = []
    for patched in (False, True):
        model = make_bert(head, torch.float32 if autocast else torch.bfloat16)
        if patched:
            fastattn.patch(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            step = run_step(model, make_batch(head))
        steps.append(step)
    for name, grad in steps[1].grads.items():
        assert grad.dtype == steps[0].grads[name].dtype
    # Rounding to 8 bits at every step: compare as a whole, not number by number.
    stock, ours = (
        sum(float((x.grads[name] - g).square().sum()) for name, g in truth.grads.items())
        for x in steps
    )
    assert ours <= 2 * stock


def test_gradient_checkpointing(make_bert, make_batch, run_step, assert_close):
    models = make_bert(HEAD, torch.float64), make_bert(HEAD, torch.float64)
    fastattn.patch(models[1])
    for model in models:
        enable_checkpointing(model)
    assert_close(*(run_step(model, make_batch(HEAD)) for model in models))


@pytest.mark.parametrize("fuse", ["layernorm", ["gelu", "softmax"], 3])
def test_an_unknown_fusion(make_bert, fuse):
    model = make_bert(HEAD)
    with pytest.raises(ValueError, match=r"patch: fuse must be True, False or some of qkv, .*got"):
        fastattn.patch(model, fuse=fuse)
    assert type(model.bert.encoder).__name__ == "BertEncoder"


def test_another_choice_for_a_patched_model(make_bert, all_served):
    model = make_bert(HEAD)
    fastattn.patch(model, fuse="gelu")
    fastattn.patch(model, fuse=["gelu"])
    with pytest.raises(fastattn.PatchError, match=r"fuse must be \['gelu'\], with which"):
        fastattn.patch(model)
    fastattn.unpatch(model)
    assert all_served(fastattn.patch(model))
