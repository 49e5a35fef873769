"""MPNet and DeBERTa-v2: attention of their own, with a bias that is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE
from fastattn.patching.fusions import FUSIONS

pytestmark = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="these are patched from Transformers 5 on"
)

DEBERTAS: dict[str, dict[str, Any]] = {
    "v2": dict(share_att_key=False, position_buckets=-1, norm_rel_ebd="none", type_vocab_size=2),
    "content to position": dict(pos_att_type=["c2p"], share_att_key=False),
    "position to content": dict(pos_att_type=["p2c"]),
    "neither": dict(pos_att_type=[]),
    "no relative positions": dict(relative_attention=False, position_biased_input=True),
    "projected embeddings": dict(embedding_size=32),
    "convolution": dict(conv_kernel_size=3),
}


@pytest.mark.parametrize("kind", DEBERTAS)
@pytest.mark.parametrize("end", ["ForTokenClassification", "ForSequenceClassification"])
def test_every_kind_of_deberta(make_bert, make_batch, run_step, assert_close, padding, kind, end):
    stock, ours = (make_bert("DebertaV2" + end, torch.float64, **DEBERTAS[kind]) for _ in range(2))
    report = fastattn.patch(ours)
    assert [x.reason for x in report.left] == (
        ["not unpadded: ConvLayer may need the padded batch"] if kind == "convolution" else []
    )
    batch = make_batch("DebertaV2" + end, padding)
    assert_close(run_step(ours, batch), run_step(stock, batch))


@pytest.mark.parametrize("family", ["MPNet", "DebertaV2"])
def test_the_bias_is_trained(make_bert, make_batch, run_step, family):
    model = make_bert(family + "ForTokenClassification")
    fastattn.patch(model)
    grads = run_step(model, make_batch(family + "ForTokenClassification")).grads
    names = [x for x in grads if "relative_attention_bias" in x or "rel_embeddings" in x]
    assert len(names) == 1
    assert grads[names[0]].abs().sum() > 0


@pytest.mark.parametrize("family", ["MPNet", "DebertaV2"])
def test_the_report(make_bert, family):
    model = make_bert(family + "ForTokenClassification")
    report = fastattn.patch(model)
    assert report.ok
    reasons = {x.reason for x in report.replaced}
    fused = {FUSIONS[name] for name in ("qkv", "layer_norm", "gelu")}
    assert fused < reasons
    assert "runs fastattn.attention" in reasons
    assert any("inside a sequence: the bias counts it" in x for x in reasons)
    fastattn.unpatch(model)
    report = fastattn.patch(model, fuse=False, unpad=False)
    assert {x.what for x in report.layers if x.reason in fused} == set()
    assert {x.reason for x in report.replaced} == {"runs fastattn.attention"}


@pytest.mark.parametrize("family", ["MPNet", "DebertaV2"])
@pytest.mark.parametrize("unpad", [None, True, False])
def test_every_choice_of_unpad(make_bert, make_batch, run_step, assert_close, family, unpad):
    head = family + "ForMaskedLM"
    stock, ours = (make_bert(head, torch.float64) for _ in range(2))
    fastattn.patch(ours, unpad=unpad)
    batch = make_batch(head)
    assert_close(run_step(ours, batch), run_step(stock, batch))


@pytest.mark.parametrize("family", ["MPNet", "DebertaV2"])
def test_losses_over_rows_of_padding(make_bert, make_batch, run_step, assert_close, family):
    """Labels on padding rows, or a softmax over all rows: their states are stock's."""
    for end in ("ForTokenClassification", "ForQuestionAnswering"):
        stock, ours = (make_bert(family + end, torch.float64) for _ in range(2))
        fastattn.patch(ours)
        batch = make_batch(family + end)
        if "labels" in batch:
            batch["labels"] = batch["labels"].clamp(min=0)
        expected, result = run_step(stock, batch), run_step(ours, batch)
        torch.testing.assert_close(result.loss, expected.loss)
        assert_close(result, expected)


@pytest.mark.parametrize("family", ["MPNet", "DebertaV2"])
def test_masks_with_a_row_for_each_query(make_bert, make_batch, family):
    stock, ours = (make_bert(family + "Model", torch.float64).eval() for _ in range(2))
    fastattn.patch(ours)
    ids = make_batch(family + "Model")["input_ids"]
    mask = torch.ones(4, 13, 13).tril()
    if family == "MPNet":
        # Stock adds a 4-D mask to the scores as it is.
        mask = (1 - mask)[:, None].double() * torch.finfo(torch.float64).min
        inputs = dict(inputs_embeds=stock.get_input_embeddings()(ids))
    else:
        inputs = dict(inputs_embeds=stock.embeddings.word_embeddings(ids))
        encoders = [model.encoder for model in (stock, ours)]
        states = stock.embeddings(ids)
        expected, result = (x(states, mask).last_hidden_state for x in encoders)
        torch.testing.assert_close(result, expected)
        return
    expected, result = (x(attention_mask=mask, **inputs)[0] for x in (stock, ours))
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("end", ["Model", "ForSequenceClassification", "ForTokenClassification"])
def test_a_4d_mask_of_keys_keeps_every_row(make_bert, make_batch, run_step, assert_close, end):
    """Stock's embeddings read it as well."""
    stock, ours = (make_bert("DebertaV2" + end, torch.float64) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch("DebertaV2" + end)
    batch["attention_mask"] = batch["attention_mask"][:, None, None].bool()
    assert_close(run_step(ours, batch), run_step(stock, batch))


class OwnAttention(nn.Module):
    """Keeps the place of an attention layer."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,)


def test_an_attention_of_ones_own_is_left(make_bert, make_batch):
    model = make_bert("MPNetModel").eval()
    model.encoder.layer[0].attention.attn = OwnAttention()
    batch = make_batch("MPNetModel")
    expected = model(**batch).last_hidden_state
    report = fastattn.patch(model)
    assert {x.reason for x in report.left} == {
        "OwnAttention is an attention of its own",
        "not unpadded: its attention is not served",
    }
    torch.testing.assert_close(model(**batch).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
