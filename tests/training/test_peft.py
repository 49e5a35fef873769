"""LoRA on a patched model: adapters are computed, and the gradients are those of stock."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import fastattn

peft = pytest.importorskip("peft")

pytestmark = [
    # Of peft, about Transformers.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TARGETS = ["query", "value"]
LENGTHS = (13, 5, 9, 1)


def _with_lora(model: Any, targets: list[str], **options: Any) -> Any:
    """Adds adapters that are not zero, as they are at first."""
    config = peft.LoraConfig(
        r=4, target_modules=targets, modules_to_save=["classifier"], lora_dropout=0.0, **options
    )
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, x in wrapped.named_parameters():
            if "lora_" in name:
                x.copy_(0.2 * torch.randn_like(x))
    return wrapped.train()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "targets",
    [TARGETS, ["query", "key", "value", "dense"]],
    ids=["query and value", "every linear layer"],
)
def test_gradients_are_those_of_stock(tools, when, targets):
    stock = tools.model()
    ours = copy.deepcopy(stock)
    stock = _with_lora(stock, targets)
    if when == "before":
        fastattn.patch(ours)
        ours = _with_lora(ours, targets)
    else:
        ours = _with_lora(ours, targets)
        fastattn.patch(ours)
    batch = tools.batch(LENGTHS)
    expected, actual = tools.step(stock, batch), tools.step(ours, batch)
    tools.assert_same(actual, expected)
    trained = [
        [name for name, x in model.named_parameters() if x.grad is not None]
        for model in (ours, stock)
    ]
    assert trained[0] == trained[1]
    assert sum("lora_" in name for name in trained[0]) == (8 if targets == TARGETS else 26)


def test_packed_batches_checkpointing_and_merging(tools):
    from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

    stock = tools.model()
    ours = copy.deepcopy(stock)
    stock = _with_lora(stock, TARGETS)
    ours = _with_lora(ours, TARGETS)
    fastattn.patch(ours)
    batch = tools.batch(LENGTHS)
    expected = tools.step(stock, batch)
    forms = [batch, *([tools.pack(batch)] if HAS_ATTENTION_INTERFACE else [])]
    for form in forms:
        tools.assert_same(tools.step(ours, form), expected)
    merged, stock_merged = ours.merge_and_unload(), stock.merge_and_unload()
    for form in forms:
        tools.assert_same(tools.step(merged, form), tools.step(stock_merged, batch))


def test_an_adapter_that_is_switched_off(tools):
    """Adapters come and go while the model is patched."""
    stock = tools.model().eval()
    batch = tools.batch(LENGTHS)
    expected = stock(**batch).logits
    ours = copy.deepcopy(stock)
    fastattn.patch(ours)
    ours = _with_lora(ours, TARGETS).eval()
    with torch.no_grad():
        assert not torch.allclose(ours(**batch).logits, expected, atol=1e-3)
        with ours.disable_adapter():
            torch.testing.assert_close(ours(**batch).logits, expected)


def test_a_saved_adapter_fits_the_stock_model(tools, tmp_path):
    stock = tools.model()
    ours = copy.deepcopy(stock)
    fastattn.patch(ours)
    ours = _with_lora(ours, TARGETS).eval()
    ours.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(stock, tmp_path).eval()
    batch = tools.batch(LENGTHS)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, ours(**batch).logits)
