"""Models that are saved, sent to other processes, exported and traced."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import pickle
from typing import Any

import pytest
import torch

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE, UnpaddedEncoder

LENGTHS = (13, 5, 9, 1)
needs_interface = pytest.mark.skipif(
    not HAS_ATTENTION_INTERFACE, reason="stock 4.x cannot be exported"
)


def test_a_state_dict_goes_both_ways(tools, tmp_path):
    """From a patched model to a stock one and back, through a file."""
    stock, ours = tools.pair()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(1.5)
    torch.save(ours.state_dict(), tmp_path / "weights.pt")
    stock.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    batch = tools.batch(LENGTHS)
    tools.assert_same(tools.step(ours, batch), tools.step(stock, batch))
    other = tools.model()
    fastattn.patch(other)
    other.load_state_dict(stock.state_dict())
    tools.assert_same(tools.step(other, batch), tools.step(stock, batch))


def test_a_whole_model(tools, tmp_path):
    """Saved and loaded while patched, it trains as before, on packed batches too."""
    _, ours = tools.pair()
    batch = tools.batch(LENGTHS)
    expected = tools.step(ours, batch)
    torch.save(ours, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    forms = [batch, *([tools.pack(batch)] if HAS_ATTENTION_INTERFACE else [])]
    for twin in (loaded, pickle.loads(pickle.dumps(ours))):
        for form in forms:
            tools.assert_same(tools.step(twin, form), expected)
        fastattn.unpatch(twin)
        assert not any(isinstance(x, UnpaddedEncoder) for x in twin.modules())


def _predict(model: Any, batch: dict[str, Any], results: Any) -> None:
    with torch.no_grad():
        results.send(model(**batch).logits.tolist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_another_process(tools, method):
    """A patched model works in a process that gets a copy of it."""
    model = tools.model().eval()
    fastattn.patch(model)
    batch = tools.batch(LENGTHS)
    del batch["labels"]
    with torch.no_grad():
        expected = model(**batch).logits
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_predict, args=(model, batch, sender))
    process.start()
    assert receiver.poll(120)
    torch.testing.assert_close(torch.tensor(receiver.recv()), expected)
    process.join()
    assert process.exitcode == 0


class _Named(torch.nn.Module):
    """A model under names of its own, for whose shapes torch.export has a place."""

    def __init__(self, model: Any, second: str) -> None:
        super().__init__()
        self.model, self.second = model, second

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> Any:
        outputs = self.model(input_ids=input_ids, **{self.second: lengths})
        return outputs.logits, outputs.hidden_states


@needs_interface
@pytest.mark.parametrize(
    ("head", "form", "config"),
    [
        ("BertForSequenceClassification", "padded", {}),
        ("BertForSequenceClassification", "packed", {}),
        ("BertForTokenClassification", "padded", {"output_hidden_states": True}),
        # Their heads say in the mask's place where sequences begin.
        ("MPNetForTokenClassification", "packed", {"pad_token_id": 1}),
        ("DebertaV2ForSequenceClassification", "packed", {}),
    ],
)
def test_torch_export(tools, head, form, config):
    """The program runs fused, and serves batches of other sizes; it needs fastattn to be loaded."""
    model = tools.model(head, **config).eval()
    fastattn.patch(model)
    second = "attention_mask" if form == "padded" else "cu_seq_lens_q"
    made = [tools.batch(x) for x in (LENGTHS, (20, 20, 3, 7, 2))]
    made = [tools.pack(x) if form == "packed" else x for x in made]
    first, other = ((x["input_ids"], x[second]) for x in made)
    model = _Named(model, second)
    shapes = [dict.fromkeys(range(x.ndim), torch.export.Dim.AUTO) for x in first]
    with torch.no_grad():
        program = torch.export.export(model, first, dynamic_shapes=shapes, strict=False)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        for batch in (first, other):
            torch.testing.assert_close(loaded(*batch), model(*batch))
    names = {str(node.target) for node in program.graph.nodes}
    assert "fastattn.attention_fwd.default" in names


@needs_interface
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_onnx_and_traces_are_of_the_stock_model(tools, tmp_path):
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    model = tools.model().eval()
    fastattn.patch(model)
    batch = tools.batch(LENGTHS)
    del batch["labels"]
    with pytest.raises(Exception, match=r"must be stock to be exported to ONNX .*unpatch\(model\)"):
        torch.onnx.export(model, (), kwargs=batch, dynamo=True, verbose=False)
    fastattn.unpatch(model)
    program = torch.onnx.export(model, (), kwargs=batch, dynamo=True, verbose=False)
    program.save(str(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_trace_is_refused(tools):
    """It would take the padding of its example for that of every batch."""
    model = tools.model().eval()
    fastattn.patch(model)
    batch = tools.batch(LENGTHS)
    del batch["labels"]
    message = r"fastattn: the model must be stock to be exported to ONNX or traced by torch.jit, "
    with pytest.raises(fastattn.BackendError, match=message):
        torch.jit.trace(model, example_kwarg_inputs=batch, strict=False)
