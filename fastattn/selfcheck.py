"""Does this installation compute the right thing? The checks behind ``fastattn check``.

Each check compares what is installed here, on this machine, with the reference in float64
(:mod:`fastattn.testing` has the tolerances). The whole takes a few seconds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

import fastattn
from fastattn import backends, testing
from fastattn.backends import triton
from fastattn.backends.cuda import CUDA, EMULATED, EMULATED_HOPPER, HOPPER


class Result(NamedTuple):
    """The outcome of one check. passed is None if it was skipped; detail says why."""

    name: str
    passed: bool | None
    detail: str


# (name, lengths, arguments of fastattn.testing.make_inputs)
_CASES: tuple[tuple[str, list[int], dict[str, Any]], ...] = (
    ("padded batch", [37, 5, 64], {}),
    ("packed, an empty sequence", [17, 0, 33], {"packed": True}),
    ("head_dim 64, 129 tokens", [129], {"head_dim": 64}),
    ("head_dim 40, slices of a bigger tensor", [23, 23], {"head_dim": 40, "layout": "guarded"}),
    ("causal, grouped heads", [48, 31], {"causal": True, "num_heads": 4, "num_heads_kv": 2}),
    ("window, softcap", [50], {"window": (7, 3), "softcap": 5.0}),
    ("bias with its gradient", [19, 26], {"bias_shape": (1, 2, 26, 26)}),
    ("dropout 0.1, padded batch", [40, 29], {"dropout_p": 0.1}),
    ("dropout 0.1, packed", [40, 29], {"dropout_p": 0.1, "packed": True}),
)
_DTYPES = (torch.float32, torch.bfloat16)
_CUDA_DTYPES = (torch.float16, torch.bfloat16)
_GPU_NAMES = (CUDA.NAME, HOPPER.NAME)


def _device_of(name: str) -> str:
    """Where the tensors of a backend lie."""
    if name == triton.NAME:
        return "cuda" if torch.cuda.is_available() else "xpu"
    return "cuda" if name in _GPU_NAMES else "cpu"


def run() -> Iterator[Result]:
    """Yields the result of each check as it is done."""
    for name in backends.NAMES:
        device = _device_of(name)
        reason = None if name == backends.REFERENCE else backends.get(name).unavailable_reason()
        if name == triton.NAME and triton.INTERPRETED:
            reason = "TRITON_INTERPRET is set, which is for tests"
        if name in (EMULATED.NAME, EMULATED_HOPPER.NAME) and reason is None:
            reason = "it is for tests"
        if reason is not None:
            yield Result(f"{name} backend", None, reason)
            continue
        dtypes = _CUDA_DTYPES if name in _GPU_NAMES else _DTYPES
        for dtype in dtypes:
            kind = str(dtype).removeprefix("torch.")
            refused = backends.unsupported_reasons(
                name, backends.Call(device, dtype, 64, False, ())
            )
            if refused:
                yield Result(f"{name} backend, {kind}", None, "; ".join(refused))
                continue
            for case, lengths, arguments in _CASES:
                inputs = {"dtype": dtype, "device": device, **arguments}
                yield _checked(f"{name}: {case}, {kind}", _attention, lengths, inputs, name)
        yield _checked(f"{name}: dropout bits", _dropout_bits, name, device, dtypes[0])
    if importlib.util.find_spec("transformers") is None:
        yield Result("patched BERT", None, "transformers is not installed")
    else:
        yield _checked("patched BERT: a padded batch, logits and gradients", _patched_bert)


def _checked(name: str, check: Callable[..., str], *arguments: Any) -> Result:
    # Whatever goes wrong, a crash included, is the finding of this check, not its end.
    try:
        return Result(name, True, check(*arguments))
    except Exception as error:
        return Result(name, False, f"{type(error).__name__}: {error}")


def _attention(lengths: list[int], arguments: dict[str, Any], backend: str) -> str:
    inputs = testing.make_inputs(lengths, **arguments)
    worst = max(
        testing.check_against_reference(inputs, backend),
        key=lambda accuracy: accuracy.error / max(accuracy.allowed, 1e-300),
    )
    return f"largest error {worst.error:.1e} of {worst.allowed:.1e} allowed ({worst.name})"


def _dropout_bits(backend: str, device: str, dtype: torch.dtype) -> str:
    """With v = 1 in one place each, out shows which attention weights were dropped."""
    rows = 64
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, rows, 2, rows, generator=generator).to(device, dtype) for _ in range(2))
    v = torch.eye(rows, device=device, dtype=dtype)[:, None].expand(2, rows, 2, rows)
    kept = []
    for name in (backend, backends.REFERENCE):
        seeds = torch.Generator(device).manual_seed(2)
        out = fastattn.attention(q, k, v, dropout_p=0.3, generator=seeds, backend=name)
        assert isinstance(out, torch.Tensor)
        kept.append(out != 0)
    different = int((kept[0] != kept[1]).sum())
    if different:
        raise AssertionError(f"{different} of {kept[0].numel()} dropout bits differ")
    return f"all {kept[0].numel():,} bits as in the reference"


def _patched_bert() -> str:
    """Stock and patched BERT, same weights, dropout 0: logits and every parameter's gradient."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stock = BertForSequenceClassification(config).train()
        ids = torch.randint(5, 100, (3, 37))
    mask = torch.arange(37) < torch.tensor([37, 11, 20])[:, None]
    patched = BertForSequenceClassification(config).train()
    patched.load_state_dict(stock.state_dict())
    fastattn.patch(patched)
    results = []
    for model in (stock, patched):
        output = model(ids * mask, attention_mask=mask.long(), labels=torch.tensor([0, 1, 0]))
        output.loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({"logits": output.logits.detach(), **grads})
    expected, got = results
    if expected.keys() != got.keys():
        raise AssertionError("the patched model has gradients for other parameters")
    error = max(float((got[name] - value).abs().max()) for name, value in expected.items())
    if not error <= 1e-5:
        raise AssertionError(f"results differ by {error:.1e}, allowed 1e-5")
    return f"largest difference from stock {error:.1e}"
