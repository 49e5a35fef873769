"""``fastattn bench overhead``: what the Python around the kernels costs a call and a patch.

On inputs of two rows no kernel has work to do, so the time of a call beyond that of torch's own
attention is ours: checks, the choice of a backend, the way to the kernel and back. The clock is the
thread's own, which stands still while another program has the core.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastattn
from fastattn.bench.timing import by_clock, interleave

CALL_TARGET_US = 40.0
PATCH_TARGET_MS = 50.0
_SHAPE = (1, 2, 1, 8)  # batch, seqlen, heads, head_dim
_CALLS = 50  # in one timed round: one call is too short for the clock
_PEER = "torch"


def call_overhead_us(rounds: int) -> dict[str, float]:
    """Times a call of ours less one of torch's scaled_dot_product_attention.

    Returns:
        Microseconds a call, the median of the rounds: of ``fastattn.attention`` and of
        ``fastattn.scaled_dot_product_attention``, forward alone and forward + backward.
    """
    functions: dict[str, Callable[..., Tensor]] = {
        "attention": fastattn.attention,
        "scaled_dot_product_attention": fastattn.scaled_dot_product_attention,
        _PEER: F.scaled_dot_product_attention,
    }
    forward = {name: _forward(name, function) for name, function in functions.items()}
    both = {name: _forward_backward(name, function) for name, function in functions.items()}
    found = {}
    for what, candidates in (("forward", forward), ("forward + backward", both)):
        thread_clock = partial(by_clock, clock=time.thread_time)
        times_ms = interleave(candidates, rounds, warmup=2, stopwatch=thread_clock)
        medians = {name: statistics.median(x) / _CALLS * 1e3 for name, x in times_ms.items()}
        for name in functions:
            if name != _PEER:
                found[f"{name}, {what}"] = medians[name] - medians[_PEER]
    return found


def patch_ms(rounds: int) -> float:
    """Times ``fastattn.patch`` of bert-large, 24 layers, the median of the rounds."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    with torch.device("meta"):  # the weights make no difference
        model = transformers.BertForSequenceClassification(config)
    times_ms = []
    for _ in range(rounds):
        started = time.thread_time()
        fastattn.patch(model)
        times_ms.append((time.thread_time() - started) * 1e3)
        fastattn.unpatch(model)
    return statistics.median(times_ms)


def lines(rounds: int) -> list[str]:
    """Measures both; returns what to print, the targets included."""
    calls = [
        f"{name}: {us:.1f} us more a call than torch"
        for name, us in call_overhead_us(rounds).items()
    ]
    return [
        f"Python around the kernels, on {_SHAPE} (target: at most {CALL_TARGET_US:.0f} us):",
        *(f"  {line}" for line in calls),
        f"patch of bert-large: {patch_ms(rounds):.1f} ms "
        f"(target: at most {PATCH_TARGET_MS:.0f} ms)",
    ]


def _inputs(name: str) -> list[Tensor]:
    """q, k, v; heads first for those who take them so."""
    shape = _SHAPE if name == "attention" else (_SHAPE[0], _SHAPE[2], _SHAPE[1], _SHAPE[3])
    return [torch.randn(shape, requires_grad=True) for _ in range(3)]


def _forward(name: str, attend: Callable[..., Tensor]) -> Callable[[], None]:
    inputs = _inputs(name)

    def run() -> None:
        with torch.no_grad():
            for _ in range(_CALLS):
                attend(*inputs)

    return run


def _forward_backward(name: str, attend: Callable[..., Tensor]) -> Callable[[], None]:
    inputs = _inputs(name)
    dout = torch.randn_like(inputs[0])

    def run() -> None:
        for _ in range(_CALLS):
            torch.autograd.grad(attend(*inputs), inputs, dout)

    return run
