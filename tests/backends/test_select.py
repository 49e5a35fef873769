"""Which backend serves a call, what is said about it, and what happens when none can."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import fastattn
from fastattn import backends
from fastattn.backends import cpu
from fastattn.errors import BackendError, FastattnError


def call_of(**changes: object) -> backends.Call:
    return backends.Call("cpu", torch.float32, 64, False, ())._replace(**changes)


def qkv(head_dim: int = 8, **options: object) -> list[torch.Tensor]:
    return [torch.randn(1, 3, 2, head_dim, **options) for _ in range(3)]


def run_python(program: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_names():
    assert backends.NAMES[-1] == "reference" and "cpu" in backends.NAMES


def test_the_kernels_come_first(cpu_backend):
    assert backends.select(call_of()) == cpu_backend
    assert backends.select(call_of(dtype=torch.float64, head_dim=256, packed=True)) == cpu_backend


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device_type": "meta"}, "tensors must be on the CPU, got meta"),
        ({"head_dim": 257}, "head_dim must be at most 256, got 257"),
    ],
)
def test_the_reference_serves_what_the_kernels_do_not(cpu_backend, change, reason):
    call = call_of(**change)
    assert backends.select(call) == "reference"
    assert backends.unsupported_reasons(cpu_backend, call) == [reason]
    with pytest.raises(BackendError) as raised:
        backends.select(call, cpu_backend)
    assert str(raised.value) == (
        f'attention: backend "cpu" cannot serve this call: {reason}. '
        "Leave backend=None to let fastattn choose one that can."
    )


def test_every_reason_is_given(cpu_backend):
    with pytest.raises(BackendError, match="on the CPU, got meta; head_dim must be at most 256"):
        backends.select(call_of(device_type="meta", head_dim=300), cpu_backend)


def test_backend_error_is_a_runtime_error():
    assert issubclass(BackendError, FastattnError) and issubclass(BackendError, RuntimeError)


@pytest.mark.parametrize("name", ["gpu", "", 3])
def test_unknown_backend(name):
    with pytest.raises(ValueError) as raised:
        fastattn.attention(*qkv(), backend=name)
    known = ", ".join(f'"{x}"' for x in backends.NAMES)
    assert str(raised.value) == (
        f"attention: backend must be None or one of {known}; got {name!r}."
    )
    with pytest.raises(ValueError, match="attention: backend must be None or one of"):
        fastattn.explain(*qkv(), backend=name)


def test_asking_for_the_reference():
    assert backends.select(call_of(), "reference") == "reference"
    assert fastattn.explain(*qkv(), backend="reference").backend == "reference"


def test_attention_uses_what_was_selected(cpu_backend):
    """A head_dim beyond the kernels is served, and refused where the kernels were asked for."""
    q, k, v = qkv(head_dim=300)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v))
    )
    torch.testing.assert_close(fastattn.attention(q, k, v), expected.transpose(1, 2))
    with pytest.raises(BackendError, match="head_dim must be at most 256, got 300"):
        fastattn.attention(q, k, v, backend=cpu_backend)


def test_explain(cpu_backend):
    explanation = fastattn.explain(*qkv(), causal=True, dropout_p=0.1)
    assert explanation.backend == cpu_backend and explanation.reasons == {}
    assert str(explanation) == (
        "backend: cpu\n"
        "call: torch.float32 on cpu, batch layout, head_dim 8, options: window, dropout_p"
    )


def test_explain_says_why_not(cpu_backend):
    explanation = fastattn.explain(*qkv(head_dim=300))
    # Which reasons depends on what is installed; test_cuda.py and test_triton.py have them all.
    no_cuda, no_triton = (
        "; ".join(backends.unsupported_reasons(name, explanation.call))
        for name in ("cuda", "triton")
    )
    reasons = {name: "; ".join(given) for name, given in explanation.reasons.items()}
    assert reasons == {
        "cpu": "head_dim must be at most 256, got 300",
        "cuda": no_cuda,
        "triton": no_triton,
    }
    assert str(explanation) == (
        "backend: reference\n"
        "call: torch.float32 on cpu, batch layout, head_dim 300, options: none\n"
        "not cpu: head_dim must be at most 256, got 300\n"
        f"not cuda: {no_cuda}\n"
        f"not triton: {no_triton}"
    )


def test_explain_names_every_option_in_use():
    q = torch.randn(5, 4, 8)
    k, v = (torch.randn(5, 2, 8) for _ in range(2))
    explanation = fastattn.explain(
        q,
        k,
        v,
        cu_seqlens_q=torch.tensor([0, 5], dtype=torch.int32),
        bias=torch.zeros(5, 5),
        window=(1, 1),
        softcap=1.0,
        alibi_slopes=torch.ones(4),
        dropout_p=0.1,
        return_lse=True,
        generator=torch.Generator(),
    )
    assert explanation.call.packed
    assert explanation.call.options == (
        "bias",
        "window",
        "softcap",
        "alibi_slopes",
        "dropout_p",
        "grouped heads",
    )
    masked = fastattn.explain(*qkv(), key_padding_mask=torch.ones(1, 3, dtype=torch.bool))
    assert masked.call.options == ("key_padding_mask",)


def test_explain_follows_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert fastattn.explain(*qkv()).call.dtype == torch.bfloat16


def test_explain_computes_nothing():
    """It draws no seed, and takes tensors without data."""
    state = torch.get_rng_state()
    fastattn.explain(*qkv_on_meta(), dropout_p=0.1)
    assert torch.equal(torch.get_rng_state(), state)


def qkv_on_meta() -> list[torch.Tensor]:
    return [torch.empty(1, 3, 2, 8, device="meta") for _ in range(3)]


def test_tensors_without_data():
    out, lse = fastattn.attention(*qkv_on_meta(), return_lse=True)
    assert out.shape == (1, 3, 2, 8) and lse.shape == (1, 2, 3)


def test_without_the_native_module():
    """Everything still runs, on the reference; who insists on the kernels is told why not."""
    output = run_python(
        """
        import torch
        import fastattn
        from fastattn.backends import cpu

        q = torch.randn(1, 3, 2, 8, requires_grad=True)
        fastattn.attention(q, q, q, dropout_p=0.1).sum().backward()
        print(cpu.instruction_sets(), cpu.instruction_set())
        print(fastattn.explain(q, q, q))
        try:
            fastattn.attention(q, q, q, backend="cpu")
        except fastattn.BackendError as error:
            print(error)
        """,
        FASTATTN_DISABLE_NATIVE="1",
    )
    reason = "the native module is switched off by FASTATTN_DISABLE_NATIVE"
    lines = [line for line in output.splitlines() if not line.startswith("not triton: ")]
    assert lines.pop(4).startswith("not cuda: there are no CUDA kernels in this installation: ")
    assert lines == [
        "[] None",
        "backend: reference",
        "call: torch.float32 on cpu, batch layout, head_dim 8, options: none",
        f"not cpu: {reason}",
        f'attention: backend "cpu" cannot serve this call: {reason}. Leave backend=None to let '
        "fastattn choose one that can.",
    ]


def test_native_module_that_is_not_there():
    """The message of a source tree that was never built."""
    output = run_python(
        """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name == "fastattn._C":
                    raise ImportError("no such module")

        sys.meta_path.insert(0, Blocker())
        from fastattn.backends import cpu
        print(cpu.unavailable_reason())
        """
    )
    assert output.strip() == (
        "the native module fastattn._C is not there (no such module); "
        "reinstall fastattn on a machine with a C++ compiler"
    )


def test_the_switch_may_be_off(cpu_backend):
    output = run_python(
        "from fastattn.backends import cpu; print(cpu.unavailable_reason())",
        FASTATTN_DISABLE_NATIVE="0",
    )
    assert output.strip() == "None"


def test_instruction_sets(cpu_backend):
    names = cpu.instruction_sets()
    assert names[0] == "baseline"
    before = cpu.instruction_set()
    try:
        for name in names:
            cpu.set_instruction_set(name)
            assert cpu.instruction_set() == name
        cpu.set_instruction_set(None)
        assert cpu.instruction_set() == names[-1]
    finally:
        cpu.set_instruction_set(before)


UNKNOWN_INSTRUCTION_SET = (
    "FASTATTN_CPU_ISA: the instruction set must be one of {names} on this machine; got mmx. "
    "Unset it to use the best."
)


def test_unknown_instruction_set(cpu_backend):
    before = cpu.instruction_set()
    with pytest.raises(ValueError) as raised:
        cpu.set_instruction_set("mmx")
    names = " ".join(cpu.instruction_sets())
    assert str(raised.value) == UNKNOWN_INSTRUCTION_SET.format(names=names)
    assert cpu.instruction_set() == before


def test_instruction_set_of_the_environment(cpu_backend):
    output = run_python(
        "from fastattn.backends import cpu; print(cpu.instruction_set())",
        FASTATTN_CPU_ISA="baseline",
    )
    assert output.strip() == "baseline"


def test_unknown_instruction_set_of_the_environment(cpu_backend):
    output = run_python(
        """
        import torch
        import fastattn

        q = torch.randn(1, 3, 2, 8)
        try:
            fastattn.attention(q, q, q)
        except ValueError as error:
            print(error)
        """,
        FASTATTN_CPU_ISA="mmx",
    )
    names = " ".join(cpu.instruction_sets())
    assert output.strip() == UNKNOWN_INSTRUCTION_SET.format(names=names)
