"""The support table: asked of the backends, and true of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastattn
from fastattn.backends import cpu, triton
from fastattn.bench import support
from fastattn.ops import attention

ROOT = Path(__file__).resolve().parents[2]
needs_limits = pytest.mark.skipif(
    support.unavailable_reason() is not None, reason=str(support.unavailable_reason())
)


def test_the_features_are_those_that_a_call_can_have() -> None:
    q = torch.randn(1, 4, 2, 8)
    k = v = torch.randn(1, 4, 1, 8)
    call, _ = attention.describe_call(
        *(q, k, v),
        key_padding_mask=torch.ones(1, 4, dtype=torch.bool),
        bias=torch.zeros(1, 2, 4, 4),
        causal=True,
        softcap=5.0,
        alibi_slopes=torch.ones(2),
        dropout_p=0.1,
    )
    assert set(call.options) == set(support.FEATURES)


def test_the_architectures_are_those_that_are_compiled() -> None:
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("CUDA_ARCHITECTURES"))
    compiled = [10 * major + minor for major, minor in support.ARCHITECTURES]
    assert str(tuple(compiled)) in line


def test_the_cpu_serves_what_the_table_says() -> None:
    if cpu.unavailable_reason() is not None:
        pytest.skip(str(cpu.unavailable_reason()))
    row = support.ask(cpu, support.CPU)
    for dtype, largest in row.head_dims.items():
        for head_dim, served in ((largest, True), (largest + 1, False)):
            x = torch.zeros(1, 2, 1, head_dim, dtype=getattr(torch, dtype))
            assert (fastattn.explain(x, x, x).backend == "cpu") == served


@needs_limits
def test_a_limit_of_a_backend_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {(row[0], row[1]): row[2:] for row in support.table().rows}
    assert rows["NVIDIA sm_75", "`cuda`"][:4] == ["-", "-", "128", "-"]
    assert rows["AMD GPU", "`triton`"][:4] == ["256", "256", "256", "-"]
    real = triton.unsupported_reasons
    monkeypatch.setattr(
        triton,
        "unsupported_reasons",
        lambda call: real(call) + (["no"] if "softcap" in call.options else []),
    )
    rows = {(row[0], row[1]): row[2:] for row in support.table().rows}
    assert rows["AMD GPU", "`triton`"][4] == "all but softcap"


def test_nothing_is_left_behind() -> None:
    before = (torch.cuda.get_device_capability, torch.version.hip, triton.INTERPRETED)
    with support.as_if(support.AMD):
        assert torch.version.hip and not triton.INTERPRETED
    assert (torch.cuda.get_device_capability, torch.version.hip, triton.INTERPRETED) == before


def test_without_the_kernels_limits_it_says_what_to_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(support, "unavailable_reason", lambda: "it is not built")
    with pytest.raises(ValueError, match=r"bench render: the CUDA kernels must be built .*make b"):
        support.table()
