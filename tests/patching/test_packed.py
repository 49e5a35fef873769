"""Batches without padding give what the padded batch gives, in every head that takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import DataCollatorWithFlattening

import fastattn
from fastattn.data.packing import PackedCollator
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

HEAD = "BertForSequenceClassification"
ROW_HEADS = ("ForTokenClassification", "ForMaskedLM", "ForPreTraining")
REFUSED = ("MultipleChoice", "ForCausalLM", "LMHeadModel")
# What drops all rows by torch's own dropout, in a patched model too.
TORCH_DROPOUT = ("embeddings.dropout", "embeddings.drop", "out_drop")
needs_interface = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="heads of Transformers 4.x hand down no keywords"
)


def _features(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The sequences of a padded batch, as a tokenizer and a data set give them."""
    mask = batch["attention_mask"].bool()
    return [
        {
            name: (x[i, mask[i]] if x.ndim > 1 else x[i]).tolist()
            for name, x in batch.items()
            if name != "attention_mask"
        }
        for i in range(len(mask))
    ]


def _packed(batch: dict[str, Any], head: str = HEAD, **options: Any) -> dict[str, Any]:
    labels = "token" if head.endswith(ROW_HEADS) else "sequence"
    return PackedCollator(labels, **options)(_features(batch))


def _grads(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: x.grad for name, x in model.named_parameters() if x.grad is not None}


def _assert_same_step(
    stock: Tensor, stock_model: Any, ours: Tensor, our_model: Any, tol: float = 1e-11
) -> None:
    stock.backward()
    ours.backward()
    tolerance = dict(rtol=tol, atol=tol)
    torch.testing.assert_close(ours, stock, **tolerance)
    torch.testing.assert_close(_grads(our_model), _grads(stock_model), **tolerance)


def _check_head(make_bert: Any, make_batch: Any, name: str, fuse: bool = True) -> None:
    settings: dict[str, Any] = {}
    if name == "DebertaV2ForSequenceClassification":  # which otherwise rounds logits to float32
        settings["problem_type"] = "single_label_classification"
    stock, ours = (make_bert(name, torch.float64, **settings) for _ in range(2))
    fastattn.patch(ours, fuse=fuse)
    batch = make_batch(name)
    packed = _packed(batch, name)
    outputs = ours(**packed)
    if name.endswith("QuestionAnswering"):
        alone = [
            stock(
                **{
                    key: x[i : i + 1, :length] if x.ndim > 1 else x[i : i + 1]
                    for key, x in batch.items()
                }
            ).loss
            for i, length in enumerate(batch["attention_mask"].sum(1))
        ]
        # A span outside of its sequence is not scored.
        expected = torch.stack([x for x in alone if not x.isnan()]).mean()
        assert outputs.start_logits.shape == (1, 28)
        _assert_same_step(expected, stock, outputs.loss, ours)
        return
    padded = stock(**batch)
    if "loss" in padded:
        if not name.endswith(ROW_HEADS):
            torch.testing.assert_close(outputs.logits, padded.logits)
        losses = [padded.loss, outputs.loss]
        if name == "ModernBertForMaskedLM":  # which rounds its logits to float32
            torch.testing.assert_close(outputs.loss, padded.loss)
            labels = batch["labels"].flatten()
            rows = labels != -100
            given = (
                padded.logits.flatten(0, 1)[rows],
                outputs.logits[0][packed["labels"][0] != -100],
            )
            losses = [F.cross_entropy(logits, labels[rows]) for logits in given]
        _assert_same_step(losses[0], stock, losses[1], ours)
        return
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(outputs.last_hidden_state[0], padded.last_hidden_state[mask])
    losses = [padded.last_hidden_state[mask].square().sum(), outputs[0].square().sum()]
    if "pooler_output" in padded:
        torch.testing.assert_close(outputs.pooler_output, padded.pooler_output)
        losses = [x + y.pooler_output.sum() for x, y in zip(losses, (padded, outputs), strict=True)]
    _assert_same_step(losses[0], stock, losses[1], ours)


@needs_interface
@pytest.mark.parametrize("fuse", [True, False])
def test_every_head_of_bert(make_bert, make_batch, head, fuse):
    if head.endswith(REFUSED):
        pytest.skip("takes no packed batches")
    _check_head(make_bert, make_batch, head, fuse)


@needs_interface
def test_every_head_of_the_other_families(make_bert, make_batch, family_head):
    if family_head.endswith(REFUSED):
        pytest.skip("takes no packed batches")
    _check_head(make_bert, make_batch, family_head)


@needs_interface
def test_means_of_sequences(make_bert, make_batch):
    """ModernBERT's published classifiers read these, and not first rows."""
    name = "ModernBertForSequenceClassification"
    stock, ours = (make_bert(name, torch.float64, classifier_pooling="mean") for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch(name)
    padded, packed = stock(**batch), ours(**_packed(batch))
    torch.testing.assert_close(packed.logits, padded.logits)
    _assert_same_step(padded.loss, stock, packed.loss, ours)


@needs_interface
@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_masked_tokens_count_in_their_sequence(make_bert, make_batch, positions):
    """ESM scales a sequence by how many of its tokens are masked; here 2, 0, 1 and 0."""
    name = "EsmForTokenClassification"
    stock, ours = (
        make_bert(name, torch.float64, position_embedding_type=positions) for _ in range(2)
    )
    fastattn.patch(ours)
    batch = make_batch(name)
    batch["input_ids"][batch["input_ids"] == 3] = 4
    batch["input_ids"][[0, 0, 2], [1, 4, 2]] = 3
    packed = _packed(batch, name)
    _assert_same_step(stock(**batch).loss, stock, ours(**packed).loss, ours)
    expected = ours(**packed).logits
    packed["input_ids"] = F.pad(packed["input_ids"], (0, 5), value=3)  # of no sequence
    del packed["labels"]
    torch.testing.assert_close(ours(**packed).logits[:, :28], expected)
    stock, ours = (make_bert(name, torch.float64, token_dropout=False) for _ in range(2))
    fastattn.patch(ours)
    packed = _packed(batch, name)
    _assert_same_step(stock(**batch).loss, stock, ours(**packed).loss, ours)


@needs_interface
def test_collators_know_which_models_take_them(make_bert, family):
    model = make_bert(f"{family}ForMaskedLM")
    fastattn.patch(model, unpad=False)
    with pytest.raises(ValueError, match="PackedCollator: model must be patched, with its padding"):
        PackedCollator(model=model)
    packed = {"input_ids": torch.ones(1, 4).long(), "cu_seq_lens_q": torch.tensor([0, 2, 4])}
    with pytest.raises(ValueError, match="cu_seq_lens_q must be given to a model whose padding is"):
        model(**packed)
    fastattn.unpatch(model)
    fastattn.patch(model)
    PackedCollator(model=model)


def _step(model: Any, batch: dict[str, Any], total: int = 28) -> tuple[Tensor, Any]:
    """The loss, and what a head gives for the first rows; a model without one gets a loss."""
    torch.manual_seed(5)
    outputs = model(**batch)
    tensors = {name: x for name, x in outputs.items() if isinstance(x, Tensor)}
    assert all(x.isfinite().all() for x in tensors.values())
    found = {
        name: x[:, :total] if x.ndim > 1 and x.shape[0] == 1 else x for name, x in tensors.items()
    }
    if "loss" in found:
        return found.pop("loss"), found
    return torch.stack([x.square().sum() for x in found.values()]).sum(), found


def _check_tokens_of_no_sequence(
    make_bert: Any, make_batch: Any, name: str, fuse: bool = True, **dropout: float
) -> None:
    """72 of them, more than the model has positions."""
    models = [make_bert(name, torch.float64, **dropout) for _ in range(2)]
    for model in models:
        fastattn.patch(model, fuse=fuse)
        for part, module in model.named_modules():
            if isinstance(module, torch.nn.Dropout) and part.endswith(TORCH_DROPOUT):
                module.p = 0.0  # the number of rows decides what is drawn after it
    batch = make_batch(name)
    plain, filled = _packed(batch, name), _packed(batch, name, pad_to_multiple_of=100)
    assert filled["input_ids"].shape == (1, 100) and filled["max_length_q"] == 64
    (expected, outputs), (loss, filled_outputs) = (
        _step(model, given) for model, given in zip(models, (plain, filled), strict=True)
    )
    torch.testing.assert_close(filled_outputs, outputs)
    # As in stock, some losses are of float32, whatever the model's dtype.
    tol = 1e-11 if loss.dtype == torch.float64 else 1e-6
    _assert_same_step(expected, models[0], loss, models[1], tol)


@needs_interface
@pytest.mark.parametrize("fuse", [True, False])
def test_tokens_of_no_sequence_in_every_head_of_bert(make_bert, make_batch, head, fuse):
    if head.endswith(REFUSED):
        pytest.skip("takes no packed batches")
    _check_tokens_of_no_sequence(make_bert, make_batch, head, fuse)


@needs_interface
def test_tokens_of_no_sequence_in_the_other_families(make_bert, make_batch, family_head):
    if family_head.endswith(REFUSED):
        pytest.skip("takes no packed batches")
    _check_tokens_of_no_sequence(make_bert, make_batch, family_head)


@needs_interface
@pytest.mark.parametrize("end", ["ForSequenceClassification", "ForTokenClassification"])
def test_tokens_of_no_sequence_leave_dropout_as_it_is(make_bert, make_batch, any_family, end):
    """Our bits are by row, or by row of a sequence, and these are the last rows."""
    if not hasattr(transformers, any_family + end):
        pytest.skip("there is no such head")
    dropout = {"attention_probs_dropout_prob": 0.3}
    if any_family not in ("Esm", "ModernBert"):  # whose hidden states torch drops
        dropout["hidden_dropout_prob"] = 0.3
    _check_tokens_of_no_sequence(make_bert, make_batch, any_family + end, **dropout)


@needs_interface
def test_tokens_of_no_sequence_under_means(make_bert, make_batch):
    """ModernBERT's published classifiers read the mean of a sequence's rows."""
    name = "ModernBertForSequenceClassification"
    plain, filled = (make_bert(name, torch.float64, classifier_pooling="mean") for _ in range(2))
    batch = make_batch(name)
    losses = []
    for model, options in ((plain, {}), (filled, {"pad_to_multiple_of": 64})):
        fastattn.patch(model)
        losses.append(model(**_packed(batch, name, **options)).loss)
    _assert_same_step(losses[0], plain, losses[1], filled)


@needs_interface
def test_tokens_of_no_sequence_have_no_gradient(make_bert, make_batch):
    """Neither have their embeddings, nor what hidden states of any layer add up to."""
    model = make_bert("BertForTokenClassification")
    fastattn.patch(model)
    packed = _packed(make_batch("BertForTokenClassification"), "ForTokenClassification")
    filled = _packed(
        make_batch("BertForTokenClassification"), "ForTokenClassification", pad_to_multiple_of=32
    )
    assert packed["input_ids"].shape == (1, 28)
    embeds = model.bert.embeddings.word_embeddings(filled.pop("input_ids"))
    outputs = model(**filled, inputs_embeds=embeds, output_hidden_states=True)
    states = (embeds, *outputs.hidden_states)
    for grad in torch.autograd.grad(outputs.loss, states):
        assert grad[:, :28].any() and not grad[:, 28:].any()


@needs_interface
@pytest.mark.parametrize("family", ["MPNet", "DebertaV2", "ModernBert"])
def test_longest_length_is_a_bound_and_outputs_are_complete(make_bert, make_batch, family):
    """Hidden states are those of all tokens, whatever the head reads, and tuples hold the same."""
    name = f"{family}ForSequenceClassification"
    stock, ours = make_bert(name).eval(), make_bert(name).eval()
    fastattn.patch(ours)
    batch = make_batch(name, labels=False)
    packed = _packed(batch) | {"max_length_q": 50}
    expected = stock(**batch, output_hidden_states=True)
    actual = ours.base_model(**packed, output_hidden_states=True)
    mask = batch["attention_mask"].bool()
    for ours_state, stock_state in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours_state[0], stock_state[mask], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(ours(**packed).logits, expected.logits, atol=2e-5, rtol=2e-5)
    (logits,) = ours(**packed, return_dict=False)
    torch.testing.assert_close(logits, ours(**packed).logits)


@needs_interface
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_labels_that_are_no_class(make_bert, make_batch, problem):
    settings = dict(num_labels=1 if problem == "regression" else 3, problem_type=problem)
    stock, ours = (make_bert(HEAD, torch.float64, **settings) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch(HEAD)
    labels = torch.rand((4,) if problem == "regression" else (4, 3))
    packed = _packed(batch)
    features = [{**x, "labels": y.tolist()} for x, y in zip(_features(batch), labels, strict=True)]
    assert torch.equal(PackedCollator()(features)["labels"], labels)
    packed["labels"] = batch["labels"] = labels.double()
    _assert_same_step(stock(**batch).loss, stock, ours(**packed).loss, ours)


@needs_interface
def test_a_tuple_instead_of_an_output_object(make_bert, make_batch):
    for name in ("BertModel", HEAD, "BertForQuestionAnswering"):
        model = make_bert(name).eval()
        fastattn.patch(model)
        packed = _packed(make_batch(name))
        expected = model(**packed).to_tuple()
        torch.testing.assert_close(model(**packed, return_dict=False), expected)


@needs_interface
def test_hidden_states_are_those_of_all_tokens(make_bert, make_batch):
    stock, ours = make_bert(HEAD).eval(), make_bert(HEAD).eval()
    fastattn.patch(ours)
    batch = make_batch(HEAD)
    expected = stock(**batch, output_hidden_states=True)
    packed = _packed(batch)
    with pytest.raises(ValueError, match="output_hidden_states must be False for packed sequences"):
        ours(**packed, output_hidden_states=True)
    del packed["labels"]
    actual = ours.base_model(**packed, output_hidden_states=True)
    mask = batch["attention_mask"].bool()
    for ours_state, stock_state in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours_state[0], stock_state[mask])


@needs_interface
def test_a_hook_on_the_last_layer_sees_all_tokens(make_bert, make_batch):
    model = make_bert(HEAD).eval()
    fastattn.patch(model)
    packed = _packed(make_batch(HEAD))
    expected = model(**packed).logits
    shapes = []
    model.bert.encoder.layer[-1].register_forward_hook(lambda *a: shapes.append(a[-1].shape))
    torch.testing.assert_close(model(**packed).logits, expected)
    assert shapes == [(1, 28, 64)]


@needs_interface
def test_embeddings_instead_of_ids(make_bert, make_batch):
    model = make_bert("RobertaForSequenceClassification").eval()
    fastattn.patch(model)
    packed = _packed(make_batch("RobertaForSequenceClassification"))
    expected = model(**packed).logits
    embeds = model.roberta.embeddings.word_embeddings(packed.pop("input_ids"))
    torch.testing.assert_close(model(**packed, inputs_embeds=embeds).logits, expected)


@needs_interface
def test_without_the_longest_length_and_with_rows_of_no_sequence(make_bert, make_batch):
    """Rows past the last sequence, as a fixed shape needs them, change nothing."""
    model = make_bert(HEAD).eval()
    fastattn.patch(model)
    packed = _packed(make_batch(HEAD))
    expected = model(**packed).logits
    del packed["max_length_q"], packed["max_length_k"]
    torch.testing.assert_close(model(**packed).logits, expected)
    for name in ("input_ids", "token_type_ids"):
        packed[name] = torch.nn.functional.pad(packed[name], (0, 4))
    torch.testing.assert_close(model(**packed).logits, expected)


@needs_interface
def test_batches_of_transformers_own_collator(make_bert, make_batch):
    name = "BertForTokenClassification"
    stock, ours = make_bert(name).eval(), make_bert(name).eval()
    fastattn.patch(ours)
    batch = make_batch(name)
    packed = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(_features(batch))
    del batch["token_type_ids"]  # which it leaves out
    batch["labels"][:, 0] = -100
    torch.testing.assert_close(ours(**packed).loss, stock(**batch).loss)


@needs_interface
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(make_bert, make_batch, use_reentrant):
    stock, ours = make_bert(HEAD, torch.float64), make_bert(HEAD, torch.float64)
    fastattn.patch(ours)
    ours.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    batch = make_batch(HEAD)
    _assert_same_step(stock(**batch).loss, stock, ours(**_packed(batch)).loss, ours)


@needs_interface
def test_dropout_draws_the_bits_of_the_padded_batch(make_bert, make_batch):
    """Attention's do, whose rule counts rows of a sequence; so the loss is the very same."""
    model = make_bert(HEAD, attention_probs_dropout_prob=0.5)
    fastattn.patch(model)
    batch = make_batch(HEAD)
    losses = []
    for given in (batch, _packed(batch)):
        torch.manual_seed(5)
        losses.append(model(**given).loss)
    torch.testing.assert_close(*losses)


@needs_interface
def test_what_is_no_packed_batch_is_refused(make_bert, make_batch):
    model = make_bert(HEAD)
    fastattn.patch(model)
    batch = make_batch(HEAD)
    packed = _packed(batch)
    with pytest.raises(ValueError, match=r"attention_mask must not come with cu_seq_lens_q"):
        model(**packed, attention_mask=torch.ones(1, 28))
    padded = {**packed, "input_ids": batch["input_ids"], "token_type_ids": None}
    with pytest.raises(ValueError, match=r"must come with input_ids of shape \(1, total\); got"):
        model(**padded)
    for wrong in ([0, 13, 13, 28], [0, 40], [1, 28], [0]):
        with pytest.raises(
            ValueError, match="must rise from 0 to at most the number of tokens, 28"
        ):
            model(**{**packed, "cu_seq_lens_q": torch.tensor(wrong)})
    choice = make_bert("BertForMultipleChoice")
    fastattn.patch(choice)
    with pytest.raises(ValueError, match=r"input_ids must be .* got packed sequences"):
        choice(**packed)


@needs_interface
def test_positions_that_are_paddings_are_refused(make_bert):
    name = "RobertaForTokenClassification"
    model = make_bert(name)
    fastattn.patch(model)
    features = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    with pytest.raises(ValueError, match="position_ids must begin at 2, after padding's; got 0"):
        model(**collator(features))


@pytest.mark.skipif(HAS_ATTENTION_INTERFACE, reason="served from Transformers 5 on")
def test_transformers_4_is_refused(make_bert, make_batch):
    model = make_bert(HEAD)
    fastattn.patch(model)
    with pytest.raises(ValueError, match=r"cu_seq_lens_q must be left out.*Transformers 4\."):
        model(**_packed(make_batch(HEAD)))


@needs_interface
def test_unpatch_takes_it_back(make_bert):
    model = make_bert(HEAD)
    fastattn.patch(model)
    fastattn.unpatch(model)
    assert not any(x._forward_pre_hooks or x._forward_hooks for x in model.modules())
