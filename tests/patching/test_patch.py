"""What patch changes and reports, and that unpatch takes it back to the very same objects."""

from __future__ import annotations

import copy
import io
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    DeepseekV3Config,
    DeepseekV3Model,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    ErnieConfig,
    ErnieModel,
    EsmConfig,
    EsmModel,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssModel,
    MegatronBertConfig,
    MegatronBertModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE, UnpaddedEncoder

HEAD = "BertForSequenceClassification"
needs_interface = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="BERT has an attention interface from Transformers 5 on"
)


def _state(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yields everything about each module that patch might change, by identity."""
    for name, module in model.named_modules():
        config = module.__dict__.get("config")
        yield (
            name,
            type(module),
            getattr(module.forward, "__func__", module.forward),
            id(config),
            getattr(config, "_attn_implementation", None),
            sorted(module.__dict__),
            list(module._forward_hooks.values()),
            list(module._forward_pre_hooks.values()),
            module.__dict__.get("attn_implementation"),
        )


def test_unpatch_restores_the_very_same(make_bert, head):
    model = make_bert(head)
    before = list(_state(model))
    fastattn.patch(model)
    assert list(_state(model)) != before
    fastattn.unpatch(model)
    assert list(_state(model)) == before


def test_unpatch_twice_and_unpatch_first(make_bert):
    model = make_bert(HEAD)
    before = list(_state(model))
    fastattn.unpatch(model)
    fastattn.patch(model)
    fastattn.unpatch(model)
    fastattn.unpatch(model)
    assert list(_state(model)) == before


def test_patch_twice_changes_nothing(make_bert):
    model = make_bert("BertForQuestionAnswering")
    stock = list(_state(model))
    first = fastattn.patch(model)
    once = list(_state(model))
    assert fastattn.patch(model) == first
    assert list(_state(model)) == once
    fastattn.unpatch(model)
    assert list(_state(model)) == stock


def test_patch_again_with_another_choice(make_bert):
    model = make_bert(HEAD)
    fastattn.patch(model)
    with pytest.raises(
        fastattn.PatchError,
        match=r"patch: unpad must be None, with which .* got False. Call fastattn.unpatch",
    ):
        fastattn.patch(model, unpad=False)
    assert isinstance(model.bert.encoder, UnpaddedEncoder)


def test_the_parameters_stay(make_bert, head):
    model = make_bert(head)
    keys = list(model.state_dict())
    parameters = [id(parameter) for parameter in model.parameters()]
    fastattn.patch(model)
    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in model.parameters()] == parameters


def test_the_body_first_and_the_head_later(make_bert, make_batch, run_step, assert_close):
    name = "BertForQuestionAnswering"
    stock, ours = make_bert(name, torch.float64), make_bert(name, torch.float64)
    before = list(_state(ours))
    fastattn.patch(ours.bert)
    fastattn.patch(ours)
    assert_close(run_step(ours, make_batch(name)), run_step(stock, make_batch(name)))
    assert ours.config is ours.bert.config
    fastattn.unpatch(ours)
    assert list(_state(ours)) == before


def test_unpatch_of_a_part(make_bert):
    model = make_bert(HEAD)
    fastattn.patch(model)
    fastattn.unpatch(model.bert)
    assert not isinstance(model.bert.encoder, UnpaddedEncoder)
    fastattn.unpatch(model)
    assert model.config is model.bert.config


def test_models_of_one_config_are_apart():
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config._attn_implementation = "eager"
    ours, other = BertModel(config), BertModel(config)
    fastattn.patch(ours)
    assert config._attn_implementation == other.config._attn_implementation == "eager"
    assert not isinstance(other.encoder, UnpaddedEncoder)


@needs_interface
def test_the_config_says_which_attention_runs(make_bert):
    model = make_bert(HEAD)
    fastattn.patch(model)
    assert model.config._attn_implementation == "fastattn"
    fastattn.unpatch(model)
    assert model.config._attn_implementation == "eager"


def test_settings_made_while_patched_are_kept(make_bert):
    model = make_bert(HEAD)
    config = model.config
    fastattn.patch(model)
    model.config.problem_type = "regression"
    fastattn.unpatch(model)
    assert model.config is config
    assert config.problem_type == "regression"


@needs_interface
def test_another_attention_while_patched(make_bert, make_batch):
    """Choosing eager attention gives that, padding included, until it is chosen back."""
    model = make_bert(HEAD).eval()
    batch = make_batch(HEAD)
    expected = model(**batch).logits
    fastattn.patch(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch).logits, expected)
    assert len(model(**batch, output_attentions=True).attentions) == 2
    del batch["attention_mask"]  # the rows that no head reads cannot be left out here
    model(**batch)


def test_a_forward_that_was_bound_to_the_instance(make_bert, make_batch, run_step, assert_close):
    """As Transformers 5.0 leaves it behind: it must not hide the class, patched or stock."""
    stock, ours = make_bert(HEAD, torch.float64), make_bert(HEAD, torch.float64)
    part = ours.bert.encoder.layer[-1].output
    part.forward = part.forward
    fastattn.patch(ours)
    assert "forward" not in vars(part)
    part.forward = part.forward
    fastattn.unpatch(ours)
    assert "forward" not in vars(part)
    assert_close(run_step(ours, make_batch(HEAD)), run_step(stock, make_batch(HEAD)))


def test_the_context_manager(make_bert, all_served):
    model = make_bert(HEAD)
    before = list(_state(model))
    with fastattn.patched(model) as report:
        assert all_served(report)
        assert isinstance(model.bert.encoder, UnpaddedEncoder)
    assert list(_state(model)) == before
    with pytest.raises(ZeroDivisionError), fastattn.patched(model):
        raise ZeroDivisionError
    assert list(_state(model)) == before


def test_the_context_manager_leaves_a_patched_model_patched(make_bert):
    model = make_bert(HEAD)
    fastattn.patch(model)
    before = list(_state(model))
    with fastattn.patched(model):
        assert list(_state(model)) == before
    assert list(_state(model)) == before


def test_the_report(make_bert):
    model = make_bert("BertForTokenClassification")
    report = fastattn.patch(model)
    assert report.ok and not report.left
    together = "query, key and value are projected together"
    projections = [
        f"bert.encoder.layer.*.attention.self (2)    BertSelfAttention  replaced  {together}"
    ]
    projections = projections if HAS_ATTENTION_INTERFACE else []
    assert str(report).splitlines() == [
        f"fastattn: {11 if projections else 9} replaced, 0 left",
        "bert.encoder                               BertEncoder        replaced  padding removed "
        "once around 2 layers, kept if padding rows have labels other than -100",
        "bert.encoder.layer.*.attention.self (2)    BertSelfAttention  replaced  runs "
        "fastattn.attention",
        *projections,
        "bert.encoder.layer.*.attention.output (2)  BertSelfOutput     replaced  bias, dropout, "
        "residual and LayerNorm in one operator",
        "bert.encoder.layer.*.intermediate (2)      BertIntermediate   replaced  bias and GELU in "
        "one operator",
        "bert.encoder.layer.*.output (2)            BertOutput         replaced  bias, dropout, "
        "residual and LayerNorm in one operator",
    ]


def test_deepcopy(make_bert, make_batch, run_step, assert_close):
    model = make_bert(HEAD, torch.float64)
    batch = make_batch(HEAD)
    fastattn.patch(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # a copy that runs on the original's weights would notice
    assert_close(run_step(twin, batch), run_step(make_bert(HEAD, torch.float64), batch))
    fastattn.unpatch(twin)
    assert isinstance(model.bert.encoder, UnpaddedEncoder)
    assert not isinstance(twin.bert.encoder, UnpaddedEncoder)
    assert not twin.bert._forward_hooks and model.bert._forward_hooks


def test_pickle(make_bert, make_batch, head):
    model = make_bert(head).eval()
    before = list(_state(model))
    fastattn.patch(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    batch = make_batch(head, labels=False)
    first = model(**batch).to_tuple()[0]
    assert torch.equal(twin(**batch).to_tuple()[0], first)
    fastattn.unpatch(twin)
    assert [x[1] for x in _state(twin)] == [x[1] for x in before]
    assert not any(x[6] or x[7] for x in _state(twin))


def test_hooks_after_loading_do_not_collide(make_bert):
    """The numbers of hooks start at 0 in every process; loaded hooks must not be overwritten."""
    model = make_bert(HEAD)
    fastattn.patch(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    torch.utils.hooks.RemovableHandle.next_id = 0
    twin = torch.load(buffer, weights_only=False)
    count = len(twin.bert._forward_hooks)
    for _ in range(50):
        twin.bert.register_forward_hook(lambda *_: None)
    assert len(twin.bert._forward_hooks) == count + 50


def test_save_pretrained_writes_an_ordinary_checkpoint(make_bert, make_batch, tmp_path):
    model = make_bert(HEAD).eval()
    fastattn.patch(model)
    model.save_pretrained(tmp_path)
    assert "fastattn" not in (tmp_path / "config.json").read_text()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["BertForSequenceClassification"]
    loaded = BertForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert not isinstance(loaded.bert.encoder, UnpaddedEncoder)
    batch = make_batch(HEAD)
    torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits)
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_hooks_of_others_see_the_padded_batch(make_bert, make_batch):
    model = make_bert(HEAD)
    shapes = []
    model.bert.encoder.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    model.bert.encoder.register_forward_hook(lambda *a: shapes.append(a[-1][0].shape))
    fastattn.patch(model)
    model(**make_batch(HEAD))
    assert shapes == [(4, 13, 64)] * 2
    fastattn.unpatch(model)
    assert len(model.bert.encoder._forward_hooks) == 1


def test_a_module_with_nothing_to_patch():
    with pytest.raises(
        fastattn.PatchError,
        match=r"patch: Linear must hold a model that fastattn knows, .* got no Transformers model",
    ):
        fastattn.patch(nn.Linear(2, 2))


def test_attention_of_others_is_named():
    model = nn.TransformerEncoderLayer(8, 2)
    with pytest.raises(fastattn.PatchError, match="not part of a Transformers model"):
        fastattn.patch(model)


def test_not_a_module():
    with pytest.raises(TypeError, match=r"patch: model must be a torch.nn.Module; got str. Pass"):
        fastattn.patch("bert-base-uncased")


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError, match=r'transformers must be installed.*pip install "fastattn\[finetune\]"'
    ):
        fastattn.patch(nn.Linear(2, 2))


def test_a_family_without_the_attention_interface():
    config = MegatronBertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = MegatronBertModel(config)
    before = list(_state(model))
    with pytest.raises(fastattn.PatchError, match="MegatronBertModel does not call the attention"):
        fastattn.patch(model)
    assert list(_state(model)) == before


def test_a_failing_patch_changes_nothing(make_bert):
    model = nn.ModuleList([make_bert("BertModel"), make_bert("BertModel")])
    fastattn.patch(model[1], fuse=False)
    before = list(_state(model))
    with pytest.raises(fastattn.PatchError):
        fastattn.patch(model)
    assert list(_state(model)) == before


def test_a_class_changed_by_somebody_else(make_bert):
    model = make_bert(HEAD)
    fastattn.patch(model)

    patched_class = type(model.bert.encoder)

    class Wrapped(patched_class):
        pass

    model.bert.encoder.__class__ = Wrapped
    with pytest.raises(
        fastattn.PatchError,
        match=r"unpatch: bert.encoder must still be a UnpaddedBertEncoder; got a Wrapped. Undo",
    ):
        fastattn.unpatch(model)
    model.bert.encoder.__class__ = patched_class
    fastattn.unpatch(model)


def _tiny(**settings: Any) -> dict[str, Any]:
    return dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, **settings
    )


def _decoder(**settings: Any) -> BertLMHeadModel:
    config = BertConfig(**_tiny(is_decoder=True, **settings))
    config._attn_implementation = "eager"
    return BertLMHeadModel(config)


@needs_interface
@pytest.mark.parametrize("cross_attention", [False, True])
def test_a_decoder_gets_the_attention_alone(make_mask, cross_attention):
    torch.manual_seed(0)
    stock = _decoder(add_cross_attention=cross_attention).double().eval()
    ours = copy.deepcopy(stock)
    report = fastattn.patch(ours)
    assert not report.ok
    assert len(_attention(report)) == (4 if cross_attention else 2)
    assert [x.reason for x in report.left] == [
        "not unpadded: a decoder's masks and caches are laid out for the padded batch"
    ]
    mask = make_mask("right")
    batch = dict(input_ids=torch.randint(1, 50, (4, 13)), attention_mask=mask, use_cache=False)
    if cross_attention:
        batch["encoder_hidden_states"] = torch.randn(4, 7, 16, dtype=torch.float64)
        batch["encoder_attention_mask"] = make_mask("left", seqlen=7)
    rows = mask.bool()
    torch.testing.assert_close(ours(**batch).logits[rows], stock(**batch).logits[rows])


@pytest.mark.skipif(HAS_ATTENTION_INTERFACE, reason="served from Transformers 5 on")
def test_a_decoder_is_left_by_transformers_4():
    report = fastattn.patch(_decoder())
    reasons = {x.reason for x in report.left if x.name.endswith(".self")}
    assert reasons == {"a BERT decoder needs Transformers 5, where BERT has an attention interface"}


def _attention(report):
    return [x for x in report.replaced if x.reason == "runs fastattn.attention"]


@needs_interface
def test_encoder_and_decoder_of_one_model():
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**_tiny()), BertConfig(**_tiny(is_decoder=True, add_cross_attention=True))
    )
    torch.manual_seed(0)
    model = EncoderDecoderModel(config).double().eval()
    batch = dict(
        input_ids=torch.randint(1, 50, (2, 6)),
        attention_mask=torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]]),
        decoder_input_ids=torch.randint(1, 50, (2, 4)),
    )
    expected = model(**batch).logits
    report = fastattn.patch(model)
    assert len(_attention(report)) == 2 + 4
    assert [x.name for x in report.left] == ["decoder.bert.encoder"]
    torch.testing.assert_close(model(**batch).logits, expected)


def test_layers_of_ones_own_keep_their_padding(make_bert, make_batch):
    model = make_bert(HEAD, torch.float64).eval()
    batch = make_batch(HEAD)
    expected = model(**batch).logits

    class OwnLayer(type(model.bert.encoder.layer[1])):
        pass

    model.bert.encoder.layer[1].__class__ = OwnLayer
    report = fastattn.patch(model)
    assert [x.reason for x in report.left] == ["not unpadded: OwnLayer may need the padded batch"]
    torch.testing.assert_close(model(**batch).logits, expected)


def test_chunked_feed_forward_keeps_its_padding(make_bert):
    model = make_bert(HEAD, chunk_size_feed_forward=1)
    report = fastattn.patch(model)
    assert [x.layer for x in report.left] == ["BertEncoder"]
    assert "chunk_size_feed_forward" in report.left[0].reason


@pytest.mark.skipif(HAS_ATTENTION_INTERFACE, reason="gone from Transformers 5")
def test_relative_positions_are_left():
    config = BertConfig(**_tiny(position_embedding_type="relative_key"))
    config._attn_implementation = "eager"
    report = fastattn.patch(BertModel(config))
    reasons = {x.reason for x in report.left if x.name.endswith(".self")}
    assert reasons == {"position_embedding_type is relative_key, not absolute"}


@needs_interface
def test_other_models_get_the_attention_alone():
    torch.manual_seed(0)
    config = ErnieConfig(**_tiny(max_position_embeddings=20))
    config._attn_implementation = "eager"
    model = ErnieModel(config).double().eval()
    before = list(_state(model))
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    batch = dict(input_ids=torch.randint(4, 50, (2, 6)), attention_mask=mask)
    expected = model(**batch).last_hidden_state
    report = fastattn.patch(model)
    assert len(report.replaced) == 2
    assert [(x.name, x.reason) for x in report.left] == [
        ("", "encoder not unpadded: not yet supported for ErnieModel")
    ]
    torch.testing.assert_close(model(**batch).last_hidden_state, expected)
    fastattn.unpatch(model)
    assert list(_state(model)) == before


@pytest.mark.skipif(HAS_ATTENTION_INTERFACE, reason="unpadded from Transformers 5 on")
def test_models_that_are_unpadded_later():
    config = EsmConfig(**_tiny(max_position_embeddings=20, pad_token_id=1, mask_token_id=3))
    report = fastattn.patch(EsmModel(config))
    assert [x.reason for x in report.left] == [
        "encoder not unpadded: EsmModel needs a newer Transformers for that"
    ]


def test_patching_a_large_model_takes_no_time(make_bert):
    """24 layers, as BERT-large has, in 50 ms; the width is nothing to it."""
    model = make_bert(HEAD, num_hidden_layers=24)
    times_ms = []
    for _ in range(5):
        begin = time.perf_counter()
        fastattn.patch(model)
        times_ms.append(1e3 * (time.perf_counter() - begin))
        fastattn.unpatch(model)
    assert min(times_ms) <= 50


@needs_interface
def test_weights_are_refused_where_the_model_keeps_the_wish_to_itself():
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=20)
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config).eval()
    fastattn.patch(model)
    ids = torch.randint(0, 50, (1, 5))
    with pytest.raises(ValueError, match=r"output_attentions must be False.*unpatch"):
        model(ids, output_attentions=True)
    model.set_attn_implementation("eager")
    assert len(model(ids, output_attentions=True).attentions) == 1
    fastattn.unpatch(model)
    assert not any(x._forward_pre_hooks for x in model.modules())


@needs_interface
def test_a_layer_with_attention_of_its_own_is_named():
    """In a model that calls the interface elsewhere."""
    vision = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = SiglipVisionModel(SiglipVisionConfig(**vision, image_size=8, patch_size=4)).eval()
    pixels = torch.randn(2, 3, 8, 8)
    expected = model(pixels).pooler_output
    report = fastattn.patch(model)
    assert [x.layer for x in report.replaced] == ["SiglipAttention"]
    own = [x for x in report.left if x.reason == "computes attention with code of its own"]
    assert [x.layer for x in own] == ["MultiheadAttention"]
    torch.testing.assert_close(model(pixels).pooler_output, expected)


@needs_interface
def test_attention_that_would_be_refused_is_left():
    """At every call, so it is left when the model is patched."""
    sizes = dict(num_key_value_heads=1, intermediate_size=8, num_local_experts=2, head_dim=8)
    sinks = GptOssModel(GptOssConfig(**_tiny(), **sizes, num_experts_per_tok=1))
    with pytest.raises(fastattn.PatchError, match="got attention sinks are not served"):
        fastattn.patch(sinks)
    dims = dict(q_lora_rank=4, kv_lora_rank=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4)
    experts = dict(intermediate_size=8, moe_intermediate_size=8, n_routed_experts=4, n_group=2)
    config = DeepseekV3Config(**_tiny(), **dims, **experts, num_experts_per_tok=2, topk_group=1)
    with pytest.raises(fastattn.PatchError, match="another head_dim than keys, 4 and 8, are not"):
        fastattn.patch(DeepseekV3Model(config))
