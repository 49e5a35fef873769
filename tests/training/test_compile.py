"""A compiled patched model: one graph for ragged batches, and the gradients of stock."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

pytestmark = [
    # Of the compiler, about itself, and about outputs that a hook sees.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf"),
    pytest.mark.skipif(torch.__version__ < "2.9", reason="only tried with newer compilers"),
]
CASES = (
    ("BertForSequenceClassification", "padded"),
    ("BertForSequenceClassification", "packed"),
    ("BertForTokenClassification", "padded"),
    ("BertForQuestionAnswering", "padded"),
    ("BertForMaskedLM", "packed"),
)
# What the published models have, where it changes what is computed; DeBERTa's problem type because
# without one its stock head leaves the graph.
FAMILIES = {
    "Albert": {"classifier_dropout_prob": 0.0},
    "LayoutLM": {},
    "Esm": {"token_dropout": True, "mask_token_id": 3, "pad_token_id": 1}
    | {"position_embedding_type": "rotary"},
    "ModernBert": {"local_attention": 6, "layer_types": ["sliding_attention"], "pad_token_id": 0},
    "MPNet": {"pad_token_id": 1},
    "DebertaV2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
        "share_att_key": True,
        "cls_dropout": 0.0,
        "problem_type": "single_label_classification",
    },
}
# Without one, the stock heads set it in their first step, and the second is compiled anew.
PROBLEM = {"problem_type": "single_label_classification"}
# The compiler takes the sizes of the first batch for constants, and learns from the second.
FIRST = ((13, 5, 9, 1), (20, 20, 3, 7), (11, 2))
LATER = ((30, 8, 8, 8, 4), (17, 16, 2, 9, 9, 9, 4))
# Of four sequences each, 28 to 96 tokens: 32, 64 or 96 of them with those of no sequence.
BUCKETED = (
    *((13, 5, 9, 1), (8, 8, 8, 7), (20, 20, 3, 7), (30, 8, 8, 8), (13, 5, 9, 20), (40, 30, 20, 6)),
    *((1, 2, 3, 4), (31, 31, 1, 1), (38, 39, 9, 2), (21, 1, 1, 1), (24, 24, 24, 24)),
)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow  # a graph takes seconds to make, whatever the size of the model
@pytest.mark.parametrize(("head", "form"), CASES)
def test_no_graph_breaks_and_no_graph_per_batch(tools, head, form):
    if form == "packed" and not HAS_ATTENTION_INTERFACE:
        pytest.skip("heads of Transformers 4.x take no packed batches")
    stock, ours = tools.pair(head, num_hidden_layers=1)
    compiled = torch.compile(ours, backend="aot_eager")
    graphs = []
    for seed, lengths in enumerate(FIRST + LATER):
        batch = tools.batch(lengths, head, seed)
        given = tools.pack(batch) if form == "packed" else batch
        tools.assert_same(tools.step(compiled, given, ours), tools.step(stock, batch))
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert graphs[len(FIRST) - 1] == graphs[-1] <= 6


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="patched from Transformers 5 on")
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_graph_breaks_in_the_other_families(tools, family, form):
    head = f"{family}ForSequenceClassification"
    stock, ours = tools.pair(head, num_hidden_layers=1, **FAMILIES[family])
    compiled = torch.compile(ours, backend="aot_eager")
    for seed, lengths in enumerate(FIRST[:2]):
        batch = tools.batch(lengths, head, seed)
        batch["input_ids"][batch["attention_mask"] == 0] = ours.config.pad_token_id
        given = tools.pack(batch) if form == "packed" else batch
        tools.assert_same(tools.step(compiled, given, ours), tools.step(stock, batch))
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="4.x takes no packed batches")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_as_many_graphs_as_sizes_of_batches(tools, head, backend):
    """Tokens of no sequence make few sizes of many ragged batches, each a graph or less."""
    stock, ours = tools.pair(head, num_hidden_layers=1, **PROBLEM)
    compiled = torch.compile(ours, backend=backend, dynamic=False)
    sizes = set()
    for seed, lengths in enumerate(BUCKETED):
        batch = tools.batch(lengths, head, seed)
        packed = tools.pack(batch, pad_to_multiple_of=32)
        sizes.add((packed["input_ids"].shape[1], packed["max_length_q"]))
        tools.assert_same(tools.step(compiled, packed, ours), tools.step(stock, batch))
    assert len(sizes) == 3 < len({sum(lengths) for lengths in BUCKETED})
    assert counters["stats"]["unique_graphs"] == len(sizes)
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="patched from Transformers 5 on")
@pytest.mark.parametrize("family", list(FAMILIES))
def test_tokens_of_no_sequence_in_compiled_models_of_other_families(tools, family):
    head = f"{family}ForSequenceClassification"
    stock, ours = tools.pair(head, num_hidden_layers=1, **FAMILIES[family] | PROBLEM)
    compiled = torch.compile(ours, backend="aot_eager", dynamic=False)
    graphs = []
    for seed, lengths in enumerate(BUCKETED[:2]):
        batch = tools.batch(lengths, head, seed)
        batch["input_ids"][batch["attention_mask"] == 0] = ours.config.pad_token_id
        packed = tools.pack(batch, pad_to_multiple_of=32)
        tools.assert_same(tools.step(compiled, packed, ours), tools.step(stock, batch))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] <= 2  # what a hook computes before a head is one of its own
    assert not counters["graph_break"]


@pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="4.x takes no packed batches")
def test_tokens_of_no_sequence_leave_dropout_as_it_is(tools):
    _, ours = tools.pair(dropout=0.3)
    ours.bert.embeddings.dropout.p = 0.0  # torch's own: what it draws depends on the rows
    compiled = torch.compile(ours, backend="aot_eager")
    batch = tools.batch(FIRST[0])
    steps = []
    for options in ({}, {"pad_to_multiple_of": 32}):
        torch.manual_seed(1)
        steps.append(tools.step(compiled, tools.pack(batch, **options), ours))
    tools.assert_same(*steps)


def test_a_full_graph_with_dropout(tools):
    """The seed is drawn in the graph: each call drops others, and the same seed the same."""
    _, ours = tools.pair(dropout=0.3)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    batch = tools.batch(FIRST[0])
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(tools.step(compiled, batch, ours)[0])
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_autocast(tools):
    _, ours = tools.pair()
    compiled = torch.compile(ours, backend="aot_eager")
    batch = tools.batch(FIRST[0])
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = ours(**batch).logits, compiled(**batch).logits
    torch.testing.assert_close(actual, expected)
    assert not counters["graph_break"]


def test_hidden_states(tools):
    _, ours = tools.pair()
    compiled = torch.compile(ours, backend="aot_eager")
    batch = tools.batch(FIRST[0])
    expected = ours(**batch, output_hidden_states=True).hidden_states
    actual = compiled(**batch, output_hidden_states=True).hidden_states
    torch.testing.assert_close(actual, expected)


def test_a_batch_without_a_mask(tools):
    stock, ours = tools.pair()
    batch = tools.batch((7, 7))
    del batch["attention_mask"]
    compiled = torch.compile(ours, backend="aot_eager")
    tools.assert_same(tools.step(compiled, batch, ours), tools.step(stock, batch))


def test_what_a_graph_cannot_keep_padding_for_is_refused(tools):
    """An eager patched model keeps the padding of such batches; unpad=False always does."""
    stock, ours = tools.pair()
    batch = tools.batch(FIRST[0])
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    compiled = torch.compile(ours, backend="aot_eager")
    message = r"attention_mask must begin each sequence with a token in a compiled model, .* got "
    with pytest.raises(ValueError, match=message + r"none there in sequence 1. Pad on the right"):
        compiled(**batch)
    padded = copy.deepcopy(stock)
    fastattn.patch(padded, unpad=False)
    compiled = torch.compile(padded, backend="aot_eager")
    tools.assert_same(tools.step(compiled, batch, padded), tools.step(stock, batch))


@pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="patched from Transformers 5 on")
def test_padding_between_counted_distances_is_refused(tools):
    ours = tools.model("MPNetForTokenClassification", pad_token_id=1)
    fastattn.patch(ours)
    compiled = torch.compile(ours, backend="aot_eager")
    batch = tools.batch(FIRST[0])
    batch["attention_mask"][0, 3:5] = 0
    del batch["labels"]
    message = r"attention_mask must have no 0 between the tokens of a sequence in a compiled .* got"
    with pytest.raises(ValueError, match=message):
        compiled(**batch)


@pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="4.x computes all rows: none is missing")
def test_a_sequence_without_tokens_is_refused(tools):
    ours = tools.model()
    fastattn.patch(ours, unpad=True)
    compiled = torch.compile(ours, backend="aot_eager")
    batch = tools.batch(FIRST[0])
    batch["attention_mask"][2] = 0
    with pytest.raises(
        ValueError,
        match=r"must give each sequence a token in a compiled.* none there in sequence 2",
    ):
        compiled(**batch)


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertLMHeadModel"])
def test_labels_of_padding_are_refused(tools, head):
    ours = tools.model(head)
    fastattn.patch(ours)
    compiled = torch.compile(ours, backend="aot_eager")
    batch = tools.batch(FIRST[0], "BertForTokenClassification")
    tools.step(compiled, batch, ours)
    batch["labels"][1, -1] = 1
    with pytest.raises(ValueError, match=r"labels must be -100 where attention_mask is 0 in a com"):
        compiled(**batch)
