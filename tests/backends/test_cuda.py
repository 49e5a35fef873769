"""The backends "cuda" and "cuda-emulated": what they refuse and why, and what they promise torch.

The operation's own tests (``tests/ops``) run over the emulated kernels too. ``tests/emulator`` has
the tests of the emulator, ``test_cuda_build.py`` those of what nvcc made of the kernels, and
``test_cuda_gpu.py`` those that need a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastattn
from fastattn import backends
from fastattn.backends import cpu
from fastattn.backends.cuda import CUDA, EMULATED, gpu, order
from fastattn.errors import BackendError
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.testing import backend_outputs, check_against_reference, make_inputs

needs_emulator = pytest.mark.skipif(
    EMULATED.unavailable_reason() is not None, reason=str(EMULATED.unavailable_reason())
)
CALL = backends.Call("cpu", torch.float16, 64, False, ())


@pytest.fixture
def emulated_gpu() -> Iterator[object]:
    """The emulator, whose options a test may change."""
    yield EMULATED.module
    EMULATED.module.set_options()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (gpu.Status(0, "no error", 13010, 13000), None),
        (gpu.Status(35, "insufficient", 0, 13000), "there is no NVIDIA driver"),
        (gpu.Status(100, "no device", 0, 13000), "there is no NVIDIA driver"),
        (gpu.Status(100, "no device", 13000, 13000), "the NVIDIA driver sees no GPU"),
        (
            gpu.Status(35, "insufficient", 12080, 13000),
            "the NVIDIA driver is made for CUDA 12.8, and the kernels were built with CUDA 13.0; "
            "update the driver, or rebuild fastattn with an older CUDA toolkit",
        ),
        (
            gpu.Status(999, "unknown error", 13000, 13000),
            "the CUDA runtime fails with error 999, unknown error",
        ),
    ],
)
def test_what_a_driver_may_lack(status, reason):
    assert gpu.status_reason(status) == reason


@pytest.mark.parametrize(
    ("capability", "compiled", "reason"),
    [
        ((8, 0), [80], None),
        ((8, 7), [75, 80, 90], None),  # runs the code for sm_80
        ((10, 3), [100], None),
        (
            (8, 0),
            [75, 86, 90],
            "the GPU is of architecture sm_80, and the kernels were compiled for sm_75 sm_86 sm_90;"
            " reinstall fastattn from source on this machine",
        ),
        (
            (12, 0),
            [90, 100],
            "the GPU is of architecture sm_120, and the kernels were compiled for sm_90 sm_100; "
            "reinstall fastattn from source on this machine",
        ),
        ((7, 0), [75], "the GPU must have compute capability 7.5 or newer, got 7.0"),
    ],
)
def test_gpus_and_what_was_compiled(capability, compiled, reason):
    assert gpu.architecture_reason(capability, compiled) == reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    reason = CUDA.unavailable_reason()
    assert reason is not None
    if cpu.unavailable_reason() is not None or gpu.build_info()["skipped"]:
        assert reason.startswith("there are no CUDA kernels in this installation: ")
    elif torch.version.cuda is None:
        assert reason == f"torch {torch.__version__} is not built for CUDA"
    else:
        assert reason == "there is no NVIDIA driver"


@pytest.mark.skipif(gpu.build_info()["skipped"] is not None, reason="built without CUDA kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_runtime_can_be_asked_where_there_is_no_driver():
    status = gpu.Status(*cpu.native_module().cuda_runtime_status())
    assert gpu.status_reason(status) == "there is no NVIDIA driver"
    assert status.runtime >= 12000


@pytest.mark.parametrize(
    ("capability", "first"),
    [((7, 5), "cuda"), ((8, 0), "cuda"), ((8, 9), "cuda"), ((9, 0), "triton"), ((12, 0), "triton")],
)
def test_which_gpu_backend_goes_first(capability, first):
    both = order.order_for(capability)
    assert both[0] == first and sorted(both) == ["cuda", "triton"]


def test_what_was_measured_goes_before_the_guess(monkeypatch):
    monkeypatch.setitem(order.measured(), ("sm_90", 64, True), "cuda")
    assert order.order_for((9, 0), 48, True) == ("cuda", "triton")
    for other in ((64, False), (32, True), (65, True), (300, True), (None, False)):
        assert order.order_for((9, 0), *other) == ("triton", "cuda")
    assert order.order_for((10, 0), 48, True) == ("triton", "cuda")


def test_emulated_kernels_are_never_chosen_unasked(monkeypatch):
    monkeypatch.setattr(cpu, "_load_error", "the native module is not there")
    q, k, v = torch.randn(3, 1, 5, 2, 8).half().unbind()
    explanation = fastattn.explain(q, k, v)
    assert explanation.backend == "reference"
    assert list(explanation.reasons) == ["cpu", "cuda", "triton"]
    torch.testing.assert_close(bias_gelu(q), bias_gelu(q, backend="reference"), rtol=0, atol=0)


def test_the_compiler_asks_whether_there_is_a_gpu():
    """A call that the CPU kernels do not serve, so that all backends are asked in the trace."""
    q, k, v = torch.randn(3, 1, 5, 2, 300).unbind()
    torch.compiler.reset()
    compiled = torch.compile(fastattn.attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), fastattn.attention(q, k, v))
    torch.compiler.reset()


@needs_emulator
def test_compiles_into_one_graph():
    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        q, k, v = x.half().unbind()
        out = fastattn.attention(q, k, v, dropout_p=0.1, backend=EMULATED.NAME).flatten(-2)
        out = dropout_add_layer_norm(out, out, weight, weight, 1e-5, 0.1, backend=EMULATED.NAME)
        return bias_gelu(out, weight, backend=EMULATED.NAME)

    x, weight = torch.randn(3, 2, 20, 2, 16), torch.randn(32)
    torch.compiler.reset()
    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        out = function(*leaves)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    torch.compiler.reset()
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_tensors_elsewhere_are_refused():
    elsewhere = CALL._replace(device_type="meta")
    assert CUDA._device_reasons("meta") == ["tensors must be on a GPU, got meta"]
    if EMULATED.unavailable_reason() is None:
        assert EMULATED.unsupported_reasons(elsewhere) == ["tensors must be on the CPU, got meta"]


@needs_emulator
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float32}, "dtype must be float16 or bfloat16, got torch.float32"),
        ({"dtype": torch.float64}, "dtype must be float16 or bfloat16, got torch.float64"),
        ({"head_dim": 129}, "head_dim must be at most 128, got 129"),
    ],
)
def test_what_attention_refuses(change, reason):
    call = CALL._replace(**change)
    assert EMULATED.unsupported_reasons(call) == [reason]
    with pytest.raises(BackendError) as raised:
        backends.select(call, EMULATED.NAME)
    assert str(raised.value) == (
        f'attention: backend "cuda-emulated" cannot serve this call: {reason}. '
        "Leave backend=None to let fastattn choose one that can."
    )


@needs_emulator
def test_what_hidden_states_refuse():
    x = torch.randn(2, 6145)
    with pytest.raises(BackendError, match="hidden_size must be at most 6144, got 6145"):
        dropout_add_layer_norm(x, x, x[0], x[0], 1e-5, backend=EMULATED.NAME)
    with pytest.raises(BackendError, match="float64 is not supported"):
        bias_gelu(x.double(), backend=EMULATED.NAME)
    assert bias_gelu(x, backend=EMULATED.NAME).shape == x.shape


@needs_emulator
def test_turing_has_no_bfloat16(emulated_gpu):
    emulated_gpu.set_options(compute_capability=75)
    assert EMULATED.unsupported_reasons(CALL) == []
    assert EMULATED.unsupported_reasons(CALL._replace(dtype=torch.bfloat16)) == [
        "bfloat16 needs a GPU of compute capability 8.0 or newer, got 7.5; float16 is served"
    ]


@needs_emulator
@pytest.mark.parametrize("compute_capability", [75, 80, 86, 90])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.1}, {"causal": True, "softcap": 9.0}])
def test_every_architecture_has_enough_shared_memory(
    emulated_gpu, compute_capability, head_dim, options
):
    """The emulated GPU gives a block what the real one has, and no more."""
    emulated_gpu.set_options(compute_capability=compute_capability)
    inputs = make_inputs([70], head_dim=head_dim, dtype=torch.float16, **options)
    check_against_reference(inputs, EMULATED.NAME)


@needs_emulator
def test_the_order_of_threads_changes_no_bit(emulated_gpu):
    inputs = make_inputs([70, 33], dtype=torch.float16, dropout_p=0.2, bias_shape=(1, 2, 70, 70))
    runs = []
    for options in ({"schedule": "in-order"}, {"schedule": "reverse"}, {"seed": 5, "threads": 2}):
        emulated_gpu.set_options(**options)
        runs.append(backend_outputs(inputs, EMULATED.NAME))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@needs_emulator
def test_unknown_options_of_the_emulator(emulated_gpu):
    with pytest.raises(ValueError, match="emulator: there is no option speed"):
        emulated_gpu.set_options(speed=3)
    with pytest.raises(ValueError, match="schedule must be random, in-order or reverse; got any"):
        emulated_gpu.set_options(schedule="any")


@needs_emulator
def test_two_dtypes_of_hidden_states_have_one_dropout_mask():
    x, residual = torch.randn(5, 300).bfloat16(), torch.randn(5, 300)
    weight, bias = torch.randn(300), torch.randn(300)
    arguments = (x, residual, weight, bias, 1e-5, 0.3)
    outs = []
    for backend in ("cpu", EMULATED.NAME):
        if backend == "cpu" and cpu.unavailable_reason() is not None:
            pytest.skip(str(cpu.unavailable_reason()))
        seeds = torch.Generator().manual_seed(3)
        outs.append(dropout_add_layer_norm(*arguments, seeds, backend=backend))
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
