"""Linear layers that do more than their class says: every family calls them as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastattn


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 1.5 * weight


class Subclass(nn.Linear):
    """As quantised layers of libraries are: weights that mean something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.5


class Adapter(nn.Module):
    """As LoRA's layers are: the layer inside, and something beside it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.in_features, 2, bias=False, dtype=base_layer.weight.dtype)
        self.up = nn.Linear(2, base_layer.out_features, bias=False, dtype=base_layer.weight.dtype)
        torch.manual_seed(base_layer.in_features)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.1)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def subclass(parent: nn.Module, name: str, layer: nn.Linear) -> None:
    layer.__class__ = Subclass


def adapter(parent: nn.Module, name: str, layer: nn.Linear) -> None:
    setattr(parent, name, Adapter(layer))


def hook(parent: nn.Module, name: str, layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda module, args, out: 1.5 * out)


def parametrization(parent: nn.Module, name: str, layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", Doubled())


def wrapper(parent: nn.Module, name: str, layer: nn.Linear) -> None:
    stock_forward = layer.forward
    layer.forward = lambda x: 1.5 * stock_forward(x)


def change(model: Any, how: Callable[..., None]) -> list[str]:
    """Changes every linear layer of a body's layers; returns their names."""
    body = model.base_model
    layers = [
        (name, layer)
        for name, layer in body.named_modules()
        if isinstance(layer, nn.Linear) and "layer" in name
    ]
    for name, layer in layers:
        parent, _, last = name.rpartition(".")
        how(body.get_submodule(parent), last, layer)
    return [name for name, _ in layers]


@pytest.mark.parametrize("late", [False, True], ids=["before the patch", "after the patch"])
@pytest.mark.parametrize("how", [subclass, adapter, hook, parametrization, wrapper])
def test_layers_are_called(make_bert, make_batch, run_step, assert_close, any_family, how, late):
    head = any_family + "ForTokenClassification"
    plain, stock, ours = (make_bert(head, torch.float64) for _ in range(3))
    if late:
        fastattn.patch(ours)
    assert len(change(ours, how)) == len(change(stock, how)) >= 6
    if not late:
        fastattn.patch(ours)
    batch = make_batch(head)
    expected = run_step(stock, batch)
    assert_close(run_step(ours, batch), expected)
    assert not torch.allclose(expected.loss, run_step(plain, batch).loss)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers(make_bert, make_batch, any_family):
    """torch's own, which are no nn.Linear: their weights are packed 8-bit numbers."""
    head = any_family + "ForSequenceClassification"
    model = torch.ao.quantization.quantize_dynamic(make_bert(head).eval(), {nn.Linear})
    quantised = [x for x in model.modules() if isinstance(x, nn.Module) and is_quantised(x)]
    assert len(quantised) > 6
    batch = make_batch(head)
    truth, expected = make_bert(head).eval()(**batch).logits, model(**batch).logits
    fastattn.patch(model)
    # The scale of 8-bit activations is their largest, be it padding's: no two ways agree in bits.
    stock_error, error = (
        float((x - truth).detach().norm()) for x in (expected, model(**batch).logits)
    )
    assert error <= 2 * stock_error
    assert [x for x in model.modules() if is_quantised(x)] == quantised
    fastattn.unpatch(model)
    torch.testing.assert_close(model(**batch).logits, expected)


def is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.ao.nn.quantized")
