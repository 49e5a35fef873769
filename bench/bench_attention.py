"""The quick cases of ``fastattn bench attention`` under pytest-benchmark, for work on the kernels.

    make bench ARGS="-k short --benchmark-save=before"
    make bench ARGS="-k short --benchmark-compare"

Few rounds, one implementation after the other: compare commits with it; for figures to publish,
``fastattn bench attention`` takes the implementations in turn.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastattn.bench import attention, peers
from fastattn.bench.cases import ATTENTION_CASES, AttentionCase, choose
from fastattn.bench.problem import Problem, make_problem, samples

PASSES = ("forward", "backward", "forward_backward")
NAMES = ("fastattn", *(name for name, (_, devices) in peers.PEERS.items() if "cpu" in devices))


@cache
def verified(case: AttentionCase, who: str) -> tuple[Problem, peers.Implementation]:
    """A case and an implementation of it, whose results are right; another is skipped."""
    problem = make_problem(case)
    plain = problem.without_dropout()
    found = list(samples(plain))
    if who == "fastattn":
        attention.verify(who, peers.ours(plain)[who], plain, found)
        return problem, peers.ours(problem)[who]
    try:
        attention.verify(who, peers.make_peer(who, plain, quick=True), plain, found)
        implementation = peers.make_peer(who, problem, quick=True)
        implementation.passes(problem)["forward"]()
    except Exception as error:
        pytest.skip(attention.reason(error))
    return problem, implementation


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("who", NAMES)
@pytest.mark.parametrize(
    "case", choose(ATTENTION_CASES, (), quick=True), ids=lambda case: case.name
)
def test_attention(benchmark: BenchmarkFixture, case: Any, who: str, name: str) -> None:
    problem, implementation = verified(case, who)
    passes = implementation.passes(problem)
    if name not in passes:
        pytest.skip(f"{who} has no {name} pass")
    told = {"kind": "attention", "case": case.name, "pass": name, "who": who}
    benchmark.extra_info.update(told)
    benchmark.group = f"{case.name}, {name.replace('_', ' + ')}"
    rounds = attention.QUICK_ROUNDS * case.times_rounds
    benchmark.pedantic(passes[name], rounds=rounds, warmup_rounds=1)
