"""The cases of ``fastattn bench attention`` under pytest-benchmark, for work on the kernels.

    make bench ARGS="-k dense-fp32 --benchmark-save=before"
    make bench ARGS="-k dense-fp32 --benchmark-compare"

Few rounds, one implementation after the other: compare commits with it; for figures to publish,
``fastattn bench attention`` takes the implementations in turn.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastattn.bench import attention
from fastattn.bench.cases import ATTENTION_CASES, AttentionCase


@cache
def verified_problem(case: AttentionCase) -> attention.Problem:
    problem = attention.make_problem(case)
    attention.verify(case.name, problem)
    return problem


@pytest.mark.parametrize("name", ["forward", "forward_backward"])
@pytest.mark.parametrize(
    ("case", "who"),
    [
        pytest.param(case, who, id=f"{case.name}-{who}")
        for case in ATTENTION_CASES
        for who in ("fastattn", *case.peers)
    ],
)
def test_attention(benchmark: BenchmarkFixture, case: Any, who: str, name: str) -> None:
    problem = verified_problem(case)
    call = problem.ours if who == "fastattn" else problem.peers[who]
    benchmark.group = f"{case.name}, {name.replace('_', ' + ')}"
    benchmark.pedantic(
        getattr(call, name), args=(case.dropout_p,), rounds=attention.QUICK_ROUNDS, warmup_rounds=1
    )
