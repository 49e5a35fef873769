"""Patched models where no value can be read: fake and meta tensors, and elements of torch.vmap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import fastattn
from fastattn.data.packing import PackedCollator
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

pytestmark = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="stock 4.x reads its masks everywhere"
)
HEADS = ("ForSequenceClassification", "ForTokenClassification")


@pytest.fixture(params=HEADS)
def patched(request, make_bert, make_batch, any_family):
    """A model, a batch for it, and what it returns."""
    head = any_family + request.param
    model = make_bert(head, problem_type="single_label_classification")
    fastattn.patch(model)
    batch = make_batch(head)
    return model, batch, model(**batch)


def test_meta_tensors(patched):
    model, batch, expected = patched
    result = model.to("meta")(**{name: x.to("meta") for name, x in batch.items()})
    assert result.loss.is_meta and result.logits.shape == expected.logits.shape


def test_fake_tensors(patched):
    model, batch, expected = patched
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        result = model(**{name: mode.from_tensor(x) for name, x in batch.items()})
    assert result.loss.ndim == 0 and result.logits.shape == expected.logits.shape


@pytest.mark.parametrize("family", ["Bert", "Roberta", "ModernBert", "MPNet", "DebertaV2"])
def test_fake_packed_sequences(make_bert, make_batch, family):
    model = make_bert(f"{family}ForSequenceClassification").eval()
    fastattn.patch(model)
    batch = make_batch(f"{family}ForSequenceClassification")
    rows = [x[keep].tolist() for x, keep in zip(*of_tokens(batch), strict=True)]
    packed = PackedCollator("sequence")([{"input_ids": x, "labels": 0} for x in rows])
    given = {name: packed[name] for name in ("input_ids", "cu_seq_lens_q")}
    expected = model(**given).logits
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        result = model(**{name: mode.from_tensor(x) for name, x in given.items()}).logits
    assert result.shape == expected.shape


def of_tokens(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return batch["input_ids"], batch["attention_mask"].bool()


# torch warns that it runs an operator once for each element: it knows no rule for ours.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_of_each_sequence(make_bert, make_batch, any_family):
    """As those who clip or compare them compute them, where stock models mostly cannot."""
    head = f"{any_family}ForSequenceClassification"
    model = make_bert(head, problem_type="single_label_classification").eval()
    fastattn.patch(model)
    batch = make_batch(head)
    parameters = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
        one = {name: x[None] for name, x in row.items()}
        out: Tensor = torch.func.functional_call(model, weights, (), one).loss
        return out

    detached = {name: x.detach() for name, x in parameters.items()}
    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(detached, batch)
    for i in range(len(batch["input_ids"])):
        model.zero_grad()
        model(**{name: x[i : i + 1] for name, x in batch.items()}).loss.backward()
        for name, x in parameters.items():
            expected = torch.zeros_like(x) if x.grad is None else x.grad
            torch.testing.assert_close(together[name][i], expected, atol=1e-5, rtol=1e-4)
