"""ESM: rotated or learned positions, scaled embeddings, contacts, and a decoder."""

from __future__ import annotations

import pytest
import torch

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

pytestmark = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="its layers are others before Transformers 5"
)


@pytest.mark.parametrize("kind", ["rotary", "absolute"])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("head", ["EsmForSequenceClassification", "EsmForMaskedLM"])
def test_positions(make_bert, make_batch, run_step, assert_close, padding, kind, fuse, head):
    settings = dict(position_embedding_type=kind, emb_layer_norm_before=kind == "absolute")
    stock, ours = (make_bert(head, torch.float64, **settings) for _ in range(2))
    fastattn.patch(ours, fuse=fuse)
    batch = make_batch(head, padding)
    batch["input_ids"][:, 1::4] = 3  # masked tokens, by whose number the others are scaled
    assert_close(run_step(ours, batch), run_step(stock, batch))


@pytest.mark.parametrize("head", ["EsmForTokenClassification", "EsmForMaskedLM"])
def test_labels_in_padding_keep_it(make_bert, make_batch, run_step, assert_close, head):
    """The embeddings read the mask too: they scale a sequence by the number of its tokens."""
    stock, ours = (make_bert(head, torch.float64) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch(head)
    batch["input_ids"][:, 1::4] = 3
    batch["labels"] = batch["labels"].clamp(min=0)
    assert_close(run_step(ours, batch), run_step(stock, batch))


def test_a_decoder_keeps_its_padding(make_bert, make_batch):
    stock, ours = (
        make_bert("EsmForMaskedLM", torch.float64, is_decoder=True).eval() for _ in range(2)
    )
    report = fastattn.patch(ours)
    assert [x.reason for x in report.left] == [
        "not unpadded: a decoder's masks and caches are laid out for the padded batch"
    ]
    batch = make_batch("EsmForMaskedLM")
    rows = batch["attention_mask"].bool()
    torch.testing.assert_close(ours(**batch).logits[rows], stock(**batch).logits[rows])


def test_cross_attention(make_bert, make_batch):
    stock, ours = (
        make_bert("EsmModel", torch.float64, is_decoder=True, add_cross_attention=True).eval()
        for _ in range(2)
    )
    fastattn.patch(ours)
    batch = make_batch("EsmModel", "absent")
    batch["encoder_hidden_states"] = torch.randn(4, 13, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(**batch)[0], stock(**batch)[0])
