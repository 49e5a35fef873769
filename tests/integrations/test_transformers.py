"""``attn_implementation="fastattn"``: equal to eager attention, whatever the model asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import fastattn
from fastattn.integrations.transformers import (
    attention_forward,
    attention_mask,
    calls_attention_interface,
)
from fastattn.ops.padding import packed_layout

TINY = dict(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=64,
    pad_token_id=1,
    bos_token_id=2,
    eos_token_id=3,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
GROUPED = dict(num_key_value_heads=2, head_dim=8)
ENCODERS = {
    "bert": {},
    "roberta": {},
    "electra": dict(embedding_size=32),
    "albert": dict(embedding_size=16),
    "distilbert": dict(dim=32, n_layers=2, n_heads=4, hidden_dim=37, dropout=0.0)
    | dict(attention_dropout=0.0),
    "layoutlm": {},
    "modernbert": dict(local_attention=8, global_attn_every_n_layers=2)
    | dict(cls_token_id=4, sep_token_id=5),
}
DECODERS = {
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0)
    | dict(embd_pdrop=0.0, attn_pdrop=0.0),
    "llama": GROUPED,
    "mistral": GROUPED | dict(sliding_window=6),
    "qwen2": GROUPED | dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "gemma2": GROUPED | dict(sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=2.0),
}
SEQ2SEQ = {
    "t5": dict(d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=37, dropout_rate=0.0)
    | dict(decoder_start_token_id=0, pad_token_id=0),
    "bart": dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4)
    | dict(decoder_attention_heads=4, encoder_ffn_dim=37, decoder_ffn_dim=37, dropout=0.0),
}
# Which models call the attention interface, and how masks are made, has changed from version to
# version. Older ones are held to the same results, for the models that can be served.
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
needs_5 = pytest.mark.skipif(VERSION < (5, 0), reason="needs Transformers 5")
needs_newest = pytest.mark.skipif(VERSION < (5, 20), reason="needs Transformers 5.20")


def _make(
    model_type: str,
    implementation: str,
    auto: Any = AutoModel,
    served: bool = True,
    **settings: Any,
) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**TINY, **settings})
    model_class = AutoModel._model_mapping[type(config)]
    if served and VERSION < (5, 20) and not calls_attention_interface(model_class):
        pytest.skip(f"{model_type} calls no attention interface in this version")
    model = auto.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _pair(model_type: str, auto: Any = AutoModel, **settings: Any) -> tuple[Any, Any]:
    return (_make(model_type, name, auto, **settings) for name in ("eager", "fastattn"))


def _padded(padding: str, seqlen: int = 15) -> tuple[Tensor, Tensor | None]:
    ids = torch.randint(6, 99, (3, seqlen), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, seqlen, dtype=torch.long)
    mask[0, 9:] = 0
    mask[1, 4:] = 0
    if padding == "left":
        mask = mask.flip(1)
    return ids, None if padding == "absent" else mask


def _compare(eager: Any, ours: Any, mask: Tensor | None, **batch: Any) -> None:
    """Compares the last hidden states of tokens, and the gradients they give."""
    results = []
    for model in (eager, ours):
        model.zero_grad()
        states = model(**batch).last_hidden_state
        rows = states if mask is None else states[mask.bool()]
        rows.sin().sum().backward()
        results.append((rows.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (expected, expected_grads), (actual, grads) = results
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    largest = max(float(x.abs().max()) for x in expected_grads.values() if x is not None)
    for name, grad in expected_grads.items():
        if grad is not None:
            torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, in older versions
@pytest.mark.parametrize("padding", ["right", "left", "absent"])
@pytest.mark.parametrize("model_type", [*ENCODERS, *DECODERS])
def test_equal_to_eager(model_type, padding):
    eager, ours = _pair(model_type, **(ENCODERS | DECODERS)[model_type])
    ids, mask = _padded(padding)
    _compare(eager, ours, mask, input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("padding", ["right", "absent"])
@pytest.mark.parametrize("model_type", list(SEQ2SEQ))
def test_encoder_and_decoder(model_type, padding):
    eager, ours = _pair(model_type, **SEQ2SEQ[model_type])
    ids, mask = _padded(padding)
    batch = dict(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :7])
    _compare(eager, ours, None, **batch)


def test_dropout_is_in_training_only():
    model = _make("llama", "fastattn", **GROUPED, attention_dropout=0.3)
    ids, mask = _padded("right")
    batch = dict(input_ids=ids, attention_mask=mask, use_cache=False)
    assert torch.equal(model(**batch)[0], model(**batch)[0])
    model.train()
    first, second, again = (torch.manual_seed(s) and model(**batch)[0] for s in (1, 2, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.filterwarnings("ignore")  # Transformers' own, about generation settings
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral"])
def test_generation(model_type):
    """A cache grows key by key, the batch padded on the left; then one of fixed size."""
    eager, ours = _pair(model_type, AutoModelForCausalLM, **DECODERS[model_type])
    ids, mask = _padded("left")
    settings = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=1)
    for cache in (None, "static"):
        expected, actual = (
            model.generate(
                ids,
                attention_mask=mask,
                cache_implementation=cache,
                output_logits=True,
                return_dict_in_generate=True,
                disable_compile=True,
                **settings,
            )
            for model in (eager, ours)
        )
        assert torch.equal(actual.sequences, expected.sequences)
        for x, y in zip(actual.logits, expected.logits, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_a_prompt_in_pieces():
    """Several queries against a cache: the last query sees the last key."""
    eager, ours = _pair("llama", **GROUPED)
    ids, _ = _padded("absent")
    for model in (eager, ours):
        first = model(ids[:, :6], use_cache=True)
        model.pieces = model(ids[:, 6:], past_key_values=first.past_key_values).last_hidden_state
    torch.testing.assert_close(ours.pieces, eager.pieces, rtol=1e-4, atol=1e-4)
    whole = ours(ids).last_hidden_state[:, 6:]
    torch.testing.assert_close(ours.pieces, whole, rtol=1e-4, atol=1e-4)


@needs_5
def test_a_packed_batch_of_positions():
    """Sequences packed in one row, named by their positions, do not see each other."""
    eager, ours = _pair("llama", **GROUPED)
    ids, _ = _padded("absent")
    positions = torch.cat([torch.arange(7), torch.arange(8)])[None]
    batch = dict(input_ids=ids[:1], position_ids=positions, use_cache=False)
    _compare(eager, ours, None, **batch)


@needs_5
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_torch_compile_without_graph_breaks():
    model = _make("bert", "fastattn")
    ids, mask = _padded("right")
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    actual = compiled(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(actual, expected)


@needs_5
def test_head_masks_cannot_be_dropped():
    model = _make("bert", "fastattn")
    ids, mask = _padded("right")
    with pytest.raises(ValueError, match=r"head_mask must be None, .* got a Tensor. Leave it out"):
        model(input_ids=ids, attention_mask=mask, head_mask=torch.ones(4))


@needs_newest
@pytest.mark.parametrize("model_type", ["mpnet", "megatron-bert", "splinter"])
def test_models_with_attention_of_their_own(model_type):
    """They would take the masks and never call the attention."""
    model = _make(model_type, "fastattn", served=False)
    ids, mask = _padded("right")
    with pytest.raises(
        ValueError, match=r"must call Transformers' attention interface .* attn_impl.*eager"
    ):
        model(input_ids=ids, attention_mask=mask)


@needs_newest
def test_models_of_unknown_classes_get_the_eager_mask():
    mask = torch.tensor([[True, True, False]])
    options = dict(batch_size=1, q_length=3, kv_length=3, attention_mask=mask, dtype=torch.float32)
    made = attention_mask(**options, config=None)
    assert made.dtype == torch.float32 and made.shape == (1, 1, 3, 3)


class _Layer(nn.Module):
    """What attention_forward reads of a module."""

    is_causal = False


def _qkv(seqlen_q: int = 5, seqlen_k: int = 5, batch_size: int = 2) -> tuple[Tensor, ...]:
    """Makes q, k, v as models hand them over, (batch, heads, seqlen, head_dim)."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(batch_size, 4, seqlen, 8) for seqlen in (seqlen_q, seqlen_k, seqlen_k)]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def _eager(q: Tensor, k: Tensor, v: Tensor, attend: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    scores = q @ k.transpose(-1, -2) * 8**-0.5 + bias
    weights = scores.masked_fill(~attend, float("-inf")).softmax(dim=-1)
    return (weights @ v).transpose(1, 2)


LOWER = torch.ones(5, 5, dtype=torch.bool).tril()


@pytest.mark.parametrize("sliding_window", [None, 2])
def test_no_mask_leaves_causality_to_the_flag(sliding_window):
    q, k, v = _qkv()
    attend = LOWER if sliding_window is None else LOWER & ~LOWER.tril(-sliding_window)
    out, weights = attention_forward(
        _Layer(), q, k, v, None, is_causal=True, sliding_window=sliding_window
    )
    assert weights is None
    torch.testing.assert_close(out, _eager(q, k, v, attend))


def test_one_query_sees_every_key():
    q, k, v = _qkv(seqlen_q=1)
    out, _ = attention_forward(_Layer(), q, k, v, None, is_causal=True)
    torch.testing.assert_close(out, _eager(q, k, v, torch.ones(1, 5, dtype=torch.bool)))
    out, _ = attention_forward(_Layer(), q, k, v, None, is_causal=True, sliding_window=2)
    torch.testing.assert_close(out, _eager(q, k, v, torch.arange(5) >= 3))


def test_queries_are_the_first_positions_of_an_empty_cache():
    q, k, v = _qkv(seqlen_q=3)
    bias = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    out, _ = attention_forward(_Layer(), q, k, v, None, is_causal=True, position_bias=bias)
    attend = torch.ones(3, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(out, _eager(q, k, v, attend, bias))


def test_the_flag_of_the_module_counts():
    q, k, v = _qkv()
    layer = _Layer()
    layer.is_causal = True
    out, _ = attention_forward(layer, q, k, v, None)
    torch.testing.assert_close(out, _eager(q, k, v, LOWER))


def test_a_2d_mask_names_padding():
    q, k, v = _qkv()
    keys = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    out, _ = attention_forward(_Layer(), q, k, v, keys)
    torch.testing.assert_close(out, _eager(q, k, v, keys[:, None, None].bool()))
    out, _ = attention_forward(_Layer(), q, k, v, keys, is_causal=True)
    torch.testing.assert_close(out, _eager(q, k, v, keys[:, None, None].bool() & LOWER))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (2, 1, 5, 5), (2, 4, 5, 5), (1, 1, 1, 5)])
def test_4d_masks(shape, biased):
    q, k, v = _qkv()
    attend = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6
    attend[..., 0] = True
    bias = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True) if biased else None
    expected = _eager(q, k, v, attend, 0.0 if bias is None else bias)
    additive = torch.zeros(shape, dtype=torch.float64).masked_fill(~attend, float("-inf"))
    for mask in (attend, additive, attend.expand(2, 1, 5, 5) if shape[1] == 1 else attend):
        # The mask holds everything, so neither flag changes anything.
        out, _ = attention_forward(
            _Layer(), q, k, v, mask, is_causal=True, sliding_window=1, position_bias=bias
        )
        torch.testing.assert_close(out, expected)
        if bias is not None:
            (grad,) = torch.autograd.grad(out.sin().sum(), bias)
            (wanted,) = torch.autograd.grad(expected.sin().sum(), bias, retain_graph=True)
            torch.testing.assert_close(grad, wanted)


def test_a_mask_longer_than_the_keys():
    q, k, v = _qkv()
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool).tril()
    out, _ = attention_forward(_Layer(), q, k, v, mask)
    torch.testing.assert_close(out, _eager(q, k, v, LOWER))


def test_a_row_without_keys_is_zero():
    q, k, v = _qkv()
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, 0, 3] = False
    out, _ = attention_forward(_Layer(), q, k, v, mask)
    assert not out[1, 3].any() and out[1, 2].any()


def test_scaling_and_softcap():
    q, k, v = _qkv()
    out, _ = attention_forward(_Layer(), q, k, v, None, scaling=0.3, softcap=1.5)
    scores = 1.5 * torch.tanh(q @ k.transpose(-1, -2) * 0.3 / 1.5)
    torch.testing.assert_close(out, (scores.softmax(dim=-1) @ v).transpose(1, 2))


def test_packed_sequences():
    q, k, v = _qkv(batch_size=1)
    block = torch.tensor([0, 0, 0, 1, 1])
    attend = block[:, None] == block
    layout = packed_layout(torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]))
    out, _ = attention_forward(_Layer(), q, k, v, layout)
    torch.testing.assert_close(out, _eager(q, k, v, attend))
    lengths = dict(cu_seq_lens_q=layout.cu_seqlens.long(), max_length_q=torch.tensor(3))
    out, _ = attention_forward(_Layer(), q, k, v, None, is_causal=True, **lengths)
    torch.testing.assert_close(out, _eager(q, k, v, attend & LOWER))
    with pytest.raises(ValueError, match=r"cu_seq_lens_q must come with a batch of one"):
        attention_forward(_Layer(), *_qkv(), None, **lengths)
    with pytest.raises(ValueError, match=r"without a mask .* Drop attention_mask"):
        attention_forward(_Layer(), q, k, v, torch.ones(1, 5), **lengths)


def test_keywords_without_effect_and_unknown_ones():
    q, k, v = _qkv()
    expected, _ = attention_forward(_Layer(), q, k, v, None)
    harmless = dict(use_cache=True, position_ids=torch.arange(5), anything=None, more=False)
    beside_ids = ("length", "offset_mapping", "overflow_to_sample_mapping", "special_tokens_mask")
    harmless |= dict.fromkeys(beside_ids, torch.ones(4))  # a tokenizer's whole result
    harmless |= dict(shift_labels=torch.ones(4), ignore_index=-1)  # what a loss takes
    out, _ = attention_forward(_Layer(), q, k, v, None, **harmless)
    assert torch.equal(out, expected)
    for name in ("s_aux", "head_mask", "cache"):
        with pytest.raises(ValueError, match=f"fastattn: {name} must be None, because"):
            attention_forward(_Layer(), q, k, v, None, **{name: torch.ones(4)})


def test_masks_of_no_meaning():
    q, k, v = _qkv()
    with pytest.raises(
        ValueError, match=r"attention_mask must be \(batch, seqlen_k\) or .* \(2, 5"
    ):
        attention_forward(_Layer(), q, k, v, torch.ones(2, 5, 5))
    with pytest.raises(ValueError, match=r"4-D attention_mask must be bool.* got torch.int64"):
        attention_forward(_Layer(), q, k, v, torch.ones(2, 1, 5, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"sliding_window must come with a mask or .* got 2 for 5"):
        attention_forward(_Layer(), q, k, v, None, sliding_window=2)


@needs_newest
def test_the_mask_function():
    from transformers.masking_utils import bidirectional_mask_function

    config = transformers.BertConfig()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    sizes = dict(batch_size=2, q_length=3, kv_length=3, config=config)
    both_ways = dict(mask_function=bidirectional_mask_function, allow_is_bidirectional_skip=True)
    both_ways["allow_is_causal_skip"] = False
    made = attention_mask(**sizes, **both_ways, attention_mask=mask)
    assert torch.equal(made, mask[:, None, None, :])
    assert attention_mask(**sizes, **both_ways, attention_mask=mask[1:].expand(2, 3)) is None
    assert attention_mask(**sizes, **both_ways) is None
    whole = attention_mask(
        **sizes, **{**both_ways, "allow_is_bidirectional_skip": False}, attention_mask=mask
    )
    assert torch.equal(whole, mask[:, None, None, :].expand(2, 1, 3, 3))
    # A cache of 5 places, of which the mask knows 3.
    made = attention_mask(**{**sizes, "kv_length": 5}, **both_ways, attention_mask=mask)
    assert torch.equal(made[:, 0, 0], torch.nn.functional.pad(mask, (0, 2)))
    causal = attention_mask(**sizes, attention_mask=mask)
    assert torch.equal(causal[:, 0], mask[:, None, :] & LOWER[:3, :3])


@needs_5
def test_from_pretrained(tmp_path):
    eager = _make("bert", "eager")
    eager.save_pretrained(tmp_path)
    ours = AutoModel.from_pretrained(tmp_path, attn_implementation="fastattn")
    ids, mask = _padded("right")
    _compare(eager, ours, mask, input_ids=ids, attention_mask=mask)
    report = fastattn.patch(ours)
    assert report.ok
    _compare(eager, ours, mask, input_ids=ids, attention_mask=mask)
    fastattn.unpatch(ours)
    assert ours.config._attn_implementation == "fastattn"
