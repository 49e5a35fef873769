"""Code that imports flash_attn runs on fastattn, and no longer once that is taken back."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastattn import backends
from fastattn.compat import install_as_flash_attn, uninstall_as_flash_attn

transformers = pytest.importorskip("transformers")
flash_utils = pytest.importorskip("transformers.modeling_flash_attention_utils")
HAS_TABLE = hasattr(flash_utils, "FLASH_ATTENTION_COMPATIBILITY_MATRIX")
needs_table = pytest.mark.skipif(
    not HAS_TABLE, reason="this version of Transformers has no table of devices"
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is not None, reason="flash-attn itself is installed"
)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    uninstall_as_flash_attn()


def test_third_party_imports():
    install_as_flash_attn()
    install_as_flash_attn()  # changes nothing
    import flash_attn
    from flash_attn import flash_attn_func, flash_attn_varlen_func  # noqa: F401
    from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input  # noqa: F401
    from flash_attn.flash_attn_interface import flash_attn_with_kvcache  # noqa: F401

    assert flash_attn.__version__ == "2.8.3"
    q = torch.randn(1, 5, 2, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(q.transpose(1, 2),) * 3
    ).transpose(1, 2)
    torch.testing.assert_close(flash_attn_func(q, q, q), expected)
    mask = torch.ones(1, 5)
    assert len(flash_attn.bert_padding.unpad_input(q, mask)) == 5
    from flash_attn.layers.rotary import apply_rotary_emb  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match=r"flash_attn\.losses"):
        importlib.import_module("flash_attn.losses.cross_entropy")


def test_what_importers_ask_for():
    install_as_flash_attn()
    spec = importlib.util.find_spec("flash_attn")
    assert spec is not None and spec.name == "flash_attn"
    for name in ("flash_attn", "flash-attn", "Flash-Attn"):
        assert importlib.metadata.version(name) == "2.8.3"
    assert "flash-attn" in importlib.metadata.packages_distributions()["flash_attn"]
    assert "fastattn" in importlib.metadata.metadata("flash-attn")["Summary"]
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash-attn-4")


def test_taken_back():
    finders = list(sys.meta_path)
    install_as_flash_attn()
    uninstall_as_flash_attn()
    uninstall_as_flash_attn()
    assert sys.meta_path == finders
    assert not [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("flash_attn")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash-attn")


def test_another_flash_attn_is_left_alone(monkeypatch):
    other = ModuleType("flash_attn")
    other.__file__ = "somewhere.py"
    monkeypatch.setitem(sys.modules, "flash_attn", other)
    with pytest.raises(
        RuntimeError,
        match="install_as_flash_attn: flash_attn must not be imported yet; got the module at "
        r"somewhere\.py\. Call this first, in a fresh process",
    ):
        install_as_flash_attn()
    uninstall_as_flash_attn()
    assert sys.modules["flash_attn"] is other


def small(name: str) -> Any:
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 100,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name == "ModernBert":
        sizes |= {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 2}
    if name == "Llama":
        sizes |= {"num_key_value_heads": 2}
    return getattr(transformers, f"{name}Config")(**sizes)


def logits_and_gradients(head: Any, config: Any, implementation: str) -> tuple[Tensor, Tensor]:
    """Of a padded batch; the logits of its tokens, if there is one for each."""
    torch.manual_seed(1)
    model = head._from_config(config, attn_implementation=implementation, dtype=torch.float32)
    model.eval()
    mask = torch.arange(12) < torch.tensor([[12], [7], [4]])
    ids = torch.randint(3, 100, (3, 12), generator=torch.Generator().manual_seed(2))
    logits = model(input_ids=ids, attention_mask=mask.long()).logits
    logits = logits[mask] if logits.ndim == 3 else logits
    logits.square().sum().backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logits.detach(), torch.cat(grads)


@needs_table
@pytest.mark.parametrize(
    "name",
    ["BertForSequenceClassification", "ModernBertForMaskedLM", "LlamaForCausalLM"],
)
def test_transformers(name, monkeypatch):
    install_as_flash_attn(transformers=True)
    calls: list[backends.Call] = []
    select = backends.select
    monkeypatch.setattr(
        backends,
        "select",
        lambda call, backend=None: (calls.append(call), select(call, backend))[1],
    )
    head, config = getattr(transformers, name), small(name.partition("For")[0])
    ours = logits_and_gradients(head, config, "flash_attention_2")
    assert len(calls) == 2 and all(call.packed for call in calls)
    stock = logits_and_gradients(head, config, "eager")
    for x, y in zip(ours, stock, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@needs_table
def test_transformers_is_put_back():
    row = flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    check = flash_utils.is_flash_attn_2_available
    install_as_flash_attn()
    install_as_flash_attn(transformers=True)
    install_as_flash_attn(transformers=True)
    assert flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2] is not row
    uninstall_as_flash_attn()
    assert flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2] is row
    assert flash_utils.is_flash_attn_2_available is check
    with pytest.raises(ImportError, match="FlashAttention2"):
        transformers.BertModel._from_config(small("Bert"), attn_implementation="flash_attention_2")


def test_transformers_without_the_table(monkeypatch):
    monkeypatch.setattr(flash_utils, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", {}, raising=False)
    with pytest.raises(
        ImportError,
        match="install_as_flash_attn: transformers must have a table of the devices of flash-attn; "
        r"got .*, which has none\. Install a newer 5\.x, or use attn_implementation=\"fastattn\"",
    ):
        install_as_flash_attn(transformers=True)
    assert "flash_attn" not in sys.modules


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.modeling_flash_attention_utils", None)
    with pytest.raises(
        ImportError,
        match="install_as_flash_attn: transformers must be installed for transformers=True; got ",
    ):
        install_as_flash_attn(transformers=True)
