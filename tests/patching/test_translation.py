"""Encoders beside decoders: they run without padding, and the whole gives what stock gives.

Float32 beside eager attention, dropout's law and every way of generating are in
tests/patching/test_all_models.py, for these models as for all others.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastattn
from fastattn.coverage.cases import CASES, Case, make_batch, make_mask
from fastattn.coverage.measure import step
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE
from fastattn.patching.fusions import FUSIONS

pytestmark = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="in Transformers 4.x these get attention alone"
)
TRANSLATORS = [case for case in CASES if case.name in ("T5", "Marian", "BART")]
HEADS = [
    (case, name)
    for case in TRANSLATORS
    if HAS_ATTENTION_INTERFACE
    for name in case.classes()
    if "CausalLM" not in name
]
PADDINGS = ("right", "left", "interior", "absent")
NUM_LAYERS = 2
each_case = pytest.mark.parametrize("case", TRANSLATORS, ids=lambda case: case.name)
each_head = pytest.mark.parametrize(("case", "head"), HEADS, ids=lambda x: getattr(x, "name", x))


def body_name(case: Case) -> str:
    """The name of the model without a head."""
    return f"{case.prefix}Model"


def pair(case: Case, head: str, **patch: Any) -> tuple[Any, Any]:
    """A stock model in float64, on eager attention, and its patched twin."""
    stock = case.make(head)
    stock.set_attn_implementation("eager")
    ours = copy.deepcopy(stock)
    fastattn.patch(ours, **patch)
    return stock, ours


def layers_of(model: Any) -> Any:
    """The layers of the encoder in a model."""
    encoder = next(x for name, x in model.named_modules() if name.split(".")[-1] == "encoder")
    return getattr(encoder, "layers", None) or encoder.block


def widths_of(model: Any, run: Any) -> list[tuple[int, ...]]:
    """Shapes of the hidden states that each layer of the encoder returns."""
    shapes: list[tuple[int, ...]] = []

    def record(layer: nn.Module, args: Any, outputs: Any) -> None:
        states = outputs[0] if isinstance(outputs, tuple) else outputs
        shapes.append(tuple(states.shape[:2]))

    handles = [layer.register_forward_hook(record) for layer in layers_of(model)]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return shapes


def flat(outputs: Any, mask: Tensor | None) -> list[Tensor]:
    """All tensors of a model's outputs, rows of padding zero."""
    found = []
    for value in outputs.values():
        for x in value if isinstance(value, tuple) else (value,):
            if not isinstance(x, Tensor):
                continue
            if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape:
                x = x * (mask != 0)[..., None]
            found.append(x)
    return found


def assert_same_step(stock: Any, ours: Any, batch: dict[str, Any], mask: Any) -> None:
    """Outputs and all gradients, to float64 rounding."""
    expected, result = step(stock, batch, mask), step(ours, batch, mask)
    for x, y in zip(expected, result, strict=True):
        assert x.keys() == y.keys()
        largest = max(float(z.abs().max()) for z in x.values())
        for name, z in x.items():
            torch.testing.assert_close(y[name], z, atol=1e-13 * largest, rtol=1e-11)


@each_head
def test_padding_is_removed_once(case, head):
    _, ours = pair(case, head)
    for padding in PADDINGS:
        batch, mask = make_batch(case, ours, padding), make_mask(padding)
        kept = mask is None or (padding == "interior" and case.name == "T5")
        shape = tuple(batch["input_ids"].shape) if kept else (1, int(mask.sum()))
        assert widths_of(ours, lambda batch=batch: ours(**batch)) == [shape] * NUM_LAYERS


@each_head
def test_hidden_states_and_attention_weights(case, head):
    stock, ours = (x.eval() for x in pair(case, head))
    for padding in PADDINGS:
        batch, mask = make_batch(case, stock, padding), make_mask(padding)
        batch |= {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            expected, result = stock(**batch), ours(**batch)
        assert expected.keys() == result.keys()
        for name in expected:
            if name.endswith("attentions") and mask is not None:
                continue  # rows of padding, which are zero in ours
            pairs = zip(
                flat({name: result[name]}, mask), flat({name: expected[name]}, mask), strict=True
            )
            for x, y in pairs:
                torch.testing.assert_close(x, y)


@each_case
def test_attention_weights_of_tokens(case):
    stock, ours = (x.eval() for x in pair(case, body_name(case)))
    batch, mask = make_batch(case, stock, "right"), make_mask("right")
    expected, result = (x(**batch, output_attentions=True) for x in (stock, ours))
    is_query = mask.bool()[:, None, :, None]
    for x, y in zip(result.encoder_attentions, expected.encoder_attentions, strict=True):
        torch.testing.assert_close(x * is_query, y * is_query)
    for x, y in zip(result.cross_attentions, expected.cross_attentions, strict=True):
        torch.testing.assert_close(x, y)


@each_case
@pytest.mark.parametrize("padding", ["right", "left", "interior"])
def test_embeddings_of_ones_own(case, padding):
    stock, ours = pair(case, body_name(case))
    batch, mask = make_batch(case, stock, padding), make_mask(padding)
    embed = stock.get_input_embeddings()
    batch["inputs_embeds"] = embed(batch.pop("input_ids")).detach()
    assert_same_step(stock, ours, batch, mask)


@each_case
@pytest.mark.parametrize("fuse", [False, "qkv", "layer_norm", "gelu"], ids=str)
def test_every_choice_gives_the_same_results(case, fuse):
    stock, ours = (case.make(body_name(case)) for _ in range(2))
    report = fastattn.patch(ours, fuse=fuse)
    reasons = {x.reason for x in report.replaced}
    possible = {"qkv"} if case.name == "T5" else {"qkv", "layer_norm", "gelu"}
    for name, text in FUSIONS.items():
        assert (text in reasons) == (name == fuse and name in possible)
    for padding in ("right", "absent"):
        batch = make_batch(case, stock, padding)
        assert_same_step(stock, ours, batch, make_mask(padding))


@each_case
def test_padding_stays_where_it_is_wanted(case):
    _, ours = pair(case, body_name(case), unpad=False)
    batch = make_batch(case, ours, "right")
    shape = tuple(batch["input_ids"].shape)
    assert widths_of(ours, lambda: ours(**batch)) == [shape] * NUM_LAYERS


@each_case
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")  # the reentrant way's own
def test_gradient_checkpointing(case, use_reentrant):
    results = []
    for checkpointing in (False, True):
        model = case.with_dropout(0.1).make(body_name(case))
        fastattn.patch(model)
        if checkpointing:
            # Its name from Transformers 5.20 on.
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)({"use_reentrant": use_reentrant})
        torch.manual_seed(1)
        batch = make_batch(case, model, "right") | {"use_cache": False}
        results.append(step(model, batch, make_mask("right"))[1])
    assert results[0].keys() == results[1].keys()
    # The reentrant way adds the gradients of what is used twice in another order.
    largest = max(float(x.abs().max()) for x in results[0].values())
    allowed = 1e-14 * largest if use_reentrant else 0.0
    for name, x in results[0].items():
        assert float((x - results[1][name]).abs().max()) <= allowed, name


@each_case
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_generation_runs_the_encoder_once(case, num_beams, padding):
    head = next(x for x in case.classes() if case.generates(x))
    stock, ours = (x.eval() for x in pair(case, head))
    batch, mask = make_batch(case, stock, padding), make_mask(padding)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    settings = dict(max_new_tokens=6, do_sample=False, num_beams=num_beams)
    tokens: list[Tensor] = []
    widths = widths_of(ours, lambda: tokens.append(ours.generate(**inputs, **settings)))
    assert widths == [(1, int(mask.sum()))] * NUM_LAYERS
    assert torch.equal(tokens[0], stock.generate(**inputs, **settings))


@each_case
def test_generation_with_labels_at_hand(case):
    # Seq2SeqTrainer hands the whole batch to generate(), and that hands labels to the encoder.
    head = next(x for x in case.classes() if case.generates(x))
    stock, ours = (x.eval() for x in pair(case, head))
    batch = make_batch(case, stock, "right")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs |= {"labels": batch["input_ids"], "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(ours.generate(**inputs), stock.generate(**inputs))


@each_case
def test_unpatch_and_pickle(case):
    model = case.make(body_name(case)).eval()
    classes, keys = [type(x) for x in model.modules()], list(model.state_dict())
    batch = make_batch(case, model, "right")
    fastattn.patch(model)
    assert list(model.state_dict()) == keys
    expected = model(**batch)[0]
    fastattn.patch(model)  # again changes nothing
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        assert torch.equal(twin(**batch)[0], expected)
        fastattn.unpatch(twin)
        assert [type(x) for x in twin.modules()] == classes
        assert not any(x._forward_pre_hooks for x in twin.modules())


@each_case
def test_another_attention_while_patched(case):
    stock, ours = (x.eval() for x in pair(case, body_name(case)))
    batch = make_batch(case, stock, "right")
    for model in (stock, ours):
        model.set_attn_implementation("eager")
    torch.testing.assert_close(ours(**batch)[0], stock(**batch)[0])
    shape = tuple(batch["input_ids"].shape)
    assert widths_of(ours, lambda: ours(**batch)) == [shape] * NUM_LAYERS


@each_case
def test_masks_that_say_more_keep_every_row(case):
    stock, ours = (x.eval() for x in pair(case, body_name(case)))
    stock.set_attn_implementation("sdpa")  # which takes a mask of booleans
    batch, mask = make_batch(case, stock, "right"), make_mask("right")
    with torch.no_grad():
        encoders = stock.encoder, ours.encoder
        full = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        expected, result = (x(batch["input_ids"], attention_mask=full)[0] for x in encoders)
    torch.testing.assert_close(result, expected)


@each_case
def test_packed_sequences_are_refused(case):
    _, ours = pair(case, body_name(case))
    batch = make_batch(case, ours, "absent") | {"cu_seq_lens_q": torch.tensor([0, 11])}
    with pytest.raises(ValueError, match=r"cu_seq_lens_q must be left out.*padded batches"):
        ours(**batch)


@each_case
def test_a_layer_of_ones_own_keeps_the_padded_batch(case):
    model = case.make(body_name(case))
    layer = layers_of(model)[0]
    layer.__class__ = type("Own", (type(layer),), {})
    report = fastattn.patch(model)
    reason = "not unpadded: Own may need the padded batch"
    assert [x.reason for x in report.left if x.name == "encoder"] == [reason]


def test_t5_keeps_padding_that_has_labels():
    case = next(x for x in TRANSLATORS if x.name == "T5")
    stock, ours = pair(case, "T5ForTokenClassification")
    batch, mask = make_batch(case, stock, "right"), make_mask("right")
    labels = torch.arange(mask.numel()).view_as(mask) % 2
    shapes = {}
    for name, given in (("some", labels), ("none", labels.masked_fill(mask == 0, -100))):
        labelled = batch | {"labels": given}
        assert_same_step(stock, ours, labelled, mask)
        shapes[name] = set(widths_of(ours, lambda x=labelled: ours(**x)))
    assert shapes == {"some": {tuple(mask.shape)}, "none": {(1, int(mask.sum()))}}


def test_a_bare_encoder_keeps_a_first_row_that_a_head_may_read():
    case = next(x for x in TRANSLATORS if x.name == "BART")
    stock, ours = (case.make("BartModel").encoder.eval() for _ in range(2))
    fastattn.patch(ours)
    batch = make_batch(case, stock, "left")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(ours(**inputs)[0], stock(**inputs)[0])


def test_layers_that_are_skipped_at_random():
    case = next(x for x in TRANSLATORS if x.name == "BART")
    stock, ours = pair(case, "BartModel")
    mask = make_mask("right")
    batch = make_batch(case, stock, "right")
    numbers = set()
    for model in (stock, ours):
        model.encoder.layerdrop = 0.5
    for seed in range(8):
        torch.manual_seed(seed)
        numbers.add(len(widths_of(ours, lambda: ours.train()(**batch))))
        results = []
        for model in (stock, ours):
            torch.manual_seed(seed)
            results.append(flat(model.train()(**batch), mask))
        for x, y in zip(*results, strict=True):
            torch.testing.assert_close(y, x)
    assert numbers == {0, 1, 2}


def test_padded_and_packed_drop_the_same_weights():
    case = next(x for x in TRANSLATORS if x.name == "BART")
    results = []
    for unpad in (None, False):
        model = case.make("BartModel")
        fastattn.patch(model, unpad=unpad)
        for layer in layers_of(model):
            layer.self_attn.dropout = 0.2
        torch.manual_seed(7)
        results.append(step(model, make_batch(case, model, "right"), make_mask("right")))
    for x, y in zip(*results, strict=True):
        for name, z in x.items():
            torch.testing.assert_close(y[name], z)


def test_other_activations_are_not_fused():
    case = next(x for x in TRANSLATORS if x.name == "Marian")
    relu = Case(case.name, case.prefix, case.settings | {"activation_function": "relu"})
    stock, ours = pair(relu, "MarianModel")
    report = fastattn.patch(copy.deepcopy(stock))
    assert "not fused: its activation, ReLU, is not the exact GELU" in {
        x.reason for x in report.left
    }
    assert_same_step(stock, ours, make_batch(relu, stock, "right"), make_mask("right"))


@pytest.mark.parametrize("name", ["Marian", "BART"])
def test_other_peoples_modules_are_called(name):
    case, calls = next(x for x in TRANSLATORS if x.name == name), []
    models = pair(case, body_name(case))
    for model in models:
        layer = layers_of(model)[0]
        for part in (layer.self_attn, layer.self_attn.out_proj, layer.fc1, layer.fc2):
            part.register_forward_hook(lambda part, *_: calls.append(part))
        layer.final_layer_norm.register_forward_hook(lambda part, *_: calls.append(part))
    batch, mask = make_batch(case, models[0], "right"), make_mask("right")
    assert_same_step(*models, batch, mask)
    assert len(calls) == 10


@each_case
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, about graph breaks and deprecations
def test_torch_compile(case):
    stock, ours = pair(case, body_name(case))
    compiled = torch.compile(ours, backend="eager")
    for padding in ("right", "absent"):
        batch = make_batch(case, stock, padding) | {"use_cache": False}
        torch.testing.assert_close(compiled(**batch)[0], stock(**batch)[0])
    compiled(**batch)[0].sum().backward()


@each_case
def test_export_of_one_sequence(case):
    """Whose number of tokens is unknown, and may be the length of the batch."""
    _, ours = pair(case, body_name(case))
    encoder = ours.eval().get_encoder()
    ids, mask = torch.randint(3, 50, (1, 9)), torch.ones(1, 9, dtype=torch.long)
    shapes = {name: {1: torch.export.Dim.AUTO} for name in ("input_ids", "attention_mask")}
    program = torch.export.export(
        encoder,
        kwargs={"input_ids": ids, "attention_mask": mask},
        args=(),
        dynamic_shapes=shapes,
        strict=False,
    ).module()
    for length in (9, 7):
        mask[:, length:] = 0
        for size in (9, 8):
            batch = {"input_ids": ids[:, :size], "attention_mask": mask[:, :size]}
            torch.testing.assert_close(program(**batch)[0], encoder(**batch)[0])


@each_case
def test_bf16_autocast(case):
    stock = case.make(body_name(case)).float()
    stock.set_attn_implementation("eager")
    ours = copy.deepcopy(stock)
    fastattn.patch(ours)
    batch, mask = make_batch(case, stock, "right"), make_mask("right")
    truth = step(stock, batch, mask)[1]
    with torch.autocast("cpu", torch.bfloat16):
        grads = step(stock, batch, mask)[1], step(ours, batch, mask)[1]
    # Rounding to 8 bits at every step: compare as a whole, not number by number.
    stock_error, error = (
        sum(float((x[name] - g).square().sum()) for name, g in truth.items()) for x in grads
    )
    assert error <= 2 * stock_error
