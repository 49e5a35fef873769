"""explain_model and ``fastattn explain`` say what happened, and change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fastattn
from fastattn.backends import cpu
from fastattn.cli.app import app
from fastattn.explanation import LayerPath, ModelExplanation
from fastattn.ops.attention import watched

transformers = pytest.importorskip("transformers")
needs_kernels = pytest.mark.skipif(cpu.unavailable_reason() is not None, reason="no native module")
# 4.x has other classes and chooses among them.
needs_interface = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="Transformers 4 patches less"
)

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
    "pad_token_id": 0,
}


def bert(head: str = "BertForSequenceClassification") -> Any:
    torch.manual_seed(0)
    return getattr(transformers, head)(transformers.BertConfig(**SIZES)).eval()


def batch(seqlen: int = 12) -> dict[str, Tensor]:
    mask = torch.arange(seqlen) < torch.tensor([[seqlen], [7], [4]])
    ids = torch.randint(3, 100, (3, seqlen), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask.long()}


@needs_kernels
@needs_interface
def test_a_patched_bert():
    model = bert()
    explanation = fastattn.explain_model(model.train(), **batch())
    first, second, last = explanation.layers
    assert first.name == "bert.encoder.layer.0.attention.self"
    assert first.layer == "BertSelfAttention"
    assert first.attention == (
        "fastattn, backend cpu, 23 rows of 3 sequences, without padding, float32, head_dim 16, "
        "dropout_p",
    )
    assert first.beside == ("bias, dropout, residual and LayerNorm", "bias and GELU")
    assert first.reasons == (
        "patch: replaced: runs fastattn.attention",
        "patch: replaced: query, key and value are projected together",
    )
    assert (second.attention, second.beside) == (first.attention, first.beside)
    assert "the first row of each of 3 sequences, 23 keys" in last.attention[0]
    text = str(explanation)
    assert text.startswith("BertForSequenceClassification, training; input_ids (3, 12), attention")
    assert "bert.encoder: replaced: padding removed once around 3 layers" in text
    assert "bert.encoder.layer.*.attention.self (0-1): BertSelfAttention" in text
    assert text.count("attention: fastattn") == 2


@needs_kernels
@needs_interface
def test_what_it_says_depends_on_what_happens():
    """Padding in front is kept; a part with a hook runs stock; many rows share a product."""
    left = batch()
    left["attention_mask"] = left["attention_mask"].flip(1)
    kept = fastattn.explain_model(bert(), **left).layers
    assert "batch of 3 x 12 rows, padding masked" in kept[0].attention[0]

    model = bert()
    handle = model.bert.encoder.layer[1].intermediate.intermediate_act_fn.register_forward_hook(
        lambda *_: None
    )
    hooked = fastattn.explain_model(model, **batch()).layers
    handle.remove()
    assert "bias and GELU" in hooked[0].beside and "bias and GELU" not in hooked[1].beside

    unfused = fastattn.explain_model(bert(), fuse=False, unpad=False, **batch())
    assert all(layer.beside == () for layer in unfused.layers)
    assert "bert.encoder: left: not unpadded: unpad=False" in str(unfused)

    if cpu.prefers_own_matmul():
        long = fastattn.explain_model(bert(), **batch(120)).layers
        assert "3 projections in one product" in long[0].beside


def test_a_stock_model():
    explanation = fastattn.explain_model(bert(), patch=False, **batch())
    assert {layer.attention for layer in explanation.layers} == {
        ("torch's scaled_dot_product_attention",)
    }
    model = bert()
    model.set_attn_implementation("eager")
    eager = fastattn.explain_model(model, patch=False, **batch())
    assert eager.layers[0].attention == ("the model's own products and softmax",)
    assert "attention.self (0-2): BertSelfAttention" in str(eager)


@needs_interface
def test_a_model_that_cannot_be_patched():
    model = transformers.DebertaV2Model(transformers.DebertaV2Config(**SIZES)).eval()
    explanation = fastattn.explain_model(model, **batch())
    if explanation.notes:  # as long as it cannot
        assert explanation.notes[0].startswith("not patched: patch: DebertaV2Model must hold")
        assert explanation.layers[0].attention == ("the model's own products and softmax",)


@needs_interface
def test_why_not_a_backend():
    """The reasons are those of the calls that were made."""
    sizes = {**SIZES, "hidden_size": 2 * 264, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
    layer = fastattn.explain_model(model, **batch()).layers[0]
    assert "backend reference" in layer.attention[0] and "head_dim 264" in layer.attention[0]
    assert any(reason.startswith("not cpu: ") for reason in layer.reasons)
    assert any(reason.startswith("not triton: ") for reason in layer.reasons)


@needs_interface
def test_nothing_changes():
    model = bert().train()
    kinds = [type(module) for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fastattn.explain_model(model, **batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(module) for module in model.modules()] == kinds and model.training
    assert all(p.grad is None for p in model.parameters())
    with fastattn.patched(model):
        kinds = [type(module) for module in model.modules()]
        fastattn.explain_model(model, **batch())
        assert [type(module) for module in model.modules()] == kinds


class OwnAttention(nn.Module):
    """A model of no library, whose attention lies in a function."""

    def forward(self, x: Tensor) -> Tensor:
        return fastattn.attention(x, x, x, causal=True, backend="reference")


def test_any_module():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = OwnAttention()
            self.other = nn.MultiheadAttention(8, 2, batch_first=True)
            self.unused = OwnAttention()

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).flatten(2)
            return self.other(y, y, y)[0]

    explanation = fastattn.explain_model(Model(), patch=False, x=torch.randn(2, 5, 2, 4))
    found = {layer.name: layer.attention for layer in explanation.layers}
    assert found["first"] == (
        "fastattn, backend reference, batch of 2 x 5 rows, float32, head_dim 4, window",
    )
    assert "softmax" in found["other"][0]
    assert found["unused"] == ("none in this pass",)


def test_not_a_module():
    with pytest.raises(
        TypeError,
        match=r"explain_model: model must be a torch\.nn\.Module; got str\. Pass the model itself",
    ):
        fastattn.explain_model("bert-base-uncased")


def test_layers_that_behave_equally_share_an_entry():
    def layer(number: int, words: str) -> LayerPath:
        return LayerPath(f"encoder.layer.{number}.attention", "Attention", (words,), (), ())

    layers = tuple(layer(i, "other" if i == 3 else "same") for i in range(7))
    text = str(ModelExplanation("Model", (), (), layers))
    assert "encoder.layer.*.attention (0-2, 4-6): Attention\n  attention: same" in text
    assert "encoder.layer.3.attention: Attention\n  attention: other" in text
    nested = tuple(
        LayerPath(f"groups.{i}.layers.{j}.attention", "Attention", ("same",), (), ())
        for i in range(2)
        for j in range(2)
    )
    text = str(ModelExplanation("Model", (), (), nested))
    assert "groups.*.layers.*.attention (4 layers): Attention" in text


def test_watching_ends_with_the_block():
    seen: list[str] = []
    q = torch.randn(1, 4, 2, 8)
    with watched(lambda q, k, options, backend: seen.append(backend)):
        fastattn.attention(q, q, q, backend="reference")
        fastattn.scaled_dot_product_attention(q, q, q)
    fastattn.attention(q, q, q)
    assert len(seen) == 2 and seen[0] == "reference"


@needs_interface
def test_command(tmp_path):
    model = bert("BertForTokenClassification")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]))
    tokenizer = transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")

    def output(*options: str) -> str:
        result = CliRunner().invoke(app, ["explain", folder, *options])
        assert result.exit_code == 0, result.output
        return result.output

    assert "BertForTokenClassification, evaluation; input_ids (4, 32)" in output(
        "--batch-size", "4", "--seqlen", "32"
    )
    trained = output("--train", "--random-weights", "--head", "sequence-classification")
    assert "BertForSequenceClassification, training" in trained and "dropout_p" in trained
    text = output("--text", "a b a", "--text", "b", "--dtype", "bfloat16", "--head", "none")
    assert "input_ids (2, 5)" in text and "bfloat16" in text and "BertModel" in text
    assert "scaled_dot_product_attention" in output("--no-patch")


@needs_interface
def test_command_with_a_model_of_no_tokens(tmp_path):
    transformers.ViTConfig().save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["explain", str(tmp_path), "--random-weights"])
    assert result.exit_code == 2
    assert "explain: the model must take tokens; got ViTConfig, which has no vocabulary" in (
        " ".join(result.output.split())
    )


@needs_interface
def test_command_with_a_head_of_somebody_else(tmp_path):
    config = transformers.BertConfig(**SIZES, architectures=["OwnBert"])
    config.save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["explain", str(tmp_path), "--random-weights"])
    assert result.exit_code == 2
    assert "explain: the config's head must be one of Transformers; got OwnBert. Choose one" in (
        " ".join(result.output.split())
    )


@pytest.mark.parametrize("option", ["--batch-size", "--seqlen"])
def test_command_refuses_sizes_beside_texts(option: str) -> None:
    result = CliRunner().invoke(app, ["explain", "any", "--text", "a b", option, "8"])
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert (
        f"must be left out beside text, of which the batch is made; got 8. Leave {option}"
        in message
    )
