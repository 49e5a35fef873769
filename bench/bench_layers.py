"""The quick cases of ``fastattn bench layers`` under pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastattn.bench import layers
from fastattn.bench.cases import LAYER_CASES, choose


@pytest.mark.parametrize("name", ["forward", "backward", "forward_backward"])
@pytest.mark.parametrize("who", ["fastattn", "torch"])
@pytest.mark.parametrize("case", choose(LAYER_CASES, (), quick=True), ids=lambda case: case.name)
def test_layer(benchmark: BenchmarkFixture, case: Any, who: str, name: str) -> None:
    problem = layers.make_problem(case)
    layers.verify(case, problem, problem.candidates)
    told = {"kind": "layers", "case": case.name, "pass": name, "who": who}
    benchmark.extra_info.update(told)
    benchmark.group = f"{case.name}, {name.replace('_', ' + ')}"
    run = layers.passes(problem, problem.candidates[who], case.dropout_p)[name]
    benchmark.pedantic(run, rounds=layers.QUICK_ROUNDS, warmup_rounds=1)
