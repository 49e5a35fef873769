"""``fastattn bench layers``: the rest of a layer beside torch's own, eager and compiled.

LayerNorm with dropout and residual, bias with GELU, dropout, the float32 matrix product, and whole
layers of BERT on padded texts of IMDB's lengths. What moves memory more than it computes is given
in GB/s beside the bandwidth that the bench measures: the least bytes that must be read and written.
Verified before it is timed: results and gradients against torch in float64, without dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import config as functorch_config

import fastattn
from fastattn import testing
from fastattn.backends import cpu
from fastattn.bench import lengths, peak, texts
from fastattn.bench.attention import reason
from fastattn.bench.cases import LayerCase
from fastattn.bench.passes import passes_of
from fastattn.bench.peers import PEER_FACTOR, Refusal
from fastattn.bench.timing import ByEvents, Run, by_clock, compare, interleave, is_ours
from fastattn.errors import VerificationError
from fastattn.ops.dropout import dropout
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.ops.linear import linear

ROUNDS = 30
QUICK_ROUNDS = 5
_WARMUP = 2
_BUDGET_S = 2.0
_EPS = 1e-12  # of BERT's LayerNorm
_FEED_FORWARD = 4  # times hidden_size
_HEAD_DIM = {384: 32}  # of MiniLM; else 64

Say = Callable[[str], None]
Function = Callable[..., Tensor]  # of the inputs and dropout_p


class Problem(NamedTuple):
    """An operation with its inputs, all of which get gradients, and what computes it."""

    inputs: tuple[Tensor, ...]
    dout: Tensor
    candidates: dict[str, Function]
    # The least bytes that forward, and both passes, must move, in elements of the inputs' dtype.
    moved: dict[str, int] | None


def make_problem(case: LayerCase, device: str = "cpu") -> Problem:
    """Draws the inputs of a case.

    Raises:
        Refusal: on this machine fastattn has nothing of its own for it.
    """
    return {
        "layer-norm": _layer_norm,
        "gelu": _gelu,
        "dropout": _dropout,
        "linear": _linear,
        "bert": _bert_layer,
    }[case.op](case, device)


def _draw(case: LayerCase, device: str, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    return tuple(torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)


def _layer_norm(case: LayerCase, device: str) -> Problem:
    rows, vector = (case.tokens, case.hidden_size), (case.hidden_size,)
    *inputs, dout = _draw(case, device, rows, rows, vector, vector, rows)

    def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, p: float) -> Tensor:
        return dropout_add_layer_norm(x, residual, weight, bias, _EPS, p)

    def torchs(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, p: float) -> Tensor:
        h = residual + (F.dropout(x, p) if p > 0.0 else x)
        return F.layer_norm(h, h.shape[-1:], weight, bias, _EPS)

    size = case.tokens * case.hidden_size
    # Forward reads x and residual, writes out; backward reads x, residual, dout, writes a gradient
    # of each of the two, which are one without dropout.
    moved = {"forward": 3 * size, "forward_backward": (8 if case.dropout_p > 0.0 else 7) * size}
    return Problem(tuple(inputs), dout, {"fastattn": ours, "torch": torchs}, moved)


def _gelu(case: LayerCase, device: str) -> Problem:
    rows = (case.tokens, case.hidden_size)
    *inputs, dout = _draw(case, device, rows, (case.hidden_size,), rows)

    def ours(x: Tensor, bias: Tensor, p: float) -> Tensor:
        return bias_gelu(x, bias)

    def torchs(x: Tensor, bias: Tensor, p: float) -> Tensor:
        return F.gelu(x + bias)

    size = case.tokens * case.hidden_size
    moved = {"forward": 2 * size, "forward_backward": 5 * size}
    return Problem(tuple(inputs), dout, {"fastattn": ours, "torch": torchs}, moved)


def _dropout(case: LayerCase, device: str) -> Problem:
    rows = (case.tokens, case.hidden_size)
    *inputs, dout = _draw(case, device, rows, rows)
    size = case.tokens * case.hidden_size

    def torchs(x: Tensor, p: float) -> Tensor:
        return F.dropout(x, p)

    moved = {"forward": 2 * size, "forward_backward": 4 * size}
    return Problem(tuple(inputs), dout, {"fastattn": dropout, "torch": torchs}, moved)


def _linear(case: LayerCase, device: str) -> Problem:
    if device != "cpu" or not cpu.prefers_own_matmul():
        raise Refusal("torch's own matrix product runs here, in patched models too")
    wide = _FEED_FORWARD * case.hidden_size
    shapes = ((case.tokens, case.hidden_size), (wide, case.hidden_size), (wide,))
    *inputs, dout = _draw(case, device, *shapes, (case.tokens, wide))
    candidates: dict[str, Function] = {
        "fastattn": lambda x, weight, bias, p: linear(x, weight, bias),
        "torch": lambda x, weight, bias, p: F.linear(x, weight, bias),
    }
    return Problem(tuple(inputs), dout, candidates, None)


class _OneLayer(nn.Module):
    """A BertModel of one layer on one batch, as a function of what its embeddings give."""

    def __init__(self, model: Any, mask: Tensor) -> None:
        super().__init__()
        self.model = model
        self.mask = mask

    def forward(self, hidden_states: Tensor, p: float) -> Tensor:
        """Returns the hidden states after the layer; rows of padding are 0."""
        self.model.train(p > 0.0)
        out: Tensor = self.model(
            inputs_embeds=hidden_states, attention_mask=self.mask
        ).last_hidden_state
        return out * self.mask[..., None]


def _bert_layer(case: LayerCase, device: str) -> Problem:
    from transformers import BertConfig, BertModel

    rows = lengths.draw("imdb", case.tokens, 512)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=case.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=case.hidden_size // _HEAD_DIM.get(case.hidden_size, 64),
        intermediate_size=_FEED_FORWARD * case.hidden_size,
        hidden_dropout_prob=case.dropout_p,
        attention_probs_dropout_prob=case.dropout_p,
        attn_implementation="sdpa",
    )
    stock = BertModel(config, add_pooling_layer=False).to(device, getattr(torch, case.dtype))
    patched, eager = copy.deepcopy(stock), copy.deepcopy(stock)
    fastattn.patch(patched)
    eager.set_attn_implementation("eager")
    mask = (torch.arange(max(rows)) < torch.tensor(rows)[:, None]).long().to(device)
    size = (len(rows), max(rows), case.hidden_size)
    hidden_states, dout = _draw(case, device, size, size)
    models = {"fastattn": patched, "stock-sdpa": stock, "stock-eager": eager}
    candidates: dict[str, Function] = {
        name: _OneLayer(model, mask) for name, model in models.items()
    }
    return Problem((hidden_states,), dout * mask[..., None], candidates, None)


def passes(problem: Problem, function: Function, dropout_p: float) -> dict[str, Run]:
    """Returns what is timed (:func:`passes_of`)."""
    return passes_of(lambda *inputs: function(*inputs, dropout_p), problem.inputs, problem.dout)


def verify(
    case: LayerCase, problem: Problem, functions: dict[str, Function]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Compares results and gradients without dropout with those of torch's own in float64.

    Returns:
        For each function the largest error and the one allowed, where it is nearest to it; and why
        a peer is not timed.

    Raises:
        VerificationError: ours are further off than a small multiple of torch's error.
    """
    plain_name, plain = next((n, f) for n, f in problem.candidates.items() if not is_ours(n))
    exact = problem._replace(
        inputs=tuple(x.double() for x in problem.inputs), dout=problem.dout.double()
    )
    exact_plain = copy.deepcopy(plain).double() if isinstance(plain, nn.Module) else plain
    truth = _results(exact, exact_plain)
    theirs = _results(problem, plain)
    checked: dict[str, dict[str, float]] = {}
    refused: dict[str, str] = {}
    for name, function in functions.items():
        try:
            found = theirs if name == plain_name else _results(problem, function)
            checked[name] = _worst(name, found, theirs, truth)
        except AssertionError as error:
            if is_ours(name):
                raise VerificationError(
                    f"bench: the results of {case.name} must be as accurate as torch's own; got "
                    f"{error}. Nothing was timed; run `fastattn check`."
                ) from error
            refused[name] = reason(error)
        except Exception as error:  # no compiler, for instance
            if is_ours(name):
                raise
            refused[name] = reason(error)
    return checked, refused


def _results(problem: Problem, function: Function) -> tuple[Tensor, ...]:
    results: Any = passes(problem, function, 0.0)["forward_backward"]()
    return tuple(results)


def _worst(
    name: str,
    found: Sequence[Tensor],
    theirs: Sequence[Tensor],
    truth: Sequence[Tensor],
) -> dict[str, float]:
    slack = 1.0 if is_ours(name) else PEER_FACTOR
    factors = [testing.OUT_FACTOR] + [testing.GRAD_FACTOR] * (len(truth) - 1)
    accuracies = [
        testing.assert_as_accurate_as(
            got, plain, exact, factor=slack * factor, name=f"{name} result {index}"
        )
        for index, (got, plain, exact, factor) in enumerate(
            zip(found, theirs, truth, factors, strict=True)
        )
    ]
    worst = max(accuracies, key=lambda x: x.error / x.allowed)
    return {"error": worst.error, "allowed": worst.allowed}


def run_case(
    case: LayerCase,
    rounds: int,
    gb_per_s: float,
    *,
    device: str = "cpu",
    quick: bool = False,
) -> dict[str, Any]:
    """Verifies and times one case.

    Args:
        gb_per_s: the bandwidth that the machine reaches.
        quick: without compiled peers.

    Raises:
        Refusal: on this machine fastattn has nothing of its own for it.
    """
    problem = make_problem(case, device)
    functions, refused = dict(problem.candidates), {}
    torchs = functions.get("torch")
    if torchs is not None and quick:
        refused["torch-compile"] = "compiling takes too long for a quick run"
    elif torchs is not None:
        torch.compiler.reset()
        functions["torch-compile"] = torch.compile(torchs, dynamic=False)
    stopwatch = ByEvents() if device == "cuda" else by_clock
    found: dict[str, Any] = {}
    # A compiled function may else reuse its saved tensors' memory, for one backward pass only.
    with functorch_config.patch(donated_buffer=False):
        checked, failed = verify(case, problem, functions)
        timed = {name: passes(problem, functions[name], case.dropout_p) for name in checked}
        for name in ("forward", "backward", "forward_backward"):
            runs = {who: x[name] for who, x in timed.items()}
            found[name] = compare(interleave(runs, rounds, _WARMUP, stopwatch, _BUDGET_S))
    refused |= failed
    for name in found:
        if problem.moved is not None and name in problem.moved:
            moved = problem.moved[name] * problem.inputs[0].element_size()
            rate = moved / found[name]["times"]["fastattn"]["median_ms"] / 1e6
            found[name] |= {"gb_per_s": rate, "bandwidth_share": rate / gb_per_s}
    shapes = [list(x.shape) for x in problem.inputs]
    described = {"op": case.op, "shapes": shapes, "dtype": case.dtype, "dropout_p": case.dropout_p}
    return {"name": case.name, **described, "refused": refused, "verified": checked, **found}


def run(
    cases: Sequence[LayerCase],
    rounds: int,
    say: Say = lambda line: None,
    *,
    device: str = "cpu",
    quick: bool = False,
) -> dict[str, Any]:
    """Runs cases; returns what a result file holds beside the machine.

    "skipped" says for a case why it was not run: here fastattn does as torch does.
    """
    if any(case.op == "bert" for case in cases):
        texts.require_packages()
    gb_per_s = peak.bandwidth(device)
    results, skipped = [], {}
    for case in cases:
        say(case.name)
        try:
            results.append(run_case(case, rounds, gb_per_s, device=device, quick=quick))
        except Refusal as refusal:
            skipped[case.name] = str(refusal)
    return {"peak_gb_per_s": gb_per_s, "cases": results, "skipped": skipped}
