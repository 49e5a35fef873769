"""``output_attentions=True`` on a patched model: stock's weights, from our own softmax's sums."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
    T5Config,
    T5Model,
)

import fastattn
from fastattn.integrations.attention_weights import attention_and_weights
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

needs_interface = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="these have an attention interface from Transformers 5 on"
)


def of_tokens(weights: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The rows of queries that are tokens, the others zero."""
    return weights if mask is None else weights * (mask != 0)[:, None, :, None]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("end", ["Model", "ForSequenceClassification", "ForMaskedLM"])
def test_weights_are_those_of_stock(make_bert, make_batch, any_family, padding, end, fuse):
    stock, ours = (make_bert(any_family + end).eval() for _ in range(2))
    fastattn.patch(ours, fuse=fuse)
    batch = make_batch(any_family + end, padding)
    mask = batch["attention_mask"]
    expected, result = (model(**batch, output_attentions=True) for model in (stock, ours))
    assert len(result.attentions) == len(expected.attentions) == 2
    for ours_of_layer, of_layer in zip(result.attentions, expected.attentions, strict=True):
        assert ours_of_layer.shape == of_layer.shape
        torch.testing.assert_close(
            of_tokens(ours_of_layer, mask), of_tokens(of_layer, mask), atol=1e-6, rtol=1e-4
        )
        if mask is not None:
            of_padding = of_tokens(ours_of_layer, mask).masked_select(mask[:, None, None, :] == 0)
            assert not of_padding.any()
    torch.testing.assert_close(result[0], ours(**batch)[0])


def test_autocast_to_another_dtype_of_16_bits():
    """All is cast, as attention casts it, and not float32 alone."""
    q, k, v = (torch.randn(2, 5, 2, 8).half() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out, weights = attention_and_weights(q, k, v)
    assert out.dtype == weights.dtype == torch.bfloat16
    expected = torch.einsum("bihd,bjhd->bhij", q.float(), k.float()).mul(8**-0.5).softmax(-1)
    torch.testing.assert_close(weights.float(), expected, atol=2e-2, rtol=2e-2)


def test_rows_of_removed_padding_are_zero(make_bert, make_batch, any_family):
    model = make_bert(any_family + "ForMaskedLM").eval()
    fastattn.patch(model)
    batch = make_batch(any_family + "ForMaskedLM")
    mask = batch["attention_mask"][:, None, :, None]
    for weights in model(**batch, output_attentions=True).attentions:
        assert not weights.masked_select(mask == 0).any()
        sums = weights.sum(-1, keepdim=True)
        torch.testing.assert_close(sums, mask.to(sums.dtype).expand_as(sums))


def test_weights_have_gradients(make_bert, make_batch, any_family):
    """Who trains on attention maps gets stock's gradients."""
    head = any_family + "ForTokenClassification"
    # Some eager softmaxes are in float32, whatever the model's dtype, and NaN for float64's least.
    own = any_family in ("LayoutLM", "Esm", "ModernBert")
    dtype, rtol = (torch.float32, 1e-4) if own else (torch.float64, 1e-10)
    stock, ours = (make_bert(head, dtype) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch(head)
    grads = []
    for model in (stock, ours):
        weights = torch.stack(model(**batch, output_attentions=True).attentions)
        of_tokens_ = weights * batch["attention_mask"][:, None, :, None]
        of_tokens_.square().sum().backward()
        grads.append({n: x.grad for n, x in model.named_parameters() if x.grad is not None})
    # The embeddings, and all that attention weights depend on.
    assert any(name.endswith("word_embeddings.weight") or "embed" in name for name in grads[0])
    atol = rtol * max(float(grad.abs().max()) for grad in grads[0].values())
    for name, grad in grads[0].items():
        if name in grads[1]:
            torch.testing.assert_close(grads[1][name], grad, atol=atol, rtol=rtol)
        else:
            assert not grad.any(), name


@pytest.mark.parametrize("unpad", [None, False])
@pytest.mark.parametrize("end", ["ForSequenceClassification", "ForTokenClassification"])
def test_a_loss_has_a_gradient_by_each_weight(make_bert, make_batch, any_family, end, unpad):
    """Maps of attention that are weighted by their gradients need it."""
    head = any_family + end
    batch = make_batch(head)
    found = []
    for patched in (False, True):
        model = make_bert(head)
        if patched:
            fastattn.patch(model, unpad=unpad)
        outputs = model(**batch, output_attentions=True)
        found.append(torch.autograd.grad(outputs.loss, outputs.attentions))
    mask = batch["attention_mask"]
    both = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours * both, expected * both, atol=1e-6, rtol=1e-4)


def test_weights_are_those_after_dropout(make_bert, make_batch, any_family):
    """In training stock returns what is left after dropout; so do we, and it is what was used."""
    head = any_family + "Model"
    dropout = dict(attention_probs_dropout_prob=0.5)
    ours = make_bert(head, **dropout)
    fastattn.patch(ours, unpad=True)
    batch = make_batch(head)
    results = []
    for wanted in (True, False, True):
        torch.manual_seed(3)
        results.append(ours(**batch, output_attentions=wanted))
    assert torch.equal(results[0].attentions[0], results[2].attentions[0])
    torch.testing.assert_close(results[0][0], results[1][0])  # the wish changes no random bits
    kept = make_bert(head, **dropout).eval()
    fastattn.patch(kept, unpad=True)
    before = kept(**batch, output_attentions=True).attentions[0]
    after = results[0].attentions[0]
    is_kept = after != 0
    share = is_kept[before > 0].double().mean()
    assert 0.4 < share < 0.6
    torch.testing.assert_close(after, torch.where(is_kept, 2 * before, 0.0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_the_config_asks_for_them(make_bert, make_batch, head):
    stock, ours = make_bert(head).eval(), make_bert(head).eval()
    for model in (stock, ours):
        model.config.output_attentions = True
    fastattn.patch(ours)
    batch = make_batch(head)
    mask = batch["attention_mask"]
    for x, y in zip(ours(**batch).attentions, stock(**batch).attentions, strict=True):
        torch.testing.assert_close(of_tokens(x, mask), of_tokens(y, mask), atol=1e-6, rtol=1e-4)
    assert not ours(**batch, output_attentions=False).attentions


def test_with_hidden_states_and_as_tuples(make_bert, make_batch, any_family):
    head = any_family + "ForTokenClassification"
    stock, ours = (make_bert(head).eval() for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch(head)
    both = dict(output_attentions=True, output_hidden_states=True, return_dict=False)
    expected, result = stock(**batch, **both), ours(**batch, **both)
    assert len(expected) == len(result)
    for x, y in zip(result, expected, strict=True):
        if isinstance(x, tuple):
            assert [z.shape for z in x] == [z.shape for z in y]


def test_weights_are_cast_as_attention_casts():
    """A state of 16 bits goes to the other type of 16 bits, and with it the weights."""
    q, k, v = torch.randn(3, 2, 5, 2, 8).bfloat16().unbind()
    with torch.autocast("cpu", torch.float16):
        out, weights = attention_and_weights(q, k, v)
        expected = fastattn.attention(q, k, v)
    assert out.dtype == weights.dtype == expected.dtype == torch.float16
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=2e-3)


def test_autocast(make_bert, make_batch):
    stock, ours = make_bert("BertModel").eval(), make_bert("BertModel").eval()
    fastattn.patch(ours)
    batch = make_batch("BertModel", "none")
    with torch.no_grad():
        truth = stock(**batch, output_attentions=True).attentions
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        steps = [model(**batch, output_attentions=True).attentions for model in (stock, ours)]
    of_stock, of_ours = (
        max(float((x.float() - y).abs().max()) for x, y in zip(z, truth, strict=True))
        for z in steps
    )
    assert of_ours <= 2 * of_stock


def test_gradient_checkpointing(make_bert, make_batch, run_step):
    head, steps = "BertForTokenClassification", []
    for checkpointing in (False, True):
        model = make_bert(head, attention_probs_dropout_prob=0.1)
        fastattn.patch(model)
        if checkpointing:
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
        torch.manual_seed(1)
        steps.append(run_step(model, make_batch(head), output_attentions=True))
    for name, x in steps[0].grads.items():
        assert torch.equal(x, steps[1].grads[name]), name


_SMALL = dict(vocab_size=50, num_hidden_layers=1, pad_token_id=0, bos_token_id=1, eos_token_id=2)
_BART = dict(
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
)
_T5 = dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
_LLAMA = dict(hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16)


@needs_interface
@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (LlamaModel, LlamaConfig(**_SMALL, **_LLAMA)),
        (T5Model, T5Config(vocab_size=50, **_T5)),
        (BartModel, BartConfig(vocab_size=50, **_BART)),
    ],
)
def test_decoders_and_cross_attention(model_class, config):
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    ids = torch.randint(3, 50, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    batch = dict(input_ids=ids, attention_mask=mask, output_attentions=True)
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :4]
    expected = model(**batch)
    fastattn.patch(model)
    result = model(**batch)
    kinds = [name for name in expected if name.endswith("attentions")]
    assert len(kinds) == (3 if config.is_encoder_decoder else 1)
    for kind in kinds:
        # An encoder without padding has no weights of its rows.
        rows = mask[:, None, :, None] if kind == "encoder_attentions" else 1
        for x, y in zip(result[kind], expected[kind], strict=True):
            torch.testing.assert_close(x * rows, y * rows, atol=1e-6, rtol=1e-4)


@needs_interface
@pytest.mark.parametrize(
    ("model_class", "config", "name"),
    [
        (GPT2LMHeadModel, GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50), "GPT2Model"),
        (
            OPTModel,
            OPTConfig(
                **_SMALL,
                hidden_size=16,
                ffn_dim=16,
                num_attention_heads=2,
                word_embed_proj_dim=16,
            ),
            "OPTDecoder",
        ),
    ],
)
def test_models_that_keep_the_wish_to_themselves(model_class, config, name):
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    fastattn.patch(model)
    ids = torch.randint(3, 50, (1, 5))
    with pytest.raises(ValueError, match=rf"output_attentions must be False for {name}.*unpatch"):
        model(ids, output_attentions=True)
    model(ids)
    fastattn.unpatch(model)
    assert len(model(ids, output_attentions=True).attentions) == 1


@needs_interface
def test_sequences_that_were_never_padded(make_bert):
    model: nn.Module = make_bert("BertModel").eval()
    fastattn.patch(model)
    cu_seqlens = torch.tensor([0, 3, 8])
    packed = dict(cu_seq_lens_q=cu_seqlens, cu_seq_lens_k=cu_seqlens)
    longest = dict(max_length_q=5, max_length_k=5)
    ids = torch.randint(1, 50, (1, 8))
    with pytest.raises(ValueError, match=r"must be False for sequences given by cu_seq_lens_q"):
        model(ids, **packed, **longest, output_attentions=True)
    asking: nn.Module = make_bert("MPNetModel", output_attentions=True).eval()
    fastattn.patch(asking)
    with pytest.raises(ValueError, match=r"must be False for sequences given by cu_seq_lens_q"):
        asking(ids, **packed, **longest)
