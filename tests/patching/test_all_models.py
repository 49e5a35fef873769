"""Every head of every model in the coverage table: float32 beside eager attention, and dropout.

The table itself is float64, where differences are of rounding alone.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import fastattn
from fastattn.coverage.cases import CASES, Case, make_batch, make_mask
from fastattn.coverage.measure import step
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

pytestmark = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="the table is about Transformers 5"
)
# Their files say so themselves in Transformers 4.x, by warnings that are errors here.
HEADS = [(x, name) for x in CASES for name in x.classes()] if HAS_ATTENTION_INTERFACE else []
GENERATING = [(case, name) for case, name in HEADS if case.generates(name)]


def in_float32(batch: dict[str, Any]) -> dict[str, Any]:
    """The same inputs for a model in float32."""
    return {
        name: x.float() if torch.is_tensor(x) and x.is_floating_point() else x
        for name, x in batch.items()
    }


@pytest.mark.parametrize(("case", "head"), HEADS, ids=lambda x: getattr(x, "name", x))
def test_float32_is_as_accurate_as_eager(case: Case, head: str):
    truth = case.make(head)
    stock = copy.deepcopy(truth).float()
    stock.set_attn_implementation("eager")
    ours = copy.deepcopy(stock)
    fastattn.patch(ours)
    for padding in ("right", "left"):
        batch, mask = make_batch(case, truth, padding), make_mask(padding)
        expected = step(truth, batch, mask)
        of_stock, of_ours = (step(x, in_float32(batch), mask) for x in (stock, ours))
        assert of_ours[0].keys() == of_stock[0].keys() == expected[0].keys()
        assert of_ours[1].keys() == of_stock[1].keys() == expected[1].keys()
        largest = max(float(x.abs().max()) for x in expected[1].values())
        for ratio, scale, kind in ((2.0, 0.0, 0), (3.0, largest, 1)):
            for name, x in expected[kind].items():
                error, allowed = (
                    float((y[kind][name].double() - x).abs().max()) for y in (of_ours, of_stock)
                )
                floor = 32 * torch.finfo(torch.float32).eps * max(float(x.abs().max()), scale)
                assert error <= ratio * allowed + floor, (padding, name, error, allowed, floor)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_dropout_by_seed_and_by_law(case: Case):
    """The same seed, the same bits; over many seeds, the mean and spread of stock."""
    head = next(x for x in case.classes() if x.endswith(("Model", "MTModel")))
    stock = case.with_dropout(0.1).make(head).float()
    ours = copy.deepcopy(stock)
    fastattn.patch(ours)
    batch = in_float32(make_batch(case, stock, "right"))

    @torch.no_grad()
    def draw(model: Any, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        outputs = model.train()(**batch)
        return outputs[0][0, :2].flatten().double()

    assert torch.equal(draw(ours, 1), draw(ours, 1))
    assert not torch.equal(draw(ours, 1), draw(ours, 2))
    num_draws = 100
    of_stock, of_ours = (
        torch.stack([draw(model, seed) for seed in range(num_draws)]) for model in (stock, ours)
    )
    # Five standard errors of the difference of two means, for each of 64 numbers and 22 models.
    standard_error = ((of_stock.var(0) + of_ours.var(0)) / num_draws).sqrt()
    assert ((of_stock.mean(0) - of_ours.mean(0)).abs() < 5 * standard_error).all()
    ratio = of_ours.std(0) / of_stock.std(0)
    assert ((ratio - 1).abs() < 6 / num_draws**0.5).all()
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(**batch)[0][0], stock.eval()(**batch)[0][0], atol=1e-4, rtol=1e-3
        )


@pytest.mark.filterwarnings("ignore::UserWarning")  # about settings that a beam does not use
@pytest.mark.parametrize("how", ["greedy", "beams", "static cache", "no cache"])
@pytest.mark.parametrize(("case", "head"), GENERATING, ids=lambda x: getattr(x, "name", x))
def test_generation(case: Case, head: str, how: str):
    """The tokens of stock, and at each step its scores."""
    stock = case.make(head).eval()
    ours = copy.deepcopy(stock)
    fastattn.patch(ours)
    batch = make_batch(case, stock, "left" if case.decodes else "right")
    settings: dict[str, Any] = {
        "greedy": {},
        "beams": {"num_beams": 3},
        "static cache": {"cache_implementation": "static"},
        "no cache": {"use_cache": False},
    }[how]
    results = [
        model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=6,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **settings,
        )
        for model in (stock, ours)
    ]
    assert torch.equal(results[0].sequences, results[1].sequences)
    for x, y in zip(results[0].logits, results[1].logits, strict=True):
        torch.testing.assert_close(y, x, atol=1e-6, rtol=1e-6)
