"""Plain loops and Accelerate, in every precision, with checkpointing, threads and copies."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

import fastattn
from fastattn.data.packing import PackedCollator
from fastattn.data.sampling import TokenBudgetSampler
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

LENGTHS = ((13, 5, 9, 1), (20, 20, 3, 7), (11, 2))
FORMS = ["padded", *(["packed"] if HAS_ATTENTION_INTERFACE else [])]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning"),
]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tools: Any) -> Any:
    """form(batch) -> the padded batch, or the packed one."""
    return tools.pack if request.param == "packed" else (lambda batch: batch)


def _weights(model: Any) -> Tensor:
    return torch.cat([x.detach().float().flatten() for x in model.parameters()])


def _train(model: Any, batches: list[dict[str, Any]], autocast: Any, scaled: bool) -> list[float]:
    """Three steps of AdamW; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
    losses = []
    for batch in batches:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("weights", "autocast", "scaled", "tolerance"),
    [
        (torch.float32, None, False, 1e-5),
        (torch.float32, torch.bfloat16, False, 3e-2),
        (torch.float32, torch.float16, True, 3e-3),
        (torch.bfloat16, None, False, 3e-2),
    ],
    ids=["float32", "bfloat16 autocast", "float16 autocast with a scaler", "pure bfloat16"],
)
def test_three_steps_are_those_of_stock(tools, form, weights, autocast, scaled, tolerance):
    """In 16 bits both are compared with stock in float32, within what 16 bits hold."""
    stock, ours = tools.pair()
    batches = [tools.batch(lengths, seed=seed) for seed, lengths in enumerate(LENGTHS)]
    expected = _train(stock, batches, None, False)
    actual = _train(ours.to(weights), [form(x) for x in batches], autocast, scaled)
    assert actual == pytest.approx(expected, abs=tolerance)
    assert all(x.dtype == weights for x in ours.parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_checkpointing_draws_the_same_dropout_again(tools, form, use_reentrant, autocast):
    """The recomputed forward pass drops what the first one did, so nothing changes at all."""
    plain = tools.model(dropout=0.3)
    fastattn.patch(plain)
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    batch = form(tools.batch(LENGTHS[0]))
    steps = []
    for model in (plain, checkpointed):
        torch.manual_seed(7)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            steps.append(tools.step(model, batch))
    for first, second in zip(*steps, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_accelerate(tools, form, monkeypatch, mixed_precision):
    """With gradient accumulation; each half batch counts half, as in the plain loop."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mixed_precision)
    stock, ours = tools.pair()
    batches = [tools.batch(lengths, seed=seed) for seed, lengths in enumerate(LENGTHS[:2])]
    for batch in batches:
        (stock(**batch).loss / 2).backward()
    expected = torch.cat([x.grad.flatten() for x in stock.parameters() if x.grad is not None])
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=2, mixed_precision=mixed_precision
    )
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.0)
    loader = torch.utils.data.DataLoader([form(x) for x in batches], batch_size=None)
    model, optimizer, loader = accelerator.prepare(ours, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
    grads = torch.cat([x.grad.flatten() for x in ours.parameters() if x.grad is not None])
    tolerance = 1e-5 if mixed_precision == "no" else 3e-2
    torch.testing.assert_close(grads, expected, atol=tolerance, rtol=tolerance)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="4.x takes no packed batches")
def test_accelerate_prepares_a_loader_with_a_token_budget(tools):
    """A loader that knows its rank itself goes through prepare on one process as it is."""
    AcceleratorState._reset_state(reset_partial_state=True)
    texts = [{"input_ids": [5 + i] * (1 + i % 9), "label": i % 2} for i in range(41)]
    sampler = TokenBudgetSampler([len(x["input_ids"]) for x in texts], 30)
    loader = torch.utils.data.DataLoader(texts, batch_sampler=sampler, collate_fn=PackedCollator())
    model = tools.model()
    fastattn.patch(model)
    accelerator = Accelerator(cpu=True)
    model, loader = accelerator.prepare(model, loader)
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert sampler.epoch == epoch
        batches = list(loader)
        assert len(batches) == len(sampler)
        assert sum(len(x["labels"]) for x in batches) == 41
        accelerator.backward(model(**batches[0]).loss)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_models_patched_differently_in_one_process(tools):
    stock = tools.model()
    choices: list[dict[str, Any]] = [{}, {"unpad": False}, {"fuse": False}, {"fuse": ["gelu"]}]
    models = [copy.deepcopy(stock) for _ in choices]
    for model, choice in zip(models, choices, strict=True):
        fastattn.patch(model, **choice)
    batch = tools.batch(LENGTHS[0])
    expected = tools.step(stock, batch)
    for model in [*models, *models[::-1]]:
        tools.assert_same(tools.step(model, batch), expected)
    fastattn.unpatch(models[0])
    tools.assert_same(tools.step(models[0], batch), expected)
    tools.assert_same(tools.step(models[1], batch), expected)


def test_two_threads_on_two_models(tools, form):
    """Forward and backward at once; each gets what it would get alone."""
    models, expected = [], []
    batches = [form(tools.batch(lengths, seed=1)) for lengths in LENGTHS[:2]]
    for seed, batch in enumerate(batches):
        stock = tools.model(num_hidden_layers=2 + seed)
        fastattn.patch(stock)
        expected.append(tools.step(stock, batch))
        models.append(stock)
    problems: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for _ in range(8):
                for x, y in zip(
                    tools.step(models[index], batches[index]), expected[index], strict=True
                ):
                    assert torch.equal(x, y)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_one_model_in_two_threads(tools, form):
    """Inference of one model from several threads, as servers do it."""
    model = tools.model().eval()
    fastattn.patch(model)
    batches = [form(tools.batch(lengths)) for lengths in LENGTHS[:2]]
    with torch.no_grad():
        expected = [model(**batch).logits for batch in batches]
    results: list[bool] = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(8):
                results.append(torch.equal(model(**batches[index]).logits, expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 16
